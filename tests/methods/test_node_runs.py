"""Whole runs whose servers are on several nodes, one of which is killed while agents talk."""

import json
import uuid
from pathlib import Path

import pytest

from optima.serving.board import Announced, Board, read_as
from tests.fake_runs import finish, processes_of, results, run, start, wait_until
from tests.fakes import fake_environment
from tests.serving.test_nodes import Site
from tests.serving.test_nodes import site as site  # a fixture

SLOW = ("--latency-ms", "300")  # so that a run lasts until its nodes have joined


def n_serving(board: Board) -> int:
    found = [read_as(path, Announced) for path in board.announced.glob("*.json")]
    return sum(bool(one.urls) for one in found if one is not None)


def n_turns(notes: Path) -> int:
    """Return how many turns a server was asked for; the probes ask for one token."""
    lines = notes.read_bytes().splitlines() if notes.exists() else []
    return sum(json.loads(line)["max_tokens"] > 1 for line in lines)


@pytest.mark.parametrize(("method", "talk"), [("sft", "iter_0/generate"), ("dpo", "iter_1/search")])
def test_run_on_nodes_one_of_which_is_killed_computes_what_it_computes_alone(
    method: str, talk: str, tmp_path: Path, site: Site
) -> None:
    run(tmp_path, fake_environment(tmp_path / "alone"), run="alone-run", method=method)
    site.board = Board(tmp_path / "run" / "nodes")
    notes = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    lost, kept = (site.start(*SLOW, "--notes", str(path)) for path in notes)
    mark = uuid.uuid4().hex
    process = start(
        tmp_path, fake_environment(tmp_path / "own", server=SLOW), "serving.nodes=auto",
        "serving.node_timeout_s=5", mark=mark, method=method,
    )  # fmt: skip
    wait_until((tmp_path / "run" / talk).exists, "the stage")
    wait_until(lambda: n_serving(site.board) == 2, "both nodes")
    wait_until(lambda: n_turns(notes[0]) > 0 and n_turns(notes[1]) > 0, "turns on both")
    lost.process.kill()
    n_before = n_turns(notes[1])
    status, _, err = finish(process)
    assert status == 0, err
    assert kept.wait() == 0
    assert n_turns(notes[1]) > n_before + 5  # of a model that was trained after it joined, too
    assert "is lost: no sign of life for 5 s" in err
    assert results(tmp_path / "run") == results(tmp_path / "alone-run")
    assert processes_of(mark) == lost.servers() == kept.servers() == []
