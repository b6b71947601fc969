"""The client of the vLLM servers: one prompt in, one completion out, whatever servers die.

A call goes to the preferred server while it lives (its prefix cache holds the conversation), else
to the one with the least calls in flight. What another try can heal is tried again, on another
server where there is one; what it cannot heal rises at once, with the server's own message. A
server that asks for a pause (``Retry-After``) is left alone by all calls until it is over.
The servers are a list that may change while it is used (``Roster``): one that joins is called, the
calls to one that leaves are made again elsewhere, which is no failed try of theirs.
Plain aiohttp: measured 2026-11-22, it carries ten times the requests of the `openai` package.
"""

import asyncio
import logging
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, overload

import orjson

from optima.conversation.dialogue import Completion, Request
from optima.errors import ServerError
from optima.recipe.schema import ServingSection
from optima.seeding import digest, rng
from optima.serving.reply import Reply, RetryableError, check_reply, read_reply, refusal
from optima.types import ModelRef

if TYPE_CHECKING:
    import aiohttp  # a tenth of a second, which what asks no server need not wait for

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
MODEL_NAME = "policy"  # under which servers of our own serve a whole model
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
_WAIT_POLL_S = 0.25  # between two looks for a server that came back
_CONNECT_S = 30.0
_KEEPALIVE_S = 3.0  # below the 5 s after which vLLM closes an idle connection
_MANY_CONNECTIONS = 65_536
_SPARE_FILES = 256  # descriptors kept for everything that is not a connection


@dataclass(eq=False)
class Server:
    """One completion server; the same object for a run of the fleet, restarts included.

    ``failure`` is set once nobody will start it again, ``trouble`` says why it is not alive now.
    ``n_timeouts`` counts calls without an answer since the last answer, ``paused_until`` is the
    monotonic time before which it wants no calls. ``host`` is the address that one of ours listens
    on, ``node`` names the node it runs on, if that is not this one.
    """

    index: int
    base_url: str
    api_key: str = field(repr=False)
    n_in_flight: int = 0
    is_alive: bool = True
    failure: str | None = None
    trouble: str | None = None
    n_timeouts: int = 0
    paused_until: float = 0.0
    host: str = HOST
    node: str | None = None


class Roster(Sequence[Server]):
    """A list of servers that changes: some join, some leave, whoever uses it sees it as it is now.

    Any thread may change it. ``is_open`` says that others may still join.
    """

    def __init__(self, servers: Sequence[Server] = (), *, is_open: bool = False) -> None:
        self.is_open = is_open
        self._servers = tuple(servers)
        self._lock = threading.Lock()

    def join(self, *servers: Server) -> None:
        """Add servers."""
        with self._lock:
            self._servers = (*self._servers, *servers)

    def leave(self, is_leaving: Callable[[Server], bool]) -> tuple[Server, ...]:
        """Remove, and return, the servers of which ``is_leaving`` is true."""
        with self._lock:
            gone = tuple(server for server in self._servers if is_leaving(server))
            self._servers = tuple(server for server in self._servers if server not in gone)
        return gone

    def __len__(self) -> int:
        return len(self._servers)

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers)

    @overload
    def __getitem__(self, place: int) -> Server: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Server, ...]: ...
    def __getitem__(self, place: int | slice) -> Server | tuple[Server, ...]:
        return self._servers[place]


@dataclass(eq=False)
class CompletionClient:
    """Asks ``servers`` for completions of ``model_name``; an async context manager.

    ``n_at_once`` is how many calls there will be at a time, for which connections are kept; None
    takes ``serving.concurrency`` per server. More calls wait, and their waiting is part of
    ``serving.request_timeout_s``. An answer with ids from ``n_vocabulary`` on is refused.
    """

    servers: Sequence[Server]
    model_name: str
    serving: ServingSection
    n_at_once: int | None = None
    n_vocabulary: int | None = None
    _session: "aiohttp.ClientSession | None" = field(default=None, init=False)
    _calls: dict[Server, set[asyncio.Timeout]] = field(default_factory=dict, init=False)
    _janitor: "asyncio.Task[None] | None" = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        import aiohttp

        n_at_once = self.n_at_once or self.serving.concurrency * len(self.servers)
        if self._is_open:
            n_at_once = _MANY_CONNECTIONS  # how many servers there will be is not known
            self._janitor = asyncio.create_task(self._end_calls_of_those_gone())
        n_connections = _allow_connections(n_at_once)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=n_connections, keepalive_timeout=_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # sock_read has no limit of its own: a completion sends nothing until it is done
            timeout=aiohttp.ClientTimeout(
                total=self.serving.request_timeout_s, sock_connect=_CONNECT_S
            ),
            headers={"Content-Type": "application/json"},
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._janitor is not None:
            self._janitor.cancel()
        if self._session is not None:
            await self._session.close()

    async def complete(
        self,
        request: Request,
        *,
        temperature: float,
        top_p: float,
        prefer: Server | None = None,
        model_name: str | None = None,
    ) -> Completion:
        """Continue the prompt's ids as they are, up to a stop text or the end of turn.

        ``model_name`` is another model that the same servers hold.

        Raises ContextOverflowError when prompt and ``max_tokens`` exceed the context window, and
        ServerError when ``serving.max_attempts`` tries failed, the request itself is refused, or
        no server came back within ``serving.start_timeout_s``.
        """
        asked = {
            "model": model_name or self.model_name,
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
        n_tries, attempt = self.serving.max_attempts, 0
        while attempt < n_tries:
            if attempt:
                await asyncio.sleep(backoff_s(attempt, request.seed))
            server = self._choose(prefer, failed) or await self._wait_for_server(prefer, failed)
            server.n_in_flight += 1
            try:
                return await self._post(server, body, request)
            except RetryableError as error:
                failed, reason = server, str(error)
                self._pause(server, error.pause_s)
                logger.debug("attempt %d: %s", attempt + 1, reason)
            finally:
                server.n_in_flight -= 1
            if not self._is_lost(server):
                attempt += 1
        raise ServerError(
            f"a completion failed {n_tries} times (serving.max_attempts); the last time: {reason}"
            if n_tries > 1
            else f"a completion failed at its only try (serving.max_attempts=1): {reason}"
        )

    @property
    def _is_open(self) -> bool:
        return isinstance(self.servers, Roster) and self.servers.is_open

    def _doubt(self, server: Server) -> None:
        """Call a server of another node no more until it has been asked whether it is there."""
        if server.node is not None:
            server.is_alive = False

    def _is_lost(self, server: Server) -> bool:
        """Tell whether a server of another node is no longer there, or was not reached."""
        return server.node is not None and not (server.is_alive and server in self.servers)

    async def _end_calls_of_those_gone(self) -> None:
        """End the calls to servers that left: of a host that is down no answer would ever come."""
        while True:
            await asyncio.sleep(_WAIT_POLL_S)
            there = set(self.servers)
            for server in [server for server in self._calls if server not in there]:
                for call in self._calls.pop(server):
                    call.reschedule(0.0)

    def _pause(self, server: Server, pause_s: float | None) -> None:
        """Leave a server alone for as long as it asks, at most the deadline of a completion."""
        if pause_s is not None:
            until = time.monotonic() + min(pause_s, self.serving.request_timeout_s)
            server.paused_until = max(server.paused_until, until)

    def _choose(self, prefer: Server | None, failed: Server | None) -> Server | None:
        """Return the preferred or least loaded server that takes calls.

        ``failed``, and what else runs on its node, only if there is no other.
        """
        now = time.monotonic()
        takers = [s for s in self.servers if s.is_alive and s.paused_until <= now]
        others = [server for server in takers if server is not failed]
        if failed is not None and failed.node is not None:  # the node may be down
            others = [server for server in others if server.node != failed.node] or others
        if prefer in others:
            return prefer
        return min(others or takers, key=lambda server: server.n_in_flight, default=None)

    async def _wait_for_server(self, prefer: Server | None, failed: Server | None) -> Server:
        """Wait for a pause to end, or for a restart."""
        timeout_s = self.serving.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            server = self._choose(prefer, failed)
            if server is not None:
                return server
            alive = [server for server in self.servers if server.is_alive]
            now = time.monotonic()
            if alive:  # all of them paused, none for longer than a completion may take
                pause_s = min(server.paused_until for server in alive) - now
                await asyncio.sleep(min(max(pause_s, 0.0), _WAIT_POLL_S))
                deadline = now + timeout_s
                continue
            failures = [server.failure for server in self.servers if server.failure]
            if len(failures) == len(self.servers) and not self._is_open:
                raise ServerError(f"no server is left; {failures[0]}")
            if now > deadline:
                troubles = [server.trouble for server in self.servers if server.trouble]
                troubles += failures
                raise ServerError(
                    f"every server is dead and none came back within {timeout_s:g} s "
                    f"(serving.start_timeout_s){'; ' if troubles else ''}{'; '.join(troubles)}"
                )
            await asyncio.sleep(_WAIT_POLL_S)

    async def _post(self, server: Server, body: bytes, request: Request) -> Completion:
        import aiohttp

        assert self._session is not None, "the client is used outside its context"
        url = server.base_url
        calls = self._calls.setdefault(server, set())
        call = asyncio.timeout(None)  # until the server leaves
        calls.add(call)
        try:
            async with (
                call,
                self._session.post(
                    url + "/v1/completions",
                    data=body,
                    headers=authorization(server.api_key),
                    allow_redirects=False,  # the key goes to the named server only
                ) as response,
            ):
                payload = await response.read()
        except aiohttp.ConnectionTimeoutError as error:
            self._doubt(server)
            raise RetryableError(f"{url}: no connection within {_CONNECT_S:g} s") from error
        except TimeoutError as error:
            if call.expired():
                raise RetryableError(f"{url}: {server.failure or 'is no longer there'}") from error
            server.n_timeouts += 1
            raise RetryableError(
                f"{url}: no answer within {self.serving.request_timeout_s:g} s "
                "(serving.request_timeout_s: raise it, or lower serving.concurrency, for a server "
                "that is only slow)"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            self._doubt(server)
            raise RetryableError(f"{url}: {type(error).__name__}: {error}") from error
        finally:
            calls.discard(call)
        server.n_timeouts = 0
        if response.status != 200:
            raise refusal(url, response.status, payload, response.headers)
        reply = read_reply(url, payload)
        check_reply(url, reply, max_tokens=request.max_tokens, n_vocabulary=self.n_vocabulary)
        return _completion(reply, request, server)


def _completion(reply: Reply, request: Request, server: Server) -> Completion:
    choice, usage = reply.choice, reply.usage
    n_prompt = usage.prompt_tokens if usage is not None else None
    return Completion(
        text=choice.text,
        n_prompt_tokens=len(request.prompt_ids) if n_prompt is None else n_prompt,
        n_tokens=reply.n_tokens or 0,
        finish_reason="label" if choice.is_ended_by_text else choice.finish_reason,
        token_ids=choice.token_ids,
        server=server,
    )


def served_name(model: ModelRef) -> str:
    """Return the name under which servers of our own serve ``model``.

    All weights below adapters have one name, each adapter has its own, by which vLLM tells cached
    prefixes apart. Of a team it is the name of the base.
    """
    if model.adapter is None:
        return MODEL_NAME
    return f"{MODEL_NAME}-{digest(model.adapter, length=12)}"


def backoff_s(attempt: int, seed: int) -> float:
    """Return the pause before another try: doubled each time, and not the same for all calls."""
    longest: float = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1))
    return longest * rng("backoff", seed, attempt).uniform(0.5, 1.0)


def url_of(host: str, port: int) -> str:
    """Return the base URL of a server at an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def authorization(api_key: str) -> dict[str, str]:
    """Return the header that carries a key; none without a key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


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
