"""Fleets of fake servers, which are real processes behind the real guard and the real client."""

import asyncio
import http.client
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from optima.conversation.dialogue import Completion, Request
from optima.errors import ProcessError, ServerError
from optima.processes.devices import Devices, free_port
from optima.progress import read_serving
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.serving import worker
from optima.serving.client import CompletionClient, Server
from optima.serving.command import uses_endpoints
from optima.serving.fleet import Fleet
from optima.types import ModelRef
from tests.fakes import fake_environment

MODEL = ModelRef(path="org/model")
TWO = Devices("cuda", (0, 1))
CPU = Devices("cpu")


def make_fleet(
    tmp_path: Path, *options: str, devices: Devices = CPU, **serving: object
) -> tuple[Fleet, ServingSection]:
    section = ServingSection.model_validate({"start_timeout_s": 30.0, **serving})
    recipe = Recipe(method="sft", task="arc", model=ModelSection(path=MODEL.path), serving=section)
    environment = fake_environment(tmp_path, server=options)
    fleet = Fleet(MODEL, recipe=recipe, devices=devices, env=environment, log_dir=tmp_path / "logs")
    return fleet, section


def ask_many(fleet: Fleet, serving: ServingSection, n: int) -> list[Completion]:
    async def ask_all() -> list[Completion]:
        async with CompletionClient(fleet.servers, fleet.model_name, serving) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(n)))

    return asyncio.run(ask_all())


async def ask(client: CompletionClient, seed: int) -> Completion:
    request = Request(
        agent=0, prompt_ids=(5, 6, 7), stop=(), stop_token=2, max_tokens=50, seed=seed
    )
    return await client.complete(request, temperature=0.7, top_p=1.0)


def process_of(server: Server) -> psutil.Process:
    port = urlsplit(server.base_url).port
    for connection in psutil.net_connections("tcp"):
        is_listening = connection.status == psutil.CONN_LISTEN
        if is_listening and tuple(connection.laddr)[1:] == (port,):
            assert connection.pid is not None
            return psutil.Process(connection.pid)
    raise AssertionError(f"nobody listens on {port}")


def wait_until(is_true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def status_of(
    server: Server, key: str | None, method: str = "GET", path: str = "/v1/models"
) -> int:
    url = urlsplit(server.base_url)
    assert url.hostname is not None
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    connection.request(method, path, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_every_gpu_gets_a_server_and_all_end_with_the_fleet(tmp_path: Path) -> None:
    fleet, serving = make_fleet(tmp_path, devices=TWO)
    with fleet:
        servers = fleet.servers
        assert [server.index for server in servers] == [0, 1]
        assert all(server.is_alive for server in servers)
        answers = ask_many(fleet, serving, 40)
        assert {answer.server.index for answer in answers} == {0, 1}
        processes = [process_of(server) for server in servers]
    assert not any(process.is_running() for process in processes)
    assert not any(server.is_alive for server in servers)
    names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert names == ["server_0.1.log", "server_1.1.log"]


def test_servers_want_the_key_and_listen_on_the_loopback_interface_only(tmp_path: Path) -> None:
    fleet, _ = make_fleet(tmp_path)
    with fleet:
        (server,) = fleet.servers
        assert status_of(server, None) == 401
        assert status_of(server, "wrong") == 401
        assert status_of(server, server.api_key) == 200
        assert server.api_key not in repr(server)
        process = process_of(server)
        listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert {next(iter(connection.laddr)) for connection in listening} == {"127.0.0.1"}
        assert server.api_key not in " ".join(process.cmdline())


def test_two_fleets_run_side_by_side(tmp_path: Path) -> None:
    first, serving = make_fleet(tmp_path / "a")
    second, _ = make_fleet(tmp_path / "b")
    with first, second:
        assert first.servers[0].base_url != second.servers[0].base_url
        assert first.servers[0].api_key != second.servers[0].api_key
        assert len(ask_many(first, serving, 3)) == len(ask_many(second, serving, 3)) == 3


def test_server_that_exits_while_starting_is_reported_at_once_with_its_log(tmp_path: Path) -> None:
    fleet, _ = make_fleet(tmp_path, "--die-after", "0", start_timeout_s=60.0)
    started = time.monotonic()
    with pytest.raises(ProcessError, match="server 0: exited with status 1") as got:
        fleet.__enter__()
    assert "dies as it was told" in str(got.value)
    assert time.monotonic() - started < 20
    assert fleet.servers == ()


def test_server_that_is_never_ready_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    fleet, _ = make_fleet(tmp_path, "--never-ready", start_timeout_s=2.0)
    with pytest.raises(ProcessError, match="not ready after 2 s"):
        fleet.__enter__()
    below = psutil.Process().children(recursive=True)
    assert not any("fakes.py" in " ".join(process.cmdline()) for process in below)


def test_server_that_serves_another_model_is_an_error_at_once_with_its_log(tmp_path: Path) -> None:
    fleet, _ = make_fleet(tmp_path, "--served-model-name", "other", start_timeout_s=60.0)
    started = time.monotonic()
    with pytest.raises(ProcessError, match="The model `policy` does not exist") as got:
        fleet.__enter__()
    assert "server_0.1.log" in str(got.value)
    assert time.monotonic() - started < 20


def test_server_that_generates_nothing_while_it_starts_is_given_up_with_its_log(
    tmp_path: Path,
) -> None:
    fleet, _ = make_fleet(tmp_path, "--hang-after", "0", start_timeout_s=3.5)
    with pytest.raises(ProcessError, match=r"not ready after 3\.5 s.*no answer within") as got:
        fleet.__enter__()
    assert "server_0.1.log" in str(got.value)


def test_server_that_is_well_and_generates_no_more_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.1)
    monkeypatch.setattr(worker, "HEALTH_TIMEOUT_S", 0.3)
    fleet, serving = make_fleet(
        tmp_path, "--hang-after", "4", request_timeout_s=0.5, max_attempts=40, max_restarts=5
    )
    with fleet:
        process = process_of(fleet.servers[0])
        assert len(ask_many(fleet, serving, 6)) == 6
        assert not process.is_running()
    assert (tmp_path / "logs/server_0.2.log").exists()


def test_server_that_hangs_for_good_ends_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEALTH_S", 0.1)
    monkeypatch.setattr(worker, "HEALTH_TIMEOUT_S", 0.3)
    fleet, serving = make_fleet(
        tmp_path, "--hang-after", "1", request_timeout_s=0.5, max_attempts=40, max_restarts=0
    )
    with fleet:
        with pytest.raises(ServerError, match="max_restarts=0 allows no restart: server 0") as got:
            ask_many(fleet, serving, 1)
        assert "server_0.1.log" in str(got.value)


def test_server_killed_while_generating_is_restarted_and_nothing_is_lost(tmp_path: Path) -> None:
    fleet, serving = make_fleet(tmp_path, "--latency-ms", "400", devices=TWO)
    with fleet:
        victim = fleet.servers[0]
        process = process_of(victim)

        async def run() -> list[Completion]:
            async with CompletionClient(fleet.servers, fleet.model_name, serving) as client:
                asked = [asyncio.create_task(ask(client, seed)) for seed in range(30)]
                await asyncio.sleep(0.2)
                process.kill()
                return await asyncio.gather(*asked)

        answers = asyncio.run(run())
        assert len(answers) == 30
        assert {answer.server.index for answer in answers if answer.server.is_alive} >= {1}
        wait_until(lambda: victim.is_alive and process_of(victim).pid != process.pid)
        assert fleet.servers[0] is victim
        assert {answer.server.index for answer in ask_many(fleet, serving, 20)} == {0, 1}


def test_what_servers_do_is_told_beside_their_logs_while_there_are_any(tmp_path: Path) -> None:
    fleet, _ = make_fleet(tmp_path, devices=TWO, max_restarts=0)
    logs = tmp_path / "logs"

    def trouble() -> list[str | None]:
        (told,) = read_serving(logs)
        return [server.trouble for server in told.servers]

    with fleet:
        wait_until(lambda: [told.n_alive for told in read_serving(logs)] == [2])
        (told,) = read_serving(logs)
        assert (told.model, told.is_asleep) == ("org/model", False)
        assert [server.log for server in told.servers] == ["server_0.1.log", "server_1.1.log"]
        assert [server.url for server in told.servers] == [s.base_url for s in fleet.servers]
        assert told.lines(Path("runs/x/logs/attempt_1")) == [
            "2 of 2 alive, of org/model, logs in runs/x/logs/attempt_1"
        ]
        process_of(fleet.servers[1]).kill()
        wait_until(lambda: trouble()[1] is not None)
        (told,) = read_serving(logs)
        first, second = told.lines(logs)
        assert first.startswith("1 of 2 alive, of org/model")
        assert second.startswith("server 1: serving.max_restarts=0 allows no restart: server 1: ")
        assert second.endswith(f"; see {logs}/server_1.1.log")
    assert read_serving(logs) == ()


def test_client_waits_for_the_restart_of_the_only_server(tmp_path: Path) -> None:
    fleet, serving = make_fleet(tmp_path)
    with fleet:
        process_of(fleet.servers[0]).kill()
        assert len(ask_many(fleet, serving, 5)) == 5


def test_server_that_keeps_dying_is_given_up_and_said_so(tmp_path: Path) -> None:
    fleet, serving = make_fleet(tmp_path, "--die-after", "1", max_restarts=1, max_attempts=5)
    with fleet:
        with pytest.raises(ServerError, match="gave up after 1 restarts"):
            ask_many(fleet, serving, 1)
        assert not fleet.servers[0].is_alive


def test_port_where_a_server_of_others_answers_is_exchanged_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make_fleet(tmp_path / "first")
    with first:
        good = free_port()
        ports = iter([urlsplit(first.servers[0].base_url).port, good])
        monkeypatch.setattr(worker, "free_port", lambda host: next(ports))
        second, serving = make_fleet(tmp_path / "second")
        with second:
            assert second.servers[0].base_url.endswith(f":{good}")
            assert len(ask_many(second, serving, 2)) == 2
        assert status_of(first.servers[0], first.servers[0].api_key) == 200


def test_taken_port_is_exchanged_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    good = free_port()
    ports = iter([taken.getsockname()[1], good])
    monkeypatch.setattr(worker, "free_port", lambda host: next(ports))
    fleet, _ = make_fleet(tmp_path)
    with taken, fleet:
        assert fleet.servers[0].base_url.endswith(f":{good}")


def test_endpoints_serve_a_start_model_that_the_recipe_names_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/start").mkdir(parents=True)
    (tmp_path / "models/link").symlink_to("start")
    monkeypatch.chdir(tmp_path)
    serving = ServingSection(endpoints=("http://127.0.0.1:1",))
    model = ModelSection(path="models/link")
    recipe = Recipe(method="sft", task="arc", model=model, serving=serving)
    assert uses_endpoints(ModelRef(path=str(tmp_path / "models/start")), recipe)
    assert not uses_endpoints(ModelRef(path=str(tmp_path / "models")), recipe)
    adapter = ModelRef(path=str(tmp_path / "models/start"), adapter="a")
    assert not uses_endpoints(adapter, recipe)


def test_servers_listen_on_the_ports_that_the_recipe_names(tmp_path: Path) -> None:
    port = free_port()
    fleet, _ = make_fleet(tmp_path, port=port)
    with fleet:
        assert fleet.servers[0].base_url.endswith(f":{port}")
        second, _ = make_fleet(tmp_path / "second", port=port)
        with pytest.raises(
            ProcessError, match=f"serving.port: {port} of server 0 is not available"
        ):
            second.__enter__()
        assert status_of(fleet.servers[0], fleet.servers[0].api_key) == 200


def test_endpoints_are_used_for_the_start_model_and_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = make_fleet(tmp_path)
    with own:
        server = own.servers[0]
        monkeypatch.setenv("OPTIMA_API_KEY", server.api_key)
        other, serving = make_fleet(tmp_path, endpoints=(f"{server.base_url}/v1/",))
        with other:
            assert other.model_name == "policy"
            assert len(ask_many(other, serving, 3)) == 3
        assert status_of(server, server.api_key) == 200
        monkeypatch.setenv("OPTIMA_API_KEY", "wrong")
        with pytest.raises(ServerError, match="401"):
            other.__enter__()
