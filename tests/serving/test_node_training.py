"""Nodes that take part in a training of their run, which is a fake behind the real guard."""

import json
import threading
from pathlib import Path

import psutil
import pytest

from optima.errors import StageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import TrainSection
from optima.serving.nodes import Nodes
from optima.training.jobs import TrainJob, TrainResult
from optima.training.launch import run_training
from optima.types import ModelRef
from tests.fakes import commands, fake_environment
from tests.serving.test_fleet import wait_until
from tests.serving.test_nodes import Site
from tests.serving.test_nodes import first as first
from tests.serving.test_nodes import site as site  # fixtures


def job_in(folder: Path) -> TrainJob:
    start = folder / "untrained"
    start.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text('{"input_ids": [1, 2]}\n' * 2)
    return TrainJob(
        model=ModelRef(path=str(start)), rows_path=str(rows), output_dir=str(folder / "train"),
        train=TrainSection(dtype="float32"), seed=0, device="cpu",
    )  # fmt: skip


def train_on(site: Site, n: int, seconds: float = 0.0, **serving: object) -> TrainResult:
    recipe = site.recipe(training_nodes=n, training_address="127.0.0.1", **serving)
    env = fake_environment(site.folder / "own", train_seconds=seconds)
    with Nodes(site.board, recipe, site.folder / "run") as nodes:
        return run_training(
            job_in(site.folder), env=env, devices=Devices("cpu"),
            log_path=site.folder / "train.log", others=nodes.others(n, 0),
        )  # fmt: skip


def trainings(place: Path) -> list[list[str]]:
    found = commands(Environment(place / "fake_env", place / "fake_env" / "bin" / "python"))
    return [words for words in found if words[1] == "accelerate.commands.launch"]


def test_nodes_take_their_part_in_a_training(site: Site) -> None:
    nodes = [site.start(), site.start()]
    assert train_on(site, 3, seconds=2.0).n_rows == 2
    assert [node.wait() for node in nodes] == [0, 0]
    calls = [*trainings(site.folder / "own"), *trainings(site.folder / "node0")]
    calls += trainings(site.folder / "node1")
    assert len(calls) == 3
    ranks = [words[words.index("--machine_rank") + 1] for words in calls]
    assert (ranks[0], sorted(ranks)) == ("0", ["0", "1", "2"])
    for words, rank in zip(calls, ranks, strict=True):
        words[words.index("--machine_rank") + 1] = "R"
        assert words == calls[0], rank  # the same job, files, address and port
    assert calls[0][calls[0].index("--main_process_ip") + 1] == "127.0.0.1"
    config = json.loads((site.folder / "train" / "accelerate.json").read_text(encoding="utf-8"))
    assert (config["num_machines"], config["num_processes"]) == (3, 3)


def test_training_ends_with_the_reason_when_a_node_fails_in_it(site: Site) -> None:
    node = site.start(train_fails=1)
    with pytest.raises(StageError, match=r"training: node \S+: training: exited") as got:
        train_on(site, 2, seconds=60.0)
    assert "train.log" in str(got.value)
    assert node.wait() == 0


def test_training_ends_when_a_node_is_lost_in_it(site: Site) -> None:
    node = site.start(train_seconds=60.0)

    def kill() -> None:
        wait_until(lambda: bool(trainings(site.folder / "node0")))
        node.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(StageError, match=r"training: node \S+ is lost"):
        train_on(site, 2, seconds=60.0)
    killer.join()
    below = psutil.Process().children(recursive=True)
    living = [one.cmdline() for one in below if one.status() != psutil.STATUS_ZOMBIE]
    assert not [line for line in living if "accelerate.commands.launch" in line]


def test_training_that_finds_too_few_nodes_says_how_many_came(site: Site) -> None:
    site.start()
    with pytest.raises(StageError, match=r"training_nodes: 3: 1 came beside this one within 12 s"):
        train_on(site, 3, start_timeout_s=12.0)


def test_nodes_serve_again_after_a_training(site: Site, first: ModelRef) -> None:
    site.start()
    env = fake_environment(site.folder / "own")
    with site.fleet(first, training_nodes=2, training_address="127.0.0.1", keep="stay") as fleet:
        wait_until(lambda: len(fleet.roster) == 2)
        assert fleet.nodes is not None
        others = fleet.nodes.others(2, 0)
        log = site.folder / "train.log"
        run_training(
            job_in(site.folder), env=env, devices=Devices("cpu"), log_path=log, others=others
        )
        assert [server.node for server in fleet.servers] == [None]
        fleet.nodes.serve(first, fleet.roster)
        wait_until(lambda: len(fleet.roster) == 2)
