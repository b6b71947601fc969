"""Nodes of a run: agents that are real processes, each with a fake server behind the real guard."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from optima.conversation.dialogue import Completion
from optima.errors import RunBusyError, UsageError
from optima.processes.devices import Devices
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.serving.board import Announced, Board, Wanted, node_address, read_as
from optima.serving.client import CompletionClient
from optima.serving.fleet import Fleet
from optima.serving.nodes import Nodes
from optima.serving.probe import check_served
from optima.types import ModelRef
from tests.fakes import fake_environment
from tests.serving.test_fleet import ask, ask_many, process_of, wait_until
from tests.serving.test_weights import model

OPTIMA = (sys.executable, "-c", "import sys; from optima.cli.main import main; sys.exit(main())")


@dataclass
class Node:
    """An agent that runs, and the prefix by which its servers are known."""

    process: psutil.Popen
    prefix: Path
    log: Path

    def servers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if str(self.prefix) in line and "vllm.entrypoints.openai.api_server" in line:
                found.append(process)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def wait(self, timeout_s: float = 30.0) -> int:
        return int(self.process.wait(timeout_s))

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


class Site:
    """A folder that a run and its nodes share, and the nodes that were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = Board(folder / "shared")
        self.nodes: list[Node] = []

    def start(
        self,
        *options: str,
        address: str = "127.0.0.1",
        before: tuple[str, ...] = (),
        train_fails: int = 0,
        train_seconds: float = 0.0,
    ) -> Node:
        place = self.folder / f"node{len(self.nodes)}"
        environment = fake_environment(
            place, server=options, train_fails=train_fails, train_seconds=train_seconds
        )
        log = place / "agent.log"
        words = ["serve-node", "--shared", str(self.board.folder), "--address", address]
        words += ["--wait-s", "60", "--vllm-env", str(environment.prefix)]
        words += ["--train-env", str(environment.prefix)]
        with log.open("wb") as file:
            process = psutil.Popen([*before, *OPTIMA, *words], stdout=file, stderr=file)
        self.nodes.append(Node(process, environment.prefix, log))
        return self.nodes[-1]

    def recipe(self, **serving: object) -> Recipe:
        given = {"device": "cpu", "start_timeout_s": 60.0, "node_timeout_s": 4.0, **serving}
        section = ServingSection.model_validate({**given, "nodes": str(self.board.folder)})
        place = ModelSection(path=str(self.folder / "base" / "model"))
        return Recipe(method="sft", task="arc", model=place, serving=section)

    @contextlib.contextmanager
    def fleet(self, ref: ModelRef, *options: str, **serving: object) -> Iterator[Fleet]:
        recipe = self.recipe(**serving)
        environment = fake_environment(self.folder / "own", server=options)
        with (
            Nodes(self.board, recipe, self.folder / "run") as nodes,
            Fleet(
                ref, recipe=recipe, devices=Devices("cpu"), env=environment,
                log_dir=self.folder / "logs", nodes=nodes,
            ) as fleet,
        ):  # fmt: skip
            yield fleet


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for node in made.nodes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (*node.process.children(recursive=True), node.process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            node.process.wait(10)


@pytest.fixture
def first(site: Site) -> ModelRef:
    return model(site.folder, "first")


def names_of(answers: list[Completion]) -> set[str | None]:
    return {answer.server.node for answer in answers}


def test_nodes_join_serve_every_model_and_end_with_the_run(site: Site, first: ModelRef) -> None:
    second = model(site.folder, "second")
    early = site.start()  # before there is a run
    with site.fleet(first) as fleet:
        assert [server.node for server in fleet.servers][:1] == [None]
        late = site.start()
        wait_until(lambda: len(fleet.roster) == 3)
        assert len({server.node for server in fleet.servers}) == 3
        assert len(names_of(ask_many(fleet, fleet.recipe.serving, 40))) == 3
        processes = {process_of(server).pid for server in fleet.servers}
        assert fleet.take(second)
        assert [server.node for server in fleet.servers] == [None]  # none serves it yet
        wait_until(lambda: len(fleet.roster) == 3)
        for server in fleet.servers:
            check_served(server, second, 10.0)
        assert {process_of(server).pid for server in fleet.servers} == processes  # new weights only
    assert (early.wait(), late.wait()) == (0, 0)
    assert "is over" in early.said()
    assert early.servers() == late.servers() == []
    assert list(site.board.announced.iterdir()) == []


def test_node_that_is_killed_costs_nothing_but_the_turns_that_ran_on_it(
    site: Site, first: ModelRef
) -> None:
    victim = site.start("--latency-ms", "600")
    other = site.start("--latency-ms", "200")
    with site.fleet(first, "--latency-ms", "200", max_attempts=1) as fleet:
        wait_until(lambda: len(fleet.roster) == 3)
        (process,) = victim.servers()

        async def run() -> list[Completion]:
            async with CompletionClient(fleet.roster, fleet.model_name, fleet.recipe.serving) as c:
                asked = [asyncio.create_task(ask(c, seed)) for seed in range(60)]
                await asyncio.sleep(0.3)
                victim.process.kill()
                return await asyncio.gather(*asked)

        answers = asyncio.run(run())
        assert len(answers) == 60
        wait_until(lambda: not process.is_running())  # nothing outlives its owner
        wait_until(lambda: len(fleet.roster) == 2)
        assert {answer.server.node for answer in answers} == {s.node for s in fleet.servers}
        again = site.start()
        wait_until(lambda: len(fleet.roster) == 3)
    assert other.wait() == again.wait() == 0


def test_calls_to_a_host_that_falls_silent_are_asked_again_when_its_node_is_declared_lost(
    site: Site, first: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    silent = site.start("--latency-ms", "500")
    with site.fleet(first, "--latency-ms", "200", max_attempts=1) as fleet:
        wait_until(lambda: len(fleet.roster) == 2)
        below = [*silent.process.children(recursive=True), silent.process]

        async def run() -> list[Completion]:
            async with CompletionClient(fleet.roster, fleet.model_name, fleet.recipe.serving) as c:
                asked = [asyncio.create_task(ask(c, seed)) for seed in range(20)]
                await asyncio.sleep(0.2)
                for process in below:  # as when its power fails: no connection is closed
                    process.suspend()
                return await asyncio.gather(*asked)

        answers = asyncio.run(run())
        assert names_of(answers) == {None}
        assert "is lost: no sign of life for 4 s" in caplog.text
        assert len(fleet.roster) == 1
        for process in below:
            process.resume()
        wait_until(lambda: len(fleet.roster) == 2)  # it was not dead
    assert silent.wait() == 0


def test_server_of_a_node_that_dies_leaves_and_comes_back(site: Site, first: ModelRef) -> None:
    node = site.start()
    with site.fleet(first) as fleet:
        wait_until(lambda: len(fleet.roster) == 2)
        (before,) = node.servers()
        lost = fleet.servers[1]
        before.kill()
        assert len(ask_many(fleet, fleet.recipe.serving, 20)) == 20
        wait_until(lambda: lost not in fleet.roster and len(fleet.roster) == 2)
        assert node.servers() != [before]
        assert len(names_of(ask_many(fleet, fleet.recipe.serving, 20))) == 2


RUN = """
import sys, time
from pathlib import Path
from optima.recipe.schema import Recipe
from optima.serving.client import Roster
from optima.serving.nodes import Board, Nodes
from optima.types import ModelRef
recipe = Recipe.model_validate_json(sys.argv[1])
with Nodes(Board(Path(recipe.serving.nodes)), recipe, Path("run")) as nodes:
    nodes.serve(ModelRef(path=sys.argv[2]), Roster(is_open=True))
    time.sleep(600)
"""


def test_node_stops_when_its_run_is_killed_and_gives_no_sign_of_life(
    site: Site, first: ModelRef
) -> None:
    recipe = site.recipe().model_dump_json()
    run = subprocess.Popen([sys.executable, "-c", RUN, recipe, first.path])
    node = site.start()
    try:
        wait_until(lambda: len(node.servers()) == 1)
    finally:
        run.kill()
        run.wait()
    assert node.wait() == 1
    assert "no sign of life of its run for 4 s (serving.node_timeout_s)" in node.said()
    assert node.servers() == []


def test_next_attempt_of_a_killed_run_finds_the_nodes_still_there(
    site: Site, first: ModelRef
) -> None:
    recipe = site.recipe(node_timeout_s=30.0)
    run = subprocess.Popen([sys.executable, "-c", RUN, recipe.model_dump_json(), first.path])
    node = site.start()
    try:
        wait_until(lambda: len(node.servers()) == 1)
        wait_until(lambda: any(one.urls for one in announced(site.board)))
    finally:
        run.kill()
        run.wait()
    (process,) = node.servers()
    with site.fleet(first, node_timeout_s=30.0) as fleet:
        wait_until(lambda: len(fleet.roster) == 2)
        assert node.servers() == [process]
    assert node.wait() == 0


def announced(board: Board) -> list[Announced]:
    found = [read_as(path, Announced) for path in board.announced.glob("*.json")]
    return [one for one in found if one is not None]


def test_node_stops_on_a_signal_and_says_so(site: Site, first: ModelRef) -> None:
    node = site.start()
    with site.fleet(first) as fleet:
        wait_until(lambda: len(fleet.roster) == 2)
        node.process.send_signal(signal.SIGTERM)
        assert node.wait() == 143
        assert node.servers() == []
        wait_until(lambda: len(fleet.roster) == 1)
        assert list(site.board.announced.iterdir()) == []


def test_node_that_does_not_see_the_model_says_so_and_serves_when_it_does(
    site: Site, first: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    with site.fleet(first) as fleet:
        weights = Path(first.path, "model.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:2])
        site.start()
        wait_until(lambda: "has 2 bytes here, 5 where the run is" in caplog.text)
        assert "keep the run and its models on storage that all nodes see" in caplog.text
        weights.write_bytes(whole)
        wait_until(lambda: len(fleet.roster) == 2)


def test_node_that_serves_other_weights_does_not_join(
    site: Site, first: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    other = model(site.folder, "other")
    site.start("--weights", other.path)
    with site.fleet(first) as fleet:
        wait_until(lambda: "serves another model" in caplog.text)
        assert [server.node for server in fleet.servers] == [None]


def test_start_of_a_model_that_is_no_longer_wanted_is_given_up(site: Site, first: ModelRef) -> None:
    node = site.start("--never-ready")
    second = model(site.folder, "second")
    with site.fleet(first, start_timeout_s=600.0, keep="restart") as fleet:
        wait_until(lambda: len(node.servers()) == 1)
        (before,) = node.servers()
        assert fleet.nodes is not None
        fleet.nodes.serve(second, fleet.roster)
        wait_until(lambda: not before.is_running() and len(node.servers()) == 1)
        assert second.path in node.servers()[0].cmdline()
    assert node.wait() == 0


def test_what_is_shared_can_be_written_by_its_owner_alone_and_the_key_be_read_by_nobody_else(
    site: Site, first: ModelRef
) -> None:
    before = os.umask(0)
    try:
        with site.fleet(first):
            assert site.board.folder.stat().st_mode & 0o777 == 0o700
            assert site.board.key.stat().st_mode & 0o777 == 0o600
            key = site.board.key.read_text(encoding="utf-8")
            wanted = site.board.wanted.read_text(encoding="utf-8")
            assert key not in wanted
    finally:
        os.umask(before)
    site.board.key.chmod(0o644)
    with pytest.raises(UsageError, match="others can read this key"), site.fleet(first):
        pass
    site.board.folder.chmod(0o770)
    with pytest.raises(UsageError, match="others can write to it"), site.fleet(first):
        pass


def test_two_runs_do_not_share_a_folder(site: Site, first: ModelRef) -> None:
    with site.fleet(first):
        with pytest.raises(RunBusyError, match="another run has its nodes there"):
            with Nodes(site.board, site.recipe(), site.folder / "second"):
                pass
    over = read_as(site.board.wanted, Wanted)
    assert over is not None
    assert over.is_over


def test_folder_that_is_a_file_is_named(site: Site) -> None:
    site.board.folder.write_text("")
    with pytest.raises(UsageError, match=r"serving\.nodes .*: cannot be a directory"):
        with Nodes(site.board, site.recipe(), site.folder / "run"):
            pass


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (str(socket.inet_ntoa(bytes(4))), "stands for all addresses"),
        ("192.0.2.1", "is no address of this host"),  # of documents only
        ("no-such-host.invalid", "is no address of this host"),
    ],
)
def test_address_that_a_node_cannot_listen_on_is_refused(given: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as got:
        node_address(given, "--address")
    assert str(got.value).startswith(f"--address {given}: ")


def test_host_whose_name_leads_to_itself_alone_is_told_to_name_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with pytest.raises(UsageError, match="which no other node reaches; name the address"):
        node_address(None, "--address")
    assert node_address("127.0.0.1", "--address") == "127.0.0.1"


def test_node_without_a_run_gives_up_and_names_the_folder(site: Site) -> None:
    words = ["serve-node", "--shared", str(site.board.folder), "--address", "127.0.0.1"]
    prefix = fake_environment(site.folder / "node").prefix
    done = subprocess.run(
        [*OPTIMA, *words, "--wait-s", "1", "--vllm-env", str(prefix)],
        capture_output=True, encoding="utf-8", check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"--shared {site.board.folder}: no run with serving.nodes there" in done.stderr
    assert done.stderr.count("\n") == 1


def test_node_of_another_release_than_its_run_says_so(site: Site, first: ModelRef) -> None:
    with site.fleet(first):
        wanted = json.loads(site.board.wanted.read_text(encoding="utf-8"))
        site.board.wanted.write_text(json.dumps({**wanted, "new": 1}), encoding="utf-8")
        node = site.start()
        assert node.wait() == 2
        assert "wanted.json: new: Extra inputs are not permitted; let run and" in node.said()


SPACES = ("optima-a", "optima-b")


@pytest.fixture
def namespaces() -> Iterator[tuple[str, ...]]:
    """Two hosts, as far as the network goes, and this one between them: 10.213.N.1 here."""

    def ip(*words: str) -> bool:
        try:
            done = subprocess.run(["ip", *words], capture_output=True, check=False, timeout=30)
        except FileNotFoundError:
            return False
        return done.returncode == 0

    made = []
    try:
        for n, space in enumerate(SPACES):
            steps = [
                ("netns", "add", space),
                ("link", "add", f"opt{n}", "type", "veth", "peer", "name", "eth0", "netns", space),
                ("addr", "add", f"10.213.{n}.1/24", "dev", f"opt{n}"),
                ("link", "set", f"opt{n}", "up"),
                ("-n", space, "addr", "add", f"10.213.{n}.2/24", "dev", "eth0"),
                ("-n", space, "link", "set", "eth0", "up"),
                ("-n", space, "link", "set", "lo", "up"),
            ]
            made.append(space)
            if not all(ip(*step) for step in steps):
                pytest.skip("no network namespaces can be made here")
        yield SPACES
    finally:
        for n, space in enumerate(made):
            ip("link", "del", f"opt{n}")
            ip("netns", "del", space)


def test_nodes_on_networks_of_their_own_serve_and_one_that_is_cut_off_is_done_without(
    site: Site, first: ModelRef, namespaces: tuple[str, ...]
) -> None:
    for n, space in enumerate(namespaces):
        site.start(address=f"10.213.{n}.2", before=("ip", "netns", "exec", space))
    with site.fleet(first, request_timeout_s=10.0) as fleet:
        wait_until(lambda: len(fleet.roster) == 3)
        hosts = {server.base_url.split(":")[1] for server in fleet.servers}
        assert hosts == {"//127.0.0.1", "//10.213.0.2", "//10.213.1.2"}
        assert len(names_of(ask_many(fleet, fleet.recipe.serving, 40))) == 3
        subprocess.run(["ip", "link", "set", "opt0", "down"], check=True)
        answers = ask_many(fleet, fleet.recipe.serving, 40)
        assert {a.server.base_url.split(":")[1] for a in answers} == hosts - {"//10.213.0.2"}
        subprocess.run(["ip", "link", "set", "opt0", "up"], check=True)
        wait_until(lambda: len(fleet.roster) == 3, 60.0)
    assert [node.wait() for node in site.nodes] == [0, 0]
