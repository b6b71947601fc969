"""Short synchronous questions to a completion server: is it there, does it generate, what is it.

No proxy and no redirect is followed: the key goes to the named server only.

A training writes the log-probabilities of a few tokens beside the model it trained
(``optima.training.jobs.Logprobs``). A server that was started on that folder, or was given its
weights anew, is asked for them once, which tells whether it serves the model in the folder.
Measured with SmolLM2-135M in bfloat16, 64 tokens, vLLM 0.32 and transformers on a CPU (2026-11-27),
as mean absolute differences per token in nats: the right weights 0.04 to 0.08 (four models, six
texts), transformers in float32 against bfloat16 0.03 to 0.08, the weights of the iteration before
0.17 to 0.31, those of the start model 0.5 to 1.0, one layer's MLP set to zero 0.42 to 0.58, all
weights zero 7.4. Of NaN weights vLLM answers HTTP 400: NaN is not a JSON number.
"""

import http.client
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from optima.errors import ContextOverflowError, ServerError, StageError
from optima.recipe.schema import ServingSection
from optima.records import read_record
from optima.serving.client import Server, authorization, backoff_s, served_name
from optima.serving.reply import Reply, RetryableError, message_of, read_reply, refusal
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR, Logprobs
from optima.types import EndpointRef, ModelRef, TeamRef

logger = logging.getLogger(__name__)

HEALTH_PATH, MODELS_PATH = "/health", "/v1/models"
PROMPT_IDS = (1, 2, 3)  # in every vocabulary
_NO_ROUTE = (404, 405, 501)
LARGEST_NOISE = 0.4  # nats per token, five times what kernels and number formats were seen to do
LEAST_CHANGE = 0.05  # below it nothing is said about which of two models is served

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
        status, _, _ = ask(server, "GET", path or MODELS_PATH, None, timeout_s)
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
            f"{error}; it takes a text as prompt but not token ids, which prompts here consist of; "
            "serve the model with vLLM, SGLang or llama.cpp"
        ) from error


def prompt_logprobs(
    server: Server, model_name: str, token_ids: tuple[int, ...], timeout_s: float
) -> tuple[float, ...]:
    """Return the log-probability of every token of a prompt after the first, as vLLM gives them.

    NaN stands where it is not a number. Raises RetryableError without an answer, ServerError when
    the server gives none.
    """
    asked = {
        "model": model_name, "prompt": token_ids, "max_tokens": 1, "temperature": 0.0, "seed": 0,
        "prompt_logprobs": 0,
    }  # fmt: skip
    status, headers, payload = ask(server, "POST", "/v1/completions", asked, timeout_s)
    if status != 200 and b"JSON compliant" in payload:  # how vLLM says that one is not a number
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


def name_at(server: Server, model: ModelRef, timeout_s: float) -> str:
    """Return the name under which a server of others serves ``model``.

    Raises ServerError where the server does not tell which of its models that is, or has none such.
    """
    if not isinstance(model, EndpointRef):
        return served_as(server, model.path, timeout_s)
    names = served_models(server, timeout_s)
    if model.name is None and len(names) == 1:
        return names[0]
    what = f"{server.base_url}: serves {', '.join(names)}"
    if model.name is None and names:
        raise ServerError(f"{what}; say which of them plays by policies.{model.policy}.model")
    if model.name is None:
        raise ServerError(
            f"{server.base_url}: does not list what it serves; name it by "
            f"policies.{model.policy}.model"
        )
    if names and model.name not in names:
        raise ServerError(f"{what}, and not {model.name}; set policies.{model.policy}.model")
    return model.name


def with_retries(
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
    status, headers, payload = ask(server, "POST", "/v1/completions", asked, timeout_s)
    try:
        if status != 200:
            raise refusal(server.base_url, status, payload, headers)
        return read_reply(server.base_url, payload)
    except ContextOverflowError as error:
        raise ServerError(f"{error} (for a prompt of three tokens)") from error


def _cards(server: Server, timeout_s: float) -> tuple[_Card, ...]:
    status, headers, payload = ask(server, "GET", MODELS_PATH, None, timeout_s)
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


def ask(
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


def check_served(server: Server, model: ModelRef, timeout_s: float) -> None:
    """Raise StageError when what a server of our own serves as ``model`` is another one.

    A model without log-probabilities beside it (none of a training here, or of an older release)
    is not compared, nor is one whose server does not give any, which is logged. Raises
    RetryableError when the server does not answer. Of several policies each is compared.
    """
    if isinstance(model, TeamRef):
        for one in model.member_by_policy.values():
            check_served(server, one, timeout_s)
        return
    path = Path(model.place)
    expected = read_logprobs(path)
    if expected is None:
        return
    try:
        found = prompt_logprobs(server, served_name(model), expected.token_ids, timeout_s)
    except RetryableError:
        raise
    except ServerError as error:
        logger.warning("server %d: not compared with the model in %s: %s",
                       server.index, path, error)  # fmt: skip
        return
    what = difference(found, expected)
    if what is not None:
        raise StageError(
            f"{path}: server {server.index} serves another model: {what}; run again to start it "
            "anew, and if that does not help, take what changes weights or their format out of "
            f"serving.extra_args, or move {path.parent} away and run again to train it anew"
        )
    logger.debug("server %d: serves the model in %s", server.index, path)


def read_logprobs(folder: Path) -> Logprobs | None:
    """Return the log-probabilities beside a trained model; None where there are none.

    Raises StageError when they cannot be read.
    """
    path = folder.parent / LOGPROBS_FILE
    if folder.name != MODEL_DIR:
        return None
    remedy = f"put it back from a copy, or move {folder.parent} away and run again to make it anew"
    return read_record(path, Logprobs, remedy)


def difference(found: Sequence[float], expected: Logprobs) -> str | None:
    """Return how log-probabilities show another model than the expected one; None if they do not.

    Noise is as far from the start model as from the trained one, or further; only weights from
    before the training are clearly nearer to the former.
    """
    apart, from_start = distance(found, expected.trained), distance(found, expected.start)
    if not math.isfinite(apart):
        return "not all of its log-probabilities are numbers"
    if apart > LEAST_CHANGE and from_start < apart / 2:
        return (
            f"its log-probabilities are {apart:.3f} nats a token away from those of the folder and "
            f"{from_start:.3f} from those of the model that was trained from: old weights"
        )
    if apart > LARGEST_NOISE:
        return (
            f"its log-probabilities are {apart:.3f} nats a token away from those of the folder, "
            f"where number formats account for {LARGEST_NOISE} at most"
        )
    return None


def distance(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the mean absolute difference per token, in nats; NaN when one is not a number."""
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected)
