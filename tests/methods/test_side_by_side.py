"""Trainings of several policies at once, where there are GPUs for it: over fakes, with GPUs that a
stand-in of nvidia-smi lists."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from optima.processes.devices import Devices
from optima.runs.reader import open_run
from optima.stages.train import side_by_side
from tests.fake_runs import attempt, finish, processes_of, run, start, wait_until
from tests.fakes import fake_environment
from tests.stages.test_room import _host as host
from tests.stages.test_room import _recipe as sized

AGENTS = "agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]"
GPUS = (AGENTS, "serving.device=cuda", "cold_start=null", "iterations=1")


def trained(directory: Path) -> list[dict[str, Any]]:
    path = directory / "fake_env/trained.jsonl"
    return [json.loads(line) for line in path.open()] if path.exists() else []


@pytest.mark.parametrize("words", [(), ("train.lora={serve: adapter}",)])
def test_trainings_go_on_at_once_each_on_gpus_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    host(tmp_path, monkeypatch, 4, 24)
    run(tmp_path, fake_environment(tmp_path, train_seconds=2.0), *GPUS, *words)
    one, other = sorted(trained(tmp_path), key=lambda note: note["folder"], reverse=True)
    assert (one["gpus"], other["gpus"]) == ("0,1", "2,3")
    assert one["began"] < other["ended"]
    assert other["began"] < one["ended"]
    found = open_run(tmp_path / "run")
    seconds = {done.stage: done.seconds for done in found.stages}
    training = sum(seconds[f"iter_0/train_{policy}"] for policy in ("solver", "critic"))
    (cost,) = found.costs
    assert cost.device_seconds["train"] == pytest.approx(2 * training)


def test_trainings_come_in_turn_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, 1, 24)
    run(tmp_path, fake_environment(tmp_path), *GPUS)
    first, second = trained(tmp_path)
    assert first["gpus"] == second["gpus"] == "0"
    assert first["ended"] <= second["began"]


def test_one_that_fails_leaves_the_other_to_end_which_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(tmp_path, monkeypatch, 2, 24)
    environment = fake_environment(tmp_path, train_fails=1)
    status, _, err = attempt(tmp_path, environment, *GPUS)
    assert status == 1
    assert "training: exited with status 1" in err
    assert len(trained(tmp_path)) == 1
    run(tmp_path, environment, *GPUS)
    assert len({note["folder"] for note in trained(tmp_path)}) == len(trained(tmp_path)) == 2


def test_signal_ends_all_trainings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, 2, 24)
    environment = fake_environment(tmp_path, train_seconds=60.0)
    process = start(tmp_path, environment, *GPUS, mark="side-by-side")
    jobs = [tmp_path / f"run/iter_0/train_{policy}/job.json" for policy in ("solver", "critic")]
    wait_until(lambda: all(job.exists() for job in jobs), "both trainings")
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 143, err
    wait_until(lambda: not processes_of("side-by-side"), "all processes to end")


def test_dry_run_shows_trainings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(tmp_path, monkeypatch, 2, 24)
    status, out, err = attempt(tmp_path, fake_environment(tmp_path), *GPUS, "--dry-run")
    assert status == 0, err
    for gpu, policy in enumerate(("solver", "critic")):
        (line,) = (line for line in out.splitlines() if f"train_{policy}/job.json" in line)
        assert line.startswith(f"  training on GPU {gpu}, 2 at once: ")
        assert f"train_{policy}/model on GPU {gpu}" in out  # and where it is served


@pytest.mark.parametrize(
    ("overrides", "gib", "n_gpus", "expected"),
    [
        ((), 1, 2, [(0,), (1,)]),
        ((), 1, 5, [(0, 1), (2, 3)]),
        ((), 16, 4, []),  # 128 GiB with its states on two, of which they have 48
        (("train.lora={}",), 16, 4, [(0, 1), (2, 3)]),
        (("train.batch_size=2", "cold_start.batch_size=2"), 1, 6, []),  # three do not divide it
        (("serving.keep=stay",), 1, 2, []),  # of 24 GiB 2.4 are left
        ((), 1, 1, []),
    ],
)
def test_trainings_are_side_by_side_where_each_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], gib: int,
    n_gpus: int, expected: list[tuple[int, ...]],
) -> None:  # fmt: skip
    host(tmp_path, monkeypatch, n_gpus, 24)
    recipe = sized(tmp_path, AGENTS, "reward.lambda_loss=0", *overrides, gib=gib)
    shares = side_by_side(recipe, Devices("cuda", tuple(range(n_gpus))), 2)
    assert [share.gpus for share in shares] == expected


def test_trainings_on_a_cpu_and_by_nodes_come_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(tmp_path, monkeypatch, 4, 24)
    recipe = sized(tmp_path, AGENTS, gib=1)
    assert side_by_side(recipe, Devices("cpu"), 2) == ()
    assert side_by_side(recipe, Devices("cuda", (0, 1)), 1) == ()
    nodes = recipe.changed(serving={"training_nodes": 2})
    assert side_by_side(nodes, Devices("cuda", (0, 1)), 2) == ()
