"""HTTP/1.1 as a completion needs it: one POST and its whole answer, over connections that are kept.

It follows no redirect, keeps no cookies, asks for no compression and for no proxy. What does not
connect, breaks off or is no HTTP is a WireError; deadlines, but that of connecting, are the
caller's, who cancels. A call has its connection for itself, which is closed when it is cancelled.

With aiohttp's client, which does all that and much more, a call took 230 to 350 us of CPU where it
takes 105 to 140 (2026-11-28, ``python -m bench.rollouts``, two slow cores, in turn).
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self, cast
from urllib.parse import urlsplit

_MAX_HEAD = 65_536  # bytes of status and headers
_LATER_ADDRESS_S = 0.25  # after which a host's next address is tried as well
_PORTS = {"http": 80, "https": 443}
_NO_BODY = (204, 304)


class WireError(OSError):
    """A call got no HTTP answer."""


class ConnectTimeoutError(WireError):
    """A server did not take the connection in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; names of headers are written ``Retry-After``, whatever the server wrote."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a URL leads, and the head of a request to it up to the length of its body."""

    host: str
    port: int
    is_secure: bool
    head: bytes


class Wire:
    """Posts to any servers, ``n_connections`` calls at a time; a context manager.

    A connection that was not used for ``keep_s`` seconds is not used again, as a server may be
    closing it; one that is not made within ``connect_s`` is given up.
    """

    def __init__(self, n_connections: int, *, keep_s: float, connect_s: float) -> None:
        self._room, self._n_most = asyncio.Semaphore(n_connections), n_connections
        self._keep_s, self._connect_s = keep_s, connect_s
        self._idle: dict[_Place, deque[_Connection]] = {}
        self._made: set[_Connection] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [*self._made]:
            connection.close()

    async def post(self, url: str, headers: tuple[tuple[str, str], ...], body: bytes) -> Answer:
        """Send ``body`` to ``url``; WireError when no answer comes of it."""
        place = _place(url, headers)
        async with self._room:
            connection = self._kept(place) or await self._connect(place)
            try:
                answer = await connection.ask(place.head + b"%d\r\n\r\n" % len(body) + body)
            except BaseException:
                connection.close()
                raise
            if connection.is_open:
                connection.idle_since = time.monotonic()
                self._idle.setdefault(place, deque()).append(connection)
        return answer

    def _kept(self, place: _Place) -> "_Connection | None":
        """Return the connection that was used last, if it may still be used; close old ones."""
        idle = self._idle.get(place)
        oldest = time.monotonic() - self._keep_s
        while idle and (idle[0].idle_since < oldest or not idle[0].is_open):
            idle.popleft().close()
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self, place: _Place) -> "_Connection":
        loop = asyncio.get_running_loop()
        idle = next(filter(None, self._idle.values()), None)
        if idle and len(self._made) >= self._n_most:  # they are kept for other servers
            idle.popleft().close()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._made),
                    place.host,
                    place.port,
                    ssl=self._certificates if place.is_secure else None,
                    happy_eyeballs_delay=_LATER_ADDRESS_S,
                )
        except TimeoutError as error:
            raise ConnectTimeoutError(f"no connection within {self._connect_s:g} s") from error
        return connection

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        return ssl.create_default_context()


@lru_cache(maxsize=1024)
def _place(url: str, headers: tuple[tuple[str, str], ...]) -> _Place:
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")
    port = parts.port or _PORTS[parts.scheme]
    return _Place(parts.hostname or "", port, parts.scheme == "https", head)


class _Connection(asyncio.Protocol):
    """A connection, on which a request is sent once the answer to the one before has come."""

    idle_since = 0.0

    def __init__(self, made: "set[_Connection]") -> None:
        self._made = made
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._head: _Head | None = None
        self._content = bytearray()  # of the chunks that have come

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send a request; the future has its answer, or a WireError."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._made.add(self)

    def data_received(self, data: bytes) -> None:
        """Read on; what nobody asked for ends the connection."""
        self._received += data
        try:
            self._read_on()
        except ValueError as error:
            self._fail(f"the answer is not HTTP: {error}")
        if self._answer is None and self._received:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer: with what has come, where the end of the connection ends it."""
        self._made.discard(self)
        self._transport = None
        if self._answer is None:
            return
        if self._head is not None and self._head.length is None and exc is None:
            self._end(bytes(self._received))
        else:
            self._fail(f"the server closed the connection{f' ({exc})' if exc else ''}")

    def _read_on(self) -> None:
        """Read what has come, and end the answer with all of it; ValueError for what is no HTTP."""
        while self._answer is not None and self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0 and len(self._received) > _MAX_HEAD:
                raise ValueError(f"its head is longer than {_MAX_HEAD} bytes")
            if end < 0:
                return
            head = _head(bytes(self._received[:end]))
            del self._received[: end + 4]
            if not 100 <= head.status < 200:  # "continue" and the like come before the answer
                self._head = head
        if self._answer is None or self._head is None:
            return
        if self._head.is_chunked:
            self._read_chunks()
        elif self._head.length is not None and len(self._received) >= self._head.length:
            body = bytes(self._received[: self._head.length])
            del self._received[: self._head.length]
            self._end(body)

    def _read_chunks(self) -> None:
        while (end := self._received.find(b"\r\n")) >= 0:
            size, start = int(self._received[:end].partition(b";")[0], 16), end + 2
            if size < 0:
                raise ValueError(f"a chunk of {size} bytes")
            if size == 0:  # headers may follow, and an empty line
                last = self._received.find(b"\r\n\r\n", end)
                if last >= 0:
                    del self._received[: last + 4]
                    self._end(bytes(self._content))
                return
            if len(self._received) < start + size + 2:
                return
            self._content += self._received[start : start + size]
            del self._received[: start + size + 2]

    def _end(self, body: bytes) -> None:
        answer, head = self._answer, self._head
        assert answer is not None
        assert head is not None
        self._answer = self._head = None
        self._content.clear()
        if not head.is_kept:
            self.close()
        if not answer.done():
            answer.set_result(Answer(head.status, head.headers, body))

    def _fail(self, reason: str) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(WireError(reason))


@dataclass(frozen=True, slots=True)
class _Head:
    """Status and headers; ``length`` is None where the connection's end is that of the body."""

    status: int
    headers: Mapping[str, str]
    length: int | None
    is_chunked: bool
    is_kept: bool


def _head(text: bytes) -> _Head:
    """Read the head of an answer; ValueError when it is none."""
    first, *lines = text.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"it begins with {first[:60]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"a header is {line[:60]!r}")
        headers[name.strip().title()] = value.strip()
    status = int(rest[:3])
    is_chunked = headers.get("Transfer-Encoding", "").lower().endswith("chunked")
    length = 0 if status in _NO_BODY else None
    if length is None and not is_chunked and "Content-Length" in headers:
        length = int(headers["Content-Length"])
        if length < 0:
            raise ValueError(f"a body of {length} bytes")
    kept = headers.get("Connection", "close" if version == "HTTP/1.0" else "keep-alive").lower()
    has_end = is_chunked or length is not None
    is_kept = has_end and "close" not in kept
    return _Head(status, headers, 0 if is_chunked else length, is_chunked, is_kept)
