"""What a completion server answers, read at the border: a completion, or why it is not one.

Nothing of a reply is used before its types and ranges are checked. What another try may heal is a
RetryableError, what it cannot is an error at once; each is one line with place, value and rule.
Wordings and codes are those of vLLM, SGLang, llama.cpp, TGI, Ollama, LM Studio, LiteLLM and OpenAI.
"""

import contextlib
import json
import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optima.errors import ContextOverflowError, OptimaError, ServerError

_MESSAGE_WIDTH = 500
_VALUE_WIDTH = 100
_RETRIED = (408, 425, 429)  # and all from 500 on
# A refusal says with these words that prompt and new tokens do not fit; looked for in lower case.
_OVERFLOW = re.compile(
    r"context[ _-]?(length|size|window|limit)|max(imum)?[ _]model[ _]len|max_seq_len"
    r"|(prompt|input|sequence|request)s?\b[^.]{0,60}(too long|longer than|larger than|exceed)"
    r"|exceeds? the maximum (number of tokens|input)|range of input length|string_above_max_length"
    r"|`inputs` must have less than|`max_new_tokens` must be|reduce the length|too many tokens"
    r"|max_(completion_|new_)?tokens\b.{0,80}(too large|at least 1\b)"
)
# A server that failed says it with less: its own crash may speak of the context as well.
_FAILED_BY_OVERFLOW = re.compile(
    r"context[ _-]?(length|size|window)[^.]{0,40}exceed"
    r"|exceed[^.]{0,60}context[ _-]?(length|size|window)|maximum context length is"
)
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)

Count = Annotated[int, Field(ge=0, lt=2**31)]  # of tokens, and their ids


class RetryableError(ServerError):
    """A failed try that another one may heal, after ``pause_s`` where the server asks for it."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class KeyRefusedError(ServerError):
    """A server does not take our key."""


class Choice(BaseModel):
    """The text of a completion and what ended it.

    ``stop_reason`` is vLLM's and ``matched_stop`` SGLang's word for the stop text, or the id of the
    token, that ended it.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    text: str
    finish_reason: Literal["stop", "length"]  # a server that shuts down says "abort"
    stop_reason: object = None
    matched_stop: object = None
    token_ids: tuple[Count, ...] | None = None

    @property
    def is_ended_by_text(self) -> bool:
        """Whether one of the stop texts ended it."""
        return isinstance(self.stop_reason, str) or isinstance(self.matched_stop, str)


class Usage(BaseModel):
    """The tokens a server counted; None where it does not say."""

    model_config = ConfigDict(strict=True, frozen=True)

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Reply(BaseModel):
    """A completion with its one choice."""

    model_config = ConfigDict(strict=True, frozen=True)

    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=1)]
    usage: Usage | None = None

    @property
    def choice(self) -> Choice:
        """The choice."""
        return self.choices[0]

    @property
    def n_tokens(self) -> int | None:
        """Tokens generated, by the server's count or that of the ids; None without both."""
        if self.usage is not None and self.usage.completion_tokens is not None:
            return self.usage.completion_tokens
        return None if self.choice.token_ids is None else len(self.choice.token_ids)


def read_reply(url: str, payload: bytes) -> Reply:
    """Return the completion in the answer of the server at ``url``.

    Raises RetryableError with place and value of what is wrong, or what the error stands for that
    some proxies send under a good status.
    """
    try:
        reply = Reply.model_validate_json(payload)
    except ValidationError as error:
        status = _hidden_status(payload)
        if status is not None:
            raise refusal(url, status, payload) from error
        raise RetryableError(f"{url}: {_fault(error, payload)}") from error
    if reply.n_tokens is None:
        raise RetryableError(
            f"{url}: usage.completion_tokens: is missing, and there are no token_ids to count, so "
            "the length of the text is unknown; turn usage on at that server"
        )
    return reply


def check_reply(url: str, reply: Reply, *, max_tokens: int, n_vocabulary: int | None) -> None:
    """Raise RetryableError when tokens or ids do not answer what was asked for.

    ``n_vocabulary`` is above every id of the model's tokenizer; None when it is not known.
    """
    n_tokens, ids = reply.n_tokens or 0, reply.choice.token_ids
    if n_tokens > max_tokens:
        raise RetryableError(
            f"{url}: usage.completion_tokens: {n_tokens}: must be at most the {max_tokens} tokens "
            "asked for"
        )
    if n_tokens == 0 and reply.choice.text:
        shown = repr(reply.choice.text)[:_VALUE_WIDTH]
        raise RetryableError(
            f"{url}: usage.completion_tokens: 0: must be more for the text {shown}"
        )
    if ids and n_vocabulary is not None and max(ids) >= n_vocabulary:
        raise RetryableError(
            f"{url}: choices.0.token_ids: {max(ids)}: must be an id of the tokenizer, below "
            f"{n_vocabulary}; let that server serve model.path with its own tokenizer"
        )


def refusal(url: str, status: int, payload: bytes, headers: Any = None) -> OptimaError:
    """Return the error that an HTTP status other than 200 stands for."""
    message, place = message_of(payload), f"{url}: HTTP {status}"
    if 300 <= status < 400:
        target = (headers or {}).get("Location", "another address")
        return ServerError(
            f"{place}: redirects to {target}, and the key goes nowhere but to the named server; "
            "write the address it answers at in serving.endpoints, or as the policy's endpoint"
        )
    if is_overflow(status, payload):
        return ContextOverflowError(f"{place}: {message}")
    if status in _RETRIED or status >= 500:
        hint = "; a lower serving.concurrency asks less at a time" if status == 429 else ""
        pause_s = retry_after_s((headers or {}).get("Retry-After"))
        return RetryableError(f"{place}: {message}{hint}", pause_s)
    if status in (401, 403):
        return KeyRefusedError(
            f"{place}: the API key is refused: {message}; the key is read from OPTIMA_API_KEY, "
            "for the endpoint of a policy from OPTIMA_API_KEY_NAME: set it to one that this server "
            "takes"
        )
    if status == 404:
        return ServerError(
            f"{place}: {message}; it must answer /v1/completions for the model, under a name that "
            "its /v1/models lists"
        )
    return ServerError(f"{place}: {message}")


def is_overflow(status: int, payload: bytes) -> bool:
    """Return whether a refusal means that prompt and new tokens do not fit the context window."""
    if status == 413:
        return True
    text = payload.decode(errors="replace").lower()
    if status in (400, 422):
        return _OVERFLOW.search(text) is not None
    return status == 500 and _FAILED_BY_OVERFLOW.search(text) is not None


def retry_after_s(header: str | None) -> float | None:
    """Return the seconds a ``Retry-After`` asks for, in seconds or as a date; None without one."""
    if header is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(header)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        when = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def message_of(payload: bytes) -> str:
    """Return the server's own words on one line, whichever format of errors it has."""
    text = payload.decode(errors="replace")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        title = _TITLE.search(text)
        said = f"an HTML page, {title.group(1).strip()!r}" if title else text
    else:
        said = _words(answer)
    said = " ".join(said.split())[:_MESSAGE_WIDTH]  # in JSON half a character can stand
    return said.encode(errors="backslashreplace").decode() or "no message"


def _words(answer: Any) -> str:
    """Return the innermost message of an error in JSON."""
    while isinstance(answer, dict):
        keys = ("error", "message", "detail", "msg")  # vLLM and OpenAI, SGLang and TGI, FastAPI
        inner = next((answer[key] for key in keys if answer.get(key)), None)
        if inner is None:
            break
        answer = inner[0] if isinstance(inner, list) else inner
    return answer if isinstance(answer, str) else json.dumps(answer)


def _hidden_status(payload: bytes) -> int | None:
    """Return the status of an error that was sent under status 200; None where there is none."""
    try:
        answer = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not answer.get("error") or answer.get("choices"):
        return None
    error = answer["error"]
    code = str(error.get("code") if isinstance(error, dict) else "")
    return int(code) if re.fullmatch(r"[45]\d\d", code) else 500


def _fault(error: ValidationError, payload: bytes) -> str:
    """Return the first thing wrong with a reply: place, value, rule."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"did not answer with JSON: {message_of(payload)[: 2 * _VALUE_WIDTH]}"
    place = ".".join(map(str, first["loc"])) or "the reply"
    if first["type"] == "missing":
        return f"did not answer with a completion: {place}: is missing: {message_of(payload)[:200]}"
    value = json.dumps(first["input"], default=str)[:_VALUE_WIDTH]
    return f"did not answer with a completion: {place}: {value}: {first['msg'].lower()}"
