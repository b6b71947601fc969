"""Whole runs on a Ray cluster of several raylets of this host, which are killed and join.

The raylets and the driver are real, as are the nodes; servers are fakes behind the real guards.
"""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from optima.serving.board import Announced, Board, read_as
from tests.fake_runs import finish, processes_of, results, run, start, wait_until
from tests.fakes import fake_environment
from tests.methods.test_node_runs import n_turns
from tests.raylets import NODE, VARIABLES, Raylets


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed (scripts/setup_envs.sh --dev)")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        made = Raylets()
        yield made
        made.stop()


def named(folder: Path) -> list[list[str]]:
    """Return the command lines of living processes that name something in ``folder``."""
    lines = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in w for w in line):
            lines.append(line)
    return lines


@pytest.fixture
def begin(raylets: Raylets) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run on the cluster; it is killed at the end if it is still there."""
    begun: list[subprocess.Popen[str]] = []

    def begin(directory: Path, latency_ms: int, *overrides: str, mark: str = "") -> Any:
        options = ("--latency-ms", str(latency_ms), "--notes", str(directory / f"${NODE}.jsonl"))
        environment = fake_environment(directory / "own", server=options)
        given = ("serving.nodes=auto", f"serving.ray={raylets.address}", *overrides)
        begun.append(start(directory, environment, *given, mark=mark))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()


def test_run_on_raylets_one_of_which_is_killed_computes_what_it_computes_alone(
    tmp_path: Path, raylets: Raylets, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    raylets.add("first")
    raylets.add("second")
    environment = fake_environment(tmp_path / "alone")
    run(tmp_path, environment, run="alone-run")
    said = f"each node of the cluster at {raylets.address} is asked to; Ray "
    overrides = ("serving.nodes=auto", f"serving.ray={raylets.address}", "--dry-run")
    (line,) = (line for line in run(tmp_path, environment, *overrides).splitlines() if said in line)
    assert line.endswith(": nodes beside this one: 2, 0 GPUs, 2 CPUs")
    first, second = (tmp_path / f"{name}.jsonl" for name in ("first", "second"))
    mark = uuid.uuid4().hex
    process = begin(tmp_path, 400, "serving.node_timeout_s=5", mark=mark)
    wait_until(lambda: n_turns(first) > 0 and n_turns(second) > 0, "turns on both")
    raylets.kill("first")
    n_before = n_turns(second)
    status, _, err = finish(process)
    assert status == 0, err
    assert "nodes beside this one: 2, 0 GPUs, 2 CPUs" in err
    assert "Ray: node 127.0.0.1: lost (" in err
    assert n_turns(second) > n_before
    assert results(tmp_path / "run") == results(tmp_path / "alone-run")
    assert processes_of(mark) == []
    assert named(tmp_path) == []


def test_raylet_that_joins_is_used_also_by_a_second_driver_and_a_killed_run_leaves_nothing(
    tmp_path: Path, raylets: Raylets, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    process = begin(tmp_path, 300, "data.n_train=800")  # ends by no means before it is killed
    raylets.add("third")
    board = Board(tmp_path / "run" / "nodes")
    wait_until(lambda: n_turns(tmp_path / "third.jsonl") > 0, "turns on the node that joined")
    before = set(board.announced.iterdir())
    (driver,) = (
        child for child in psutil.Process(process.pid).children(recursive=True)
        if child.cmdline()[1:3] == ["-m", "optima.serving.cluster"]
    )  # fmt: skip
    driver.kill()

    def again() -> list[Path]:
        new = set(board.announced.glob("*.json")) - before
        return [path for path in new if (one := read_as(path, Announced)) and one.urls]

    wait_until(lambda: again() != [], "a node of the second driver")
    process.kill()
    _, _, err = finish(process)
    assert "Ray: its driver ended" in err
    wait_until(lambda: named(tmp_path) == [], "the end of all")
