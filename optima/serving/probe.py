"""Short synchronous questions to a completion server: is it there, does it generate, what is it.

No proxy and no redirect is followed: the key goes to the named server only.
"""

import http.client
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from optima.errors import ContextOverflowError, ServerError
from optima.recipe.schema import ServingSection
from optima.serving.client import Server, authorization, backoff_s
from optima.serving.reply import Reply, RetryableError, message_of, read_reply, refusal

HEALTH_PATH, MODELS_PATH = "/health", "/v1/models"
PROMPT_IDS = (1, 2, 3)  # in every vocabulary
_NO_ROUTE = (404, 405, 501)

_Result = TypeVar("_Result")


class _Card(BaseModel):
    """A model in a server's list: vLLM gives ``root``, its path, and an adapter's ``parent``."""

    model_config = ConfigDict(strict=True, frozen=True)

    id: str
    root: str | None = None
    parent: str | None = None


class _Cards(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    data: tuple[_Card, ...]


class _Logprob(BaseModel):
    """A token's log-probability; NaN is read as it stands, None is what some write for it."""

    logprob: float | None


class _ScoredChoice(BaseModel):
    prompt_logprobs: tuple[dict[int, _Logprob] | None, ...]


class _Scored(BaseModel):
    choices: tuple[_ScoredChoice]


def is_healthy(server: Server, timeout_s: float, path: str | None = HEALTH_PATH) -> bool:
    """Return whether ``path`` answers 200 in time, or without a path, whether anything answers."""
    try:
        status, _, _ = _ask(server, "GET", path or MODELS_PATH, None, timeout_s)
    except RetryableError:
        return False
    return path is None or status == 200


def health_path(server: Server, timeout_s: float) -> str | None:
    """Return a path that answers 200 while the server is well; None when it has none."""
    paths = (HEALTH_PATH, MODELS_PATH)
    return next((path for path in paths if is_healthy(server, timeout_s, path)), None)


def is_generating(server: Server, model_name: str, timeout_s: float) -> bool:
    """Return whether the server generates a token in time."""
    try:
        check_completion(server, model_name, timeout_s)
    except ServerError:
        return False
    return True


def check_completion(server: Server, model_name: str, timeout_s: float) -> Reply:
    """Have the server generate one token after a prompt of token ids; return its answer.

    Raises ServerError with the reason when it does not, RetryableError when it still may.
    """
    try:
        return _complete(server, model_name, PROMPT_IDS, timeout_s)
    except RetryableError:
        raise
    except ServerError as error:
        if not _takes_text(server, model_name, timeout_s):
            raise
        raise ServerError(
            f"{error}; it takes a text as prompt but no token ids, of which prompts are made here; "
            "serve the model with vLLM, SGLang or llama.cpp"
        ) from error


def prompt_logprobs(
    server: Server, model_name: str, token_ids: tuple[int, ...], timeout_s: float
) -> tuple[float, ...]:
    """Return the log-probability of every token of a prompt after the first, as vLLM gives them.

    NaN stands where it is no number. Raises RetryableError without an answer, ServerError when the
    server gives none.
    """
    asked = {
        "model": model_name, "prompt": token_ids, "max_tokens": 1, "temperature": 0.0, "seed": 0,
        "prompt_logprobs": 0,
    }  # fmt: skip
    status, headers, payload = _ask(server, "POST", "/v1/completions", asked, timeout_s)
    if status != 200 and b"JSON compliant" in payload:  # how vLLM says that one is no number
        return (math.nan,) * (len(token_ids) - 1)
    if status != 200:
        error = refusal(server.base_url, status, payload, headers)
        raise ServerError(str(error)) from error
    try:
        scored = _Scored.model_validate_json(payload).choices[0].prompt_logprobs
        found = [(place or {})[i] for i, place in zip(token_ids[1:], scored[1:], strict=True)]
    except (ValueError, KeyError) as error:
        raise ServerError(f"{server.base_url}: gives no prompt_logprobs") from error
    return tuple(math.nan if one.logprob is None else one.logprob for one in found)


def served_models(server: Server, timeout_s: float) -> tuple[str, ...]:
    """Return the names of the models it serves, its main one first; none where it has no list."""
    return tuple(card.id for card in _cards(server, timeout_s))


def served_as(server: Server, model_path: str, timeout_s: float) -> str:
    """Return the name under which it serves the model at ``model_path``.

    Of several models that with this name or path counts, one alone whatever it is called. Raises
    ServerError with the names when none can be told to be it.
    """
    cards = [card for card in _cards(server, timeout_s) if card.parent is None]
    if not cards:
        return model_path  # what it generates under that name is checked next
    exact = [card.id for card in cards if model_path in (card.id, card.root)]
    alike = [card.id for card in cards if _last_part(card.id) == _last_part(model_path)]
    is_one = len(cards) == 1 or (
        cards[0].root is not None and len({card.root for card in cards}) == 1
    )
    if exact or len(alike) == 1:
        return (exact or alike)[0]
    if is_one:
        return cards[0].id
    names = ", ".join(card.id for card in cards)
    raise ServerError(
        f"{server.base_url}: serves {names}, and none is named {model_path} as model.path is; "
        "serve that model under this name"
    )


def patiently(
    question: Callable[[], _Result],
    serving: ServingSection,
    pause: Callable[[float], object] = time.sleep,
) -> _Result:
    """Return the answer to a question that is asked up to ``serving.max_attempts`` times."""
    for attempt in range(1, serving.max_attempts):
        try:
            return question()
        except RetryableError as error:
            asked_s = backoff_s(attempt, 0) if error.pause_s is None else error.pause_s
            pause(min(asked_s, serving.start_timeout_s))
    return question()


def _takes_text(server: Server, model_name: str, timeout_s: float) -> bool:
    try:
        _complete(server, model_name, "1 2 3", timeout_s)
    except ServerError:
        return False
    return True


def _complete(
    server: Server, model_name: str, prompt: str | tuple[int, ...], timeout_s: float
) -> Reply:
    asked = {
        "model": model_name, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "seed": 0,
        "return_token_ids": True,
    }  # fmt: skip
    status, headers, payload = _ask(server, "POST", "/v1/completions", asked, timeout_s)
    try:
        if status != 200:
            raise refusal(server.base_url, status, payload, headers)
        return read_reply(server.base_url, payload)
    except ContextOverflowError as error:
        raise ServerError(f"{error} (for a prompt of three tokens)") from error


def _cards(server: Server, timeout_s: float) -> tuple[_Card, ...]:
    status, headers, payload = _ask(server, "GET", MODELS_PATH, None, timeout_s)
    if status in _NO_ROUTE:
        return ()
    if status != 200:
        raise refusal(server.base_url, status, payload, headers)
    try:
        return _Cards.model_validate_json(payload).data
    except ValidationError as error:
        raise ServerError(
            f"{server.base_url}{MODELS_PATH}: lists no models: {message_of(payload)[:200]}"
        ) from error


def _last_part(name: str) -> str:
    return Path(name).name.lower()


def _ask(
    server: Server, method: str, path: str, body: object, timeout_s: float
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Return status, headers and body of an answer; RetryableError when there is none."""
    url = urlsplit(server.base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=timeout_s)
    headers = {"Content-Type": "application/json", **authorization(server.api_key)}
    try:
        connection.request(
            method, url.path + path, None if body is None else json.dumps(body), headers
        )
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    except TimeoutError as error:
        raise RetryableError(
            f"{server.base_url}{path}: no answer within {timeout_s:.3g} s"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise RetryableError(f"{server.base_url}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
