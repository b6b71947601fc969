"""HTTP over connections that are kept, against servers that send every kind of answer."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from optima.processes.devices import free_port
from optima.serving.wire import Answer, ConnectTimeoutError, Wire, WireError

BODY = b'{"choices": []}'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + BODY
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;name=value\r\n{"cho\r\nA\r\nices": []}\r\n0\r\nTrailer: x\r\n\r\n'
)
KEY = (("Authorization", "Bearer key"),)


class Scripted:
    """A server that answers each request with the next of its answers, in pieces, and may close."""

    def __init__(self, answers: Sequence[bytes], *, size: int, is_closing: bool) -> None:
        self.answers, self.size, self.is_closing = list(answers), size, is_closing
        self.requests: list[bytes] = []
        self.n_connections = self.n_open = self.n_most = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        self.n_open += 1
        self.n_most = max(self.n_most, self.n_open)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                n_bytes = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(n_bytes))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for start in range(0, len(answer), self.size):
                    writer.write(answer[start : start + self.size])
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.is_closing:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.n_open -= 1
            writer.close()


@asynccontextmanager
async def serving(
    *answers: bytes, size: int = 65_536, is_closing: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Scripted]:
    scripted = Scripted(answers, size=size, is_closing=is_closing)
    async with await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        scripted.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/v1"
        yield scripted


def wire(n_connections: int = 9, *, keep_s: float = 3.0, connect_s: float = 5.0) -> Wire:
    return Wire(n_connections, keep_s=keep_s, connect_s=connect_s)


async def post(through: Wire, to: Scripted, body: bytes = b"asked") -> Answer:
    async with asyncio.timeout(5):
        return await through.post(to.url, KEY, body)


async def test_request_names_host_headers_and_length() -> None:
    async with serving(PLAIN) as server:
        with wire() as through:
            answer = await post(through, server, "é".encode())
    assert answer == Answer(200, {"Content-Length": "15"}, BODY)
    host = server.url.removeprefix("http://").removesuffix("/v1")
    assert server.requests == [
        f"POST /v1 HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer key\r\n"
        "Content-Length: 2\r\n\r\né".encode()
    ]


@pytest.mark.parametrize("size", [1, 7, 65_536])
@pytest.mark.parametrize(
    ("sent", "is_closing"),
    [
        (PLAIN, False),
        (CHUNKED, False),
        (CHUNKED.replace(b"Trailer: x\r\n", b""), False),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + PLAIN,
            False,
        ),
        (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY, True),
        (PLAIN.replace(b"200 OK", b"200"), False),
        (PLAIN.replace(b"Content-Length", b"content-length"), False),
    ],
    ids=["length", "chunks", "no trailer", "continue", "1.0", "close", "no reason", "small"],
)
async def test_answer_is_read_however_it_is_sent_and_cut(
    sent: bytes, size: int, is_closing: bool
) -> None:
    async with serving(sent, size=size, is_closing=is_closing) as server:
        with wire() as through:
            for _ in range(3):
                answer = await post(through, server)
                assert (answer.status, answer.body) == (200, BODY)
    assert server.n_connections == (3 if is_closing else 1)


async def test_status_and_headers_are_read_whatever_the_case_of_their_names() -> None:
    refused = b"HTTP/1.1 429 Too Many\r\nretry-AFTER:  3 \r\nContent-Length: 0\r\n\r\n"
    async with serving(refused, b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n") as server:
        with wire() as through:
            answer = await post(through, server)
            assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
            assert await post(through, server) == Answer(204, {"Content-Length": "9"}, b"")
    assert server.n_connections == 1


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "the server closed the connection"),
        (PLAIN[:20], "the server closed the connection"),
        (PLAIN[:-1], "the server closed the connection"),
        (CHUNKED[:-20], "the server closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP: it begins with 'SSH-2.0-OpenSSH'"),
        (b"HTTP/1.1 OK\r\n\r\n", "not HTTP: invalid literal"),
        (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "not HTTP: a header is 'nothing'"),
        (PLAIN.replace(b"15", b"many"), "not HTTP: invalid literal"),
        (PLAIN.replace(b"15", b"-15"), "not HTTP: a body of -15 bytes"),
        (CHUNKED.replace(b"\nA\r", b"\n-A\r"), "not HTTP: a chunk of -10 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "not HTTP: its head is longer than 65536"),
    ],
)
async def test_what_is_no_whole_answer_is_one_error_and_its_connection_is_not_used_again(
    sent: bytes, reason: str
) -> None:
    async with serving(sent, PLAIN, is_closing=True) as server:
        with wire() as through:
            with pytest.raises(WireError, match=reason):
                await post(through, server)
            assert (await post(through, server)).body == BODY
    assert server.n_connections == 2


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    async with serving(PLAIN + PLAIN, PLAIN) as server:
        with wire() as through:
            for _ in range(2):
                assert (await post(through, server)).body == BODY
    assert server.n_connections == 2


async def test_connection_that_the_server_closed_meanwhile_or_that_is_old_is_not_used() -> None:
    async with serving(PLAIN, is_closing=True) as server:
        with wire() as through:
            for _ in range(3):
                assert (await post(through, server)).body == BODY
                await asyncio.sleep(0.05)
    assert server.n_connections == 3
    async with serving(PLAIN) as server:
        with wire(keep_s=0.1) as through:
            for pause_s in (0.0, 0.2, 0.0):
                await asyncio.sleep(pause_s)
                await post(through, server)
            await asyncio.sleep(0.05)
            assert (server.n_connections, server.n_open) == (2, 1)
        await asyncio.sleep(0.05)
        assert server.n_open == 0


async def test_calls_beyond_the_limit_wait_and_share_its_connections() -> None:
    async with serving(PLAIN, size=5) as server:
        with wire(3) as through:
            answers = await asyncio.gather(*(post(through, server) for _ in range(20)))
    assert [answer.body for answer in answers] == [BODY] * 20
    assert (server.n_connections, server.n_most) == (3, 3)


async def test_connections_kept_for_one_server_make_room_for_those_to_another() -> None:
    async with serving(PLAIN) as first, serving(PLAIN) as second:
        with wire(2) as through:
            await asyncio.gather(*(post(through, first) for _ in range(2)))
            await asyncio.gather(*(post(through, second) for _ in range(2)))
            await asyncio.sleep(0.05)
            assert (first.n_open, second.n_open) == (0, 2)


async def test_call_that_is_given_up_closes_its_connection_and_makes_room() -> None:
    async with serving(PLAIN[:-1], PLAIN) as server:
        with wire(1) as through:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await through.post(server.url, KEY, b"")
            assert (await post(through, server)).body == BODY
    assert (server.n_connections, server.n_most) == (2, 1)


async def test_connection_that_is_refused_or_not_taken_is_an_error() -> None:
    with wire(connect_s=0.1) as through:
        with pytest.raises(ConnectionRefusedError):
            await through.post(f"http://127.0.0.1:{free_port()}/v1", KEY, b"")
        async with serving(PLAIN) as server:  # which speaks first in TLS
            with pytest.raises(ConnectTimeoutError, match=r"no connection within 0\.1 s"):
                await through.post(server.url.replace("http:", "https:"), KEY, b"")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a certificate for 127.0.0.1 that signs itself; its key lies beside it."""
    path = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(path), "-keyout",
         str(path.with_name("key.pem"))],
        check=True, stderr=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
async def test_server_with_a_certificate_is_reached_where_it_is_known(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, certificate.with_name("key.pem"))
    async with serving(PLAIN, tls=tls) as server:
        with wire() as through, pytest.raises(ssl.SSLCertVerificationError):
            await post(through, server)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with wire() as through:
            for _ in range(2):
                assert (await post(through, server)).body == BODY
