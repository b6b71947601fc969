"""The client against servers that fail in every way."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from aiohttp import web

from optima.errors import ContextOverflowError, ServerError
from optima.recipe.schema import ServingSection
from optima.serving import client as client_module
from optima.serving.client import Completion, CompletionClient, Server
from optima.serving.fake import Behaviour, FakeServer
from optima.serving.worker import free_port

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
SERVING = ServingSection(start_timeout_s=2.0, max_attempts=3)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_BACKOFF_S", 0.01)


@asynccontextmanager
async def serving(handler: Handler, index: int = 0, key: str = "") -> AsyncIterator[Server]:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield Server(index, f"http://127.0.0.1:{port}", key)
    finally:
        await runner.cleanup()


def fake(key: str = "", **behaviour: object) -> Handler:
    return FakeServer(["m"], key, Behaviour(**behaviour)).handle  # type: ignore[arg-type]


async def ask(
    client: CompletionClient, prompt: str = "Is it Paris?", prefer: Server | None = None
) -> Completion:
    return await client.complete(
        prompt, max_tokens=50, temperature=0.7, top_p=0.9, seed=2**63 - 1, prefer=prefer
    )


async def test_request_carries_the_exact_prompt_and_the_sampling() -> None:
    seen: list[dict[str, object]] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(orjson.loads(await request.read()))
        assert request.headers["Authorization"] == "Bearer secret"
        return web.json_response(
            {
                "choices": [{"text": " hi", "finish_reason": "length"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2},
            }
        )

    async with serving(handler, key="secret") as server:
        async with CompletionClient([server], "m", SERVING) as client:
            completion = await ask(client, "<s>Alice:")
    assert completion == Completion(" hi", 7, 2, "length", server)
    assert seen == [
        {
            "model": "m",
            "prompt": "<s>Alice:",
            "max_tokens": 50,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 2**63 - 1,
            "add_special_tokens": False,
        }
    ]
    assert server.n_in_flight == 0


async def test_preferred_server_is_kept_while_it_lives() -> None:
    async with serving(fake(), 0) as first, serving(fake(), 1) as second:
        async with CompletionClient([first, second], "m", SERVING) as client:
            answers = [await ask(client, prefer=second) for _ in range(5)]
            assert {answer.server for answer in answers} == {second}
            second.is_alive = False
            assert (await ask(client, prefer=second)).server is first


async def test_least_loaded_server_is_chosen() -> None:
    async with serving(fake(), 0) as first, serving(fake(), 1) as second:
        first.n_in_flight = 3
        async with CompletionClient([first, second], "m", SERVING) as client:
            assert (await ask(client)).server is second


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_failed_call_is_tried_on_another_server(status: int) -> None:
    async def failing(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": {"message": "busy"}}, status=status)

    async with serving(failing, 0) as bad, serving(fake(), 1) as good:
        async with CompletionClient([bad, good], "m", SERVING) as client:
            assert (await ask(client, prefer=bad)).server is good


@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"finish_reason": "abort"}]}']
)
async def test_answer_that_is_no_completion_is_tried_again(body: bytes) -> None:
    n_calls = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal n_calls
        n_calls += 1
        return web.Response(body=body)

    async with serving(handler) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            with pytest.raises(ServerError, match=r"failed 3 times \(serving.max_attempts\)"):
                await ask(client)
    assert n_calls == 3


async def test_refused_connection_is_tried_again_on_another_server() -> None:
    nobody = Server(0, f"http://127.0.0.1:{free_port()}", "")
    async with serving(fake(), 1) as good:
        async with CompletionClient([nobody, good], "m", SERVING) as client:
            assert (await ask(client, prefer=nobody)).server is good


async def test_silent_server_meets_the_deadline() -> None:
    section = SERVING.model_copy(update={"request_timeout_s": 0.2, "max_attempts": 2})
    async with serving(fake(latency_s=2)) as server:
        async with CompletionClient([server], "m", section) as client:
            with pytest.raises(ServerError, match="no answer within"):
                await ask(client)


async def test_prompt_that_does_not_fit_is_told_apart_and_not_tried_again() -> None:
    async with serving(fake(overflow_chars=100)) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            with pytest.raises(ContextOverflowError, match="maximum context length is 25"):
                await ask(client, "x" * 101)


async def test_refused_request_rises_at_once_with_the_servers_words() -> None:
    n_calls = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal n_calls
        n_calls += 1
        return web.json_response({"error": {"message": "top_p is odd"}}, status=400)

    async with serving(handler) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            with pytest.raises(ServerError, match="HTTP 400: top_p is odd"):
                await ask(client)
    assert n_calls == 1


async def test_wrong_key_is_explained() -> None:
    async with serving(fake(key="right"), key="wrong") as server:
        async with CompletionClient([server], "m", SERVING) as client:
            with pytest.raises(ServerError, match="the API key is refused"):
                await ask(client)


async def test_waiting_for_dead_servers_has_a_deadline() -> None:
    section = SERVING.model_copy(update={"start_timeout_s": 0.5})
    dead = Server(0, "http://127.0.0.1:9", "", is_alive=False)
    async with CompletionClient([dead], "m", section) as client:
        with pytest.raises(ServerError, match="every server is dead"):
            await ask(client)
        dead.failure = "gave up"
        started = time.monotonic()
        with pytest.raises(ServerError, match="no server is left; gave up"):
            await ask(client)
        assert time.monotonic() - started < 0.4
