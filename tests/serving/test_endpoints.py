"""Servers of others: what they lack, what they refuse, and what is said of it before a run."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from optima.errors import ServerError, UsageError
from optima.serving import client, worker
from optima.serving.command import endpoint_key
from optima.serving.fleet import Fleet
from tests.serving.test_fleet import MODEL, ask_many, make_fleet, wait_until

Route = Callable[[dict[str, Any]], tuple[int, Any]]


def completions(**changes: Any) -> Route:
    """Return a route that answers as vLLM does, with ``changes`` of its choice."""

    def answer(asked: dict[str, Any]) -> tuple[int, Any]:
        if asked["model"] != MODEL.path:
            return 404, {"error": {"message": f"The model `{asked['model']}` does not exist."}}
        choice = {"text": " hi", "finish_reason": "stop", "token_ids": [8], **changes}
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": 1}
        return 200, {"choices": [choice], "usage": usage}

    return answer


def models(*cards: dict[str, Any] | str) -> Route:
    listed = [{"id": card} if isinstance(card, str) else card for card in cards]
    return lambda _: (200, {"data": listed})


class Endpoint:
    """A server of others: ``routes`` answer, everything else has none."""

    def __init__(self, **routes: Route) -> None:
        self.routes: dict[str, Route] = {
            "/v1/models": models(MODEL.path),
            "/v1/completions": completions(),
            **{f"/v1/{name}" if name != "health" else "/health": to for name, to in routes.items()},
        }
        self.requests: list[str] = []
        self.status_of_no_route = 404
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                endpoint.requests.append(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                route = endpoint.routes.get(self.path)
                status, answer = endpoint.status_of_no_route, b"Not Found"
                if route is not None:
                    status, answer = route(json.loads(body or b"{}"))
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Serve = Callable[..., Endpoint]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(client, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.delenv("OPTIMA_API_KEY", raising=False)
    started: list[Endpoint] = []

    def start(**routes: Route) -> Endpoint:
        started.append(Endpoint(**routes))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()


def fleet_of(tmp_path: Path, *endpoints: Endpoint, **serving: Any) -> Fleet:
    return make_fleet(tmp_path, endpoints=tuple(one.url for one in endpoints), **serving)[0]


def refusal_of(tmp_path: Path, *endpoints: Endpoint, **serving: Any) -> str:
    with pytest.raises(ServerError) as got:
        fleet_of(tmp_path, *endpoints, **serving).__enter__()
    assert str(got.value).startswith(f"serving.endpoints: {endpoints[-1].url}")
    assert "\n" not in str(got.value)
    return str(got.value)


@pytest.mark.parametrize("status", [404, 405, 501, 403])
def test_endpoint_without_a_health_route_stays_alive(
    status: int, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.05)
    endpoint = serve()
    endpoint.status_of_no_route = status
    with fleet_of(tmp_path, endpoint) as fleet:
        wait_until(lambda: endpoint.requests.count("/v1/models") > 2 + 2 * worker.MAX_UNHEALTHY)
        assert fleet.servers[0].is_alive


def test_endpoint_that_only_completes_stays_alive(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.05)
    endpoint = serve()
    del endpoint.routes["/v1/models"]
    with fleet_of(tmp_path, endpoint) as fleet:
        assert fleet.model_name == MODEL.path
        wait_until(lambda: endpoint.requests.count("/v1/models") > 2 + 2 * worker.MAX_UNHEALTHY)
        assert fleet.servers[0].is_alive
        endpoint.stop()
        wait_until(lambda: not fleet.servers[0].is_alive)
        assert fleet.servers[0].trouble == f"{endpoint.url} does not answer"


def test_endpoint_whose_health_route_fails_is_not_asked_until_it_is_back(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.05)
    status = 200
    endpoint = serve(health=lambda _: (status, b""))
    with fleet_of(tmp_path, endpoint) as fleet:
        status = 503
        wait_until(lambda: not fleet.servers[0].is_alive)
        status = 200
        wait_until(lambda: fleet.servers[0].is_alive)


def test_endpoint_that_is_well_and_completes_nothing_is_not_asked_until_it_does(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.05)
    monkeypatch.setattr(worker, "HEALTH_TIMEOUT_S", 0.2)
    is_deaf, answer = threading.Event(), completions()

    def complete(asked: dict[str, Any]) -> tuple[int, Any]:
        while is_deaf.is_set():
            time.sleep(0.05)
        return answer(asked)

    endpoint = serve(health=lambda _: (200, b""), completions=complete)
    fleet, serving = make_fleet(
        tmp_path, endpoints=(endpoint.url,), request_timeout_s=0.3, max_attempts=1
    )
    with fleet:
        is_deaf.set()
        with pytest.raises(ServerError, match=r"no answer within 0\.3 s"):
            ask_many(fleet, serving, 1)
        wait_until(lambda: not fleet.servers[0].is_alive)
        is_deaf.clear()
        wait_until(lambda: fleet.servers[0].is_alive)
        assert len(ask_many(fleet, serving, 2)) == 2


def test_endpoint_that_is_gone_for_good_is_waited_for_once(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.05)
    endpoint = serve()
    fleet, serving = make_fleet(tmp_path, endpoints=(endpoint.url,), start_timeout_s=1.5)
    with fleet:
        endpoint.stop()
        wait_until(lambda: fleet.servers[0].failure is not None)
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer for 1\.5 s.*run again to go on"):
            ask_many(fleet, serving, 3)
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_is_told_at_once_with_its_variable(
    status: int, tmp_path: Path, serve: Serve
) -> None:
    refused: Route = lambda _: (status, {"error": "Unauthorized"})  # noqa: E731
    endpoint = serve(models=refused, completions=refused)
    assert "read from OPTIMA_API_KEY" in refusal_of(tmp_path, endpoint)
    assert len(endpoint.requests) == 1


def test_key_with_characters_that_cannot_be_sent_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPTIMA_API_KEY", "sk-1\n")
    assert endpoint_key() == "sk-1"
    for key in ("sk\n1", "schlüssel"):
        monkeypatch.setenv("OPTIMA_API_KEY", key)
        with pytest.raises(UsageError, match="OPTIMA_API_KEY"):
            endpoint_key()


@pytest.mark.parametrize(
    ("cards", "name"),
    [
        (["x", MODEL.path], MODEL.path),
        (["x", {"id": "policy", "root": MODEL.path}], "policy"),
        (["x", "Model"], "Model"),
        (["policy"], "policy"),
        ([{"id": "a", "root": "/m"}, {"id": "b", "root": "/m"}], "a"),
        ([{"id": "a", "root": "/m"}, {"id": "lora", "root": "/l", "parent": "a"}], "a"),
    ],
)
def test_endpoint_is_asked_for_the_start_model_by_the_name_it_has_there(
    cards: list[Any], name: str, tmp_path: Path, serve: Serve
) -> None:
    asked: list[str] = []

    def complete(request: dict[str, Any]) -> tuple[int, Any]:
        asked.append(request["model"])
        return completions()({**request, "model": MODEL.path})

    with fleet_of(tmp_path, serve(models=models(*cards), completions=complete)) as fleet:
        assert fleet.model_name == name
    assert set(asked) == {name}


def test_endpoint_of_several_other_models_is_refused_with_their_names(
    tmp_path: Path, serve: Serve
) -> None:
    message = refusal_of(tmp_path, serve(models=models("org/one", "org/two")))
    assert f"serves org/one, org/two, and none is named {MODEL.path}" in message


def test_endpoints_that_name_the_model_differently_are_refused(
    tmp_path: Path, serve: Serve
) -> None:
    first, second = serve(), serve(models=models("policy"))
    message = refusal_of(tmp_path, first, second)
    assert f"serves policy, where {first.url} serves {MODEL.path}" in message


def test_endpoint_that_does_not_know_the_model_it_lists_is_refused(
    tmp_path: Path, serve: Serve
) -> None:
    message = refusal_of(tmp_path, serve(models=models("policy")))
    assert "HTTP 404: The model `policy` does not exist." in message


def test_endpoint_that_takes_no_token_ids_is_refused_before_the_run(
    tmp_path: Path, serve: Serve
) -> None:
    def only_text(asked: dict[str, Any]) -> tuple[int, Any]:
        if isinstance(asked["prompt"], str):
            return completions()(asked)
        return 422, b"Failed to deserialize: prompt: invalid type: sequence, expected a string"

    message = refusal_of(tmp_path, serve(completions=only_text))
    assert "takes a text as prompt but not token ids" in message


@pytest.mark.parametrize("changes", [{"token_ids": None}, {"token_ids": [8]}])
def test_endpoint_that_gives_no_token_ids_is_used_with_a_word_about_it(
    changes: dict[str, Any], tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    endpoint = serve(completions=completions(**changes))
    fleet, serving = make_fleet(tmp_path, endpoints=(endpoint.url,))
    with fleet:
        assert ask_many(fleet, serving, 1)[0].n_tokens == 1
    is_said = "gives no token ids" in caplog.text
    assert is_said == (changes["token_ids"] is None)
    assert ("rows/retokenised" in caplog.text) == is_said


def test_endpoint_that_reads_a_prompt_of_ids_as_something_else_is_named(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def as_text(asked: dict[str, Any]) -> tuple[int, Any]:
        status, answer = completions()(asked)
        answer["usage"]["prompt_tokens"] = len(str(asked["prompt"]))
        return status, answer

    caplog.set_level(logging.WARNING)
    with fleet_of(tmp_path, serve(completions=as_text)):
        assert "counts 9 tokens in a prompt of 3 ids" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (200, b"<html><title>Welcome</title>"),
            "did not answer with JSON: an HTML page, 'Welcome'",
        ),
        ((200, {"choices": [{"text": None}]}), "choices.0.text: null: "),
        ((200, {"choices": []}), "choices: []: "),
        (
            (200, {"choices": [{"text": "a", "finish_reason": "stop"}]}),
            "usage.completion_tokens: is missing",
        ),
        ((302, b""), "redirects to"),
        ((413, b""), "for a prompt of three tokens"),
    ],
)
def test_endpoint_that_does_not_complete_is_refused_with_its_answer(
    answer: tuple[int, Any], message: str, tmp_path: Path, serve: Serve
) -> None:
    assert message in refusal_of(tmp_path, serve(completions=lambda _: answer), max_attempts=2)


def test_endpoint_that_is_busy_at_first_is_asked_again(tmp_path: Path, serve: Serve) -> None:
    n_calls, answer = 0, completions()

    def busy(asked: dict[str, Any]) -> tuple[int, Any]:
        nonlocal n_calls
        n_calls += 1
        return (503, b"loading") if n_calls < 3 else answer(asked)

    with fleet_of(tmp_path, serve(completions=busy)) as fleet:
        assert fleet.servers[0].is_alive
    assert n_calls == 3


def test_list_of_models_of_another_type_is_named(tmp_path: Path, serve: Serve) -> None:
    listed: Any
    for listed in ({"data": [{"id": 17}]}, {"data": "x"}, [], b"<html>"):
        endpoint = serve()
        endpoint.routes["/v1/models"] = lambda _, listed=listed: (200, listed)  # type: ignore[misc]
        assert "/v1/models: lists no models" in refusal_of(tmp_path, endpoint)
