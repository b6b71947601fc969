"""The client against servers that fail in every way."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from aiohttp import web

from optima.conversation.dialogue import Completion, Request
from optima.errors import ContextOverflowError, ServerError
from optima.processes.devices import free_port
from optima.recipe.schema import ServingSection
from optima.serving import client as client_module
from optima.serving.client import CompletionClient, Server
from optima.serving.fake import Behaviour, FakeServer
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
    assert completion == Completion(" hi", "length", 7, 2, (8, 9), server)
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


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503, 529])
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


WRONG = [
    ({"text": 17}, {}, "choices.0.text: 17: "),
    ({"text": None}, {}, "choices.0.text: null: "),
    ({"token_ids": ["8"]}, {}, 'choices.0.token_ids.0: "8": '),
    ({"token_ids": [-8]}, {}, "choices.0.token_ids.0: -8: "),
    ({"token_ids": [100]}, {}, "choices.0.token_ids: 100: "),
    ({}, {"completion_tokens": "seven"}, 'usage.completion_tokens: "seven": '),
    ({}, {"completion_tokens": -5}, "usage.completion_tokens: -5: "),
    ({}, {"completion_tokens": 51}, "usage.completion_tokens: 51: "),
]


@pytest.mark.parametrize(("choice", "usage", "place_and_value"), WRONG)
async def test_reply_of_a_wrong_type_is_tried_on_another_server_and_named_at_last(
    choice: dict[str, object], usage: dict[str, object], place_and_value: str
) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(
            {
                "choices": [{"text": " a", "finish_reason": "stop", **choice}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, **usage},
            }
        )

    async with serving(handler, 0) as bad, serving(fake(), 1) as good:
        async with CompletionClient([bad, good], "m", SERVING, n_vocabulary=100) as client:
            assert (await ask(client, prefer=bad)).server is good
        async with CompletionClient([bad], "m", SERVING, n_vocabulary=100) as client:
            with pytest.raises(ServerError) as got:
                await ask(client)
    assert f"the last time: {bad.base_url}: " in str(got.value)
    assert place_and_value in str(got.value)
    assert "\n" not in str(got.value)


async def test_tokens_are_counted_here_where_a_server_does_not() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        choice = {"text": " hi", "finish_reason": "stop", "token_ids": [8, 9]}
        return web.json_response({"choices": [choice]})

    async with serving(handler) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            completion = await ask(client, (5, 6, 7))
    assert (completion.n_prompt_tokens, completion.n_tokens) == (3, 2)


def refusing(n_times: int, status: int, retry_after: str) -> tuple[Handler, list[float]]:
    """Return a handler that refuses the first calls and completes the others, and their times."""
    times: list[float] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        times.append(time.monotonic())
        if len(times) <= n_times:
            return web.Response(status=status, headers={"Retry-After": retry_after})
        return await fake()(request)

    return handler, times


@pytest.mark.parametrize("status", [429, 503])
async def test_server_that_asks_for_a_pause_gets_it(status: int) -> None:
    handler, times = refusing(1, status, "1")
    async with serving(handler) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            await ask(client)
            assert 1.0 <= times[1] - times[0] < 3.0


async def test_pause_until_a_date_is_kept_and_no_longer_than_the_deadline_of_a_completion() -> None:
    section = SERVING.model_copy(update={"request_timeout_s": 1.0})
    handler, times = refusing(1, 503, "Tue, 01 Jan 2999 00:00:00 GMT")
    async with serving(handler) as server:
        async with CompletionClient([server], "m", section) as client:
            await ask(client)
            assert 1.0 <= times[1] - times[0] < 3.0


async def test_pause_of_one_server_holds_for_all_calls_and_not_for_the_other_server() -> None:
    handler, times = refusing(1, 429, "30")
    async with serving(handler, 0) as busy, serving(fake(), 1) as good:
        async with CompletionClient([busy, good], "m", SERVING) as client:
            started = time.monotonic()
            assert (await ask(client, prefer=busy)).server is good
            assert {(await ask(client, prefer=busy)).server for _ in range(3)} == {good}
            assert time.monotonic() - started < 5
    assert len(times) == 1


def test_backoff_doubles_to_its_limit_and_differs_between_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "FIRST_BACKOFF_S", 0.5)
    for attempt, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (20, 30.0)):
        pauses = {client_module.backoff_s(attempt, seed) for seed in range(50)}
        assert len(pauses) == 50
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


async def test_redirect_is_not_followed_and_named() -> None:
    n_calls = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal n_calls
        n_calls += 1
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async with serving(handler, key="secret") as server:
        async with CompletionClient([server], "m", SERVING) as client:
            with pytest.raises(ServerError, match="redirects to /elsewhere"):
                await ask(client)
    assert n_calls == 1


async def test_reply_that_breaks_off_is_tried_on_another_server() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b'{"choices": [{"te')
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(handler, 0) as bad, serving(fake(), 1) as good:
        async with CompletionClient([bad, good], "m", SERVING) as client:
            assert (await ask(client, prefer=bad)).server is good


async def test_no_key_sends_no_header() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert "Authorization" not in request.headers
        return await fake()(request)

    async with serving(handler) as server:
        async with CompletionClient([server], "m", SERVING) as client:
            await ask(client)


async def test_refused_connection_is_tried_again_on_another_server() -> None:
    nobody = Server(0, f"http://127.0.0.1:{free_port()}", "")
    async with serving(fake(), 1) as good:
        async with CompletionClient([nobody, good], "m", SERVING) as client:
            assert (await ask(client, prefer=nobody)).server is good


async def test_silent_server_meets_the_deadline() -> None:
    section = SERVING.model_copy(update={"request_timeout_s": 0.2, "max_attempts": 2})
    async with serving(fake(latency_ms=2000)) as server:
        async with CompletionClient([server], "m", section) as client:
            with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
                await ask(client)
        assert server.n_timeouts == 2
        async with CompletionClient([server], "m", SERVING) as client:
            await ask(client)
        assert server.n_timeouts == 0


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


async def test_a_single_try_is_not_counted() -> None:
    section = SERVING.model_copy(update={"max_attempts": 1})
    async with serving(fake(fail_rate=1.0)) as server:
        async with CompletionClient([server], "m", section) as client:
            with pytest.raises(ServerError, match=r"at its only try \(serving.max_attempts=1\)"):
                await ask(client)


async def test_wrong_key_is_explained() -> None:
    async with serving(fake(key="right"), key="wrong") as server:
        async with CompletionClient([server], "m", SERVING) as client:
            with pytest.raises(ServerError, match="the API key is refused"):
                await ask(client)


async def test_waiting_for_dead_servers_has_a_deadline() -> None:
    section = SERVING.model_copy(update={"start_timeout_s": 0.5})
    dead = Server(0, "http://127.0.0.1:9", "", is_alive=False)
    async with CompletionClient([dead], "m", section) as client:
        dead.trouble = "server 0: killed by SIGKILL"
        with pytest.raises(ServerError, match=r"none came back within 0\.5 s.*killed by SIGKILL"):
            await ask(client)
        dead.failure = "gave up"
        started = time.monotonic()
        with pytest.raises(ServerError, match="no server is left; gave up"):
            await ask(client)
        assert time.monotonic() - started < 0.4
