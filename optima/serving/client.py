"""The client of the vLLM servers: one prompt in, one completion out, whatever servers die.

A call goes to the preferred server while it lives (its prefix cache holds the conversation), else
to the one with the least calls in flight. What another try can heal is tried again, on another
server where there is one; what it cannot heal rises at once, with the server's own message.
Plain aiohttp: measured 2026-11-22, it carries ten times the requests of the `openai` package.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import aiohttp
import orjson

from optima.conversation.dialogue import Request
from optima.errors import ContextOverflowError, ServerError
from optima.recipe.schema import ServingSection

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
_WAIT_POLL_S = 0.25  # between two looks for a server that came back
_KEEPALIVE_S = 3.0  # below the 5 s after which vLLM closes an idle connection
_SPARE_FILES = 256  # descriptors kept for everything that is no connection
_MESSAGE_WIDTH = 500
_OVERFLOW_MARKS = ("maximum context length", "maximum model length", "max_model_len")


@dataclass(eq=False)
class Server:
    """One completion server; the same object for a run of the fleet, restarts included.

    ``failure`` is set once nobody will start it again.
    """

    index: int
    base_url: str
    api_key: str = field(repr=False)
    n_in_flight: int = 0
    is_alive: bool = True
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The text a server generated, its token counts (end of turn included) and who made it.

    ``finish_reason`` is ``label`` when one of the stop texts ended it; ``token_ids`` is None from a
    server that does not give them.
    """

    text: str
    n_prompt_tokens: int
    n_tokens: int
    finish_reason: Literal["stop", "length", "label"]
    token_ids: tuple[int, ...] | None
    server: Server


class _RetryableError(Exception):
    """A failed try that another one may heal."""


class CompletionClient:
    """Asks ``servers`` for completions of ``model_name``; an async context manager.

    ``n_at_once`` is how many calls there will be at a time, for which connections are kept; None
    takes ``serving.concurrency`` per server. More calls wait, and their waiting is part of
    ``serving.request_timeout_s``.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        model_name: str,
        serving: ServingSection,
        n_at_once: int | None = None,
    ) -> None:
        self._servers = tuple(servers)
        self._n_at_once = n_at_once or serving.concurrency * len(servers)
        self._model_name = model_name
        self._serving = serving
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        n_connections = _allow_connections(self._n_at_once)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=n_connections, keepalive_timeout=_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # sock_read has no limit of its own: a completion sends nothing until it is done
            timeout=aiohttp.ClientTimeout(total=self._serving.request_timeout_s, sock_connect=30),
            headers={"Content-Type": "application/json"},
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(
        self,
        request: Request,
        *,
        temperature: float,
        top_p: float,
        prefer: Server | None = None,
    ) -> Completion:
        """Continue the prompt's ids as they are, up to a stop text or the end of turn.

        Raises ContextOverflowError when prompt and ``max_tokens`` exceed the context window, and
        ServerError when ``serving.max_attempts`` tries failed, the request itself is refused, or
        no server came back within ``serving.start_timeout_s``.
        """
        asked = {
            "model": self._model_name,
            "prompt": request.prompt_ids,
            "max_tokens": request.max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": request.stop,
            "stop_token_ids": (request.stop_token,),
            "return_token_ids": True,
        }
        if temperature > 0:  # greedy decoding draws nothing, and seeds cost the server time
            asked["seed"] = request.seed
        body = orjson.dumps(asked)
        failed: Server | None = None
        reason = ""
        for attempt in range(self._serving.max_attempts):
            if attempt:
                await asyncio.sleep(min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1)))
            server = self._choose(prefer, failed) or await self._wait_for_server(prefer)
            server.n_in_flight += 1
            try:
                return await self._post(server, body)
            except _RetryableError as error:
                failed, reason = server, f"{server.base_url}: {error}"
                logger.debug("attempt %d: %s", attempt + 1, reason)
            finally:
                server.n_in_flight -= 1
        raise ServerError(
            f"a completion failed {self._serving.max_attempts} times (serving.max_attempts); "
            f"the last time: {reason}"
        )

    def _choose(self, prefer: Server | None, failed: Server | None) -> Server | None:
        """Return the preferred or least loaded server alive, ``failed`` only if it is the last."""
        if prefer is not None and prefer.is_alive and prefer is not failed:
            return prefer
        best: Server | None = None
        for server in self._servers:
            if (
                server.is_alive
                and server is not failed
                and (best is None or server.n_in_flight < best.n_in_flight)
            ):
                best = server
        return failed if best is None and failed is not None and failed.is_alive else best

    async def _wait_for_server(self, prefer: Server | None) -> Server:
        timeout_s = self._serving.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            server = self._choose(prefer, None)
            if server is not None:
                return server
            failures = [server.failure for server in self._servers if server.failure]
            if len(failures) == len(self._servers):
                raise ServerError(f"no server is left; {failures[0]}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"every server is dead and none came back within {timeout_s:.0f} s "
                    "(serving.start_timeout_s)"
                )
            await asyncio.sleep(_WAIT_POLL_S)

    async def _post(self, server: Server, body: bytes) -> Completion:
        assert self._session is not None, "the client is used outside its context"
        try:
            async with self._session.post(
                server.base_url + "/v1/completions",
                data=body,
                headers={"Authorization": "Bearer " + server.api_key},
            ) as response:
                payload = await response.read()
                status = response.status
        except TimeoutError as error:
            limit_s = self._serving.request_timeout_s
            raise _RetryableError(
                f"no answer within {limit_s:.0f} s (serving.request_timeout_s)"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _RetryableError(f"{type(error).__name__}: {error}") from error
        if status != 200:
            raise _refusal(server, status, payload)
        try:
            answer = orjson.loads(payload)
            choice = answer["choices"][0]
            usage = answer["usage"]
            reason = choice["finish_reason"]
            if reason not in ("stop", "length"):  # a server that shuts down aborts its requests
                raise _RetryableError(f"a completion ended by {reason!r}")
            ids = choice.get("token_ids")
            return Completion(
                text=choice["text"],
                n_prompt_tokens=usage["prompt_tokens"],
                n_tokens=usage["completion_tokens"],
                # vLLM names the stop text that ended a completion, or the id of the token
                finish_reason="label" if isinstance(choice.get("stop_reason"), str) else reason,
                token_ids=None if ids is None else tuple(ids),
                server=server,
            )
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _RetryableError(f"answered with no completion: {payload[:200]!r}") from error


def _refusal(server: Server, status: int, payload: bytes) -> Exception:
    """Return the error that an HTTP status other than 200 stands for."""
    message = _message(payload)
    if status == 429 or status >= 500:
        return _RetryableError(f"HTTP {status}: {message}")
    if status == 400 and any(mark in message for mark in _OVERFLOW_MARKS):
        return ContextOverflowError(message)
    if status in (401, 403):
        return ServerError(
            f"{server.base_url}: HTTP {status}: the API key is refused: {message}; a key for "
            "serving.endpoints is read from OPTIMA_API_KEY"
        )
    return ServerError(f"{server.base_url}: HTTP {status}: {message}")


def _message(payload: bytes) -> str:
    """Return the server's own words, whether it speaks the OpenAI error format or not."""
    try:
        answer = orjson.loads(payload)
        error = answer.get("error", answer)
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, AttributeError):
        message = payload.decode(errors="replace")
    return str(message)[:_MESSAGE_WIDTH]


def _allow_connections(n_wanted: int) -> int:
    """Raise the limit of open files for ``n_wanted`` connections; return how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = n_wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return n_wanted
    return max(1, min(n_wanted, soft - _SPARE_FILES))
