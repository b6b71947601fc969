"""The client against servers that fail in every way."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from aiohttp import web

from optima.conversation.dialogue import Request
from optima.errors import ContextOverflowError, ServerError
from optima.recipe.schema import ServingSection
from optima.serving import client as client_module
from optima.serving.client import Completion, CompletionClient, Server
from optima.serving.fake import Behaviour, FakeServer
from optima.serving.worker import free_port
from tests.tokenizers import codec, encoder, tiny_tokenizer

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
    client: CompletionClient,
    prompt_ids: tuple[int, ...] = (5, 6, 7),
    prefer: Server | None = None,
    temperature: float = 0.7,
    stop_token: int = 2,
) -> Completion:
    request = Request(
        agent=0, prompt_ids=prompt_ids, stop=("Bob:", "\nAlice:"), stop_token=stop_token,
        max_tokens=50, seed=2**63 - 1,
    )  # fmt: skip
    return await client.complete(request, temperature=temperature, top_p=0.9, prefer=prefer)


async def test_request_carries_the_exact_prompt_and_the_sampling() -> None:
    seen: list[dict[str, object]] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(orjson.loads(await request.read()))
        assert request.headers["Authorization"] == "Bearer secret"
        return web.json_response(
            {
                "choices": [{"text": " hi", "finish_reason": "length", "token_ids": [8, 9]}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2},
            }
        )

    async with serving(handler, key="secret") as server:
        async with CompletionClient([server], "m", SERVING) as client:
            completion = await ask(client, (1, 20, 5))
            await ask(client, temperature=0.0)
    assert completion == Completion(" hi", 7, 2, "length", (8, 9), server)
    assert seen[0] == {
        "model": "m",
        "prompt": [1, 20, 5],
        "max_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 2**63 - 1,
        "stop": ["Bob:", "\nAlice:"],
        "stop_token_ids": [2],
        "return_token_ids": True,
    }
    assert "seed" not in seen[1]  # greedy decoding draws nothing
    assert server.n_in_flight == 0


@pytest.mark.parametrize(
    ("choice", "reason", "ids"),
    [
        ({"finish_reason": "stop", "stop_reason": None, "token_ids": [4, 2]}, "stop", (4, 2)),
        ({"finish_reason": "stop", "stop_reason": 2, "token_ids": [4, 2]}, "stop", (4, 2)),
        ({"finish_reason": "stop", "stop_reason": "Bob:", "token_ids": [4]}, "label", (4,)),
        ({"finish_reason": "length", "stop_reason": None, "token_ids": None}, "length", None),
        ({"finish_reason": "stop"}, "stop", None),  # a server that knows neither
    ],
)
async def test_what_ended_a_completion_and_its_ids_are_read_from_the_answer(
    choice: dict[str, object], reason: str, ids: tuple[int, ...] | None
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return web.json_response({"choices": [{"text": " a", **choice}], "usage": usage})

    async with serving(handler) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            completion = await ask(client)
    assert (completion.finish_reason, completion.token_ids) == (reason, ids)


async def test_server_with_a_tokenizer_gives_back_the_ids_of_what_it_said() -> None:
    prompt, end = encoder().encode("<|im_start|>assistant\nAlice:"), codec("chatml").end_token
    server_with_ids = FakeServer(["m"], "", Behaviour(), tiny_tokenizer())
    async with serving(server_with_ids.handle) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            completion = await ask(client, prompt, stop_token=end)
    assert completion.token_ids == (*encoder().encode(completion.text), end)
    assert completion.n_tokens == len(completion.token_ids)
    assert completion.n_prompt_tokens == len(prompt)


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
                await ask(client, (10,) * 40)  # "10 10 10 ..." has 119 characters


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
