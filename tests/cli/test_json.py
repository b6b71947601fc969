"""What commands print for other programs."""

import json
from pathlib import Path

import pytest

from optima.cli.main import main
from optima.reporting.tables import Table

RUNS = Path(__file__).parents[1] / "data/runs"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    assert main([*words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found: object = json.loads(line)
    return found


def test_lines_of_a_table_are_records_with_numbers() -> None:
    rows = (("iter_0", "12", "0.250", "-", "5 %"), ("7", "3", "", "1", "x"))
    table = Table(("model", "pairs", "value", "low", "share"), rows)
    assert table.records() == [
        {"model": "iter_0", "pairs": 12, "value": 0.25, "low": None, "share": "5 %"},
        {"model": "7", "pairs": 3, "value": None, "low": 1, "share": "x"},
    ]


def test_status_of_a_run_and_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    status = printed(capsys, "status", str(RUNS / "training"))
    assert isinstance(status, dict)
    assert (status["state"], status["n_done"], status["n_stages"]) == ("done", 24, 24)
    members = printed(capsys, "status", str(RUNS))
    assert isinstance(members, list)
    assert [one["name"] for one in members] == ["baselines", "consistency", "inference", "training"]
    assert {one["state"] for one in members} == {"done"}


def test_tasks_and_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = printed(capsys, "tasks")
    assert isinstance(tasks, list)
    metrics = {one["task"]: one["metric"] for one in tasks}
    assert (metrics["hotpot_qa"], metrics["math"], metrics["arc"]) == ("f1", "math", "exact_match")
    assert printed(capsys, "pairs", "--run", str(RUNS / "training")) == [
        {
            "iteration": "iter_0_dpo", "trees": 3, "pairs": 4, "kept": 3, "problems": 3,
            "chosen": 0.492, "rejected": -0.179,
        }
    ]  # fmt: skip
