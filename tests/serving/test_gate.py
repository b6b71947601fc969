"""What a server's middleware lets pass; tests/e2e/test_weights.py asks a real server."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from optima.serving import command, gate

PASSED: list[MutableMapping[str, Any]] = [{"type": "passed"}]


def answers(scope: dict[str, Any]) -> list[MutableMapping[str, Any]]:
    """Return what is sent in answer to a request."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("nothing of a request is read before its key is seen")

    async def app(_scope: object, _receive: object, send: gate.Send) -> None:
        await send(PASSED[0])

    asyncio.run(gate.Gate(app)(scope, receive, send))
    return sent


def request(path: str, *keys: bytes, kind: str = "http") -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1"), *((b"authorization", key) for key in keys)]
    return {"type": kind, "method": "POST", "path": path, "headers": headers}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "the-key")


@pytest.mark.parametrize("path", ["/collective_rpc", "/v1/completions", "/health/", "//health", ""])
def test_no_path_but_health_is_reached_without_the_key(path: str) -> None:
    wrong = ((), (b"",), (b"Bearer ",), (b"Bearer the-ke",), (b"Bearer the-key ",), (b"the-key",),
             (b"Bearer \xff",), (b"Bearer other", b"Bearer the-key"))  # fmt: skip
    for keys in wrong:
        start, body = answers(request(path, *keys))
        assert start["status"] == 401
        assert b"the-key" not in body["body"]
    assert answers(request(path, b"Bearer the-key")) == PASSED


def test_health_and_the_start_of_the_server_want_no_key() -> None:
    assert answers(request("/health")) == PASSED
    assert answers({"type": "lifespan"}) == PASSED


def test_websocket_without_the_key_is_closed() -> None:
    assert answers(request("/v1/realtime", kind="websocket")) == [
        {"type": "websocket.close", "code": 1008}
    ]
    assert answers(request("/v1/realtime", b"Bearer the-key", kind="websocket")) == PASSED


def test_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(KeyError):
        answers(request("/health"))


def test_servers_are_told_of_the_gate_by_its_name() -> None:
    assert f"{gate.__name__}.{gate.Gate.__qualname__}" == command.GATE
