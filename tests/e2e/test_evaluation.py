"""Evaluation for real, small: the real model on CPU vLLM, the commands a user types."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import RECIPE, Endpoint
from tests.fake_runs import ROOT

pytestmark = pytest.mark.e2e

SMALL = (
    "conversation.max_turns=2", "conversation.max_turn_tokens=24",
    "conversation.worked_example=true", "serving.device=cpu",
)  # fmt: skip


def run(name: str, *argv: str, endpoint: Endpoint | None = None) -> str:
    """Run a command to its end; return what it prints."""
    overrides = [*SMALL, endpoint.override] if endpoint else [*SMALL]
    environ = endpoint.environ if endpoint else None
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli", name, *argv, *overrides],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _conversations(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "talk/conversations.jsonl").open()]


def test_a_model_is_served_and_evaluated_and_gives_the_same_figures_from_an_endpoint(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    argv = ("--model", str(endpoint.model), "--config", str(RECIPE), "--limit", "3", "--output")
    table = run("infer", *argv, str(tmp_path / "served"))
    again = run("infer", *argv, str(tmp_path / "endpoint"), endpoint=endpoint)
    line, other = (text.splitlines()[2].split() for text in (table, again))
    assert line[0] == "model"
    assert line[:-2] == other[:-2]  # the last column is seconds
    held = _conversations(tmp_path / "served/model")
    assert len(held) == 3
    assert all(record["error"] is None for record in held)
    assert all(turn["n_tokens"] > 0 for record in held for turn in record["turns"])


def test_samples_of_a_model_become_a_scaling_curve(endpoint: Endpoint, tmp_path: Path) -> None:
    table = run(
        "multi_sc", "--model", str(endpoint.model), "--config", str(RECIPE), "--limit", "3",
        "--n-samples", "3", "--temperature", "1.0", "--output", str(tmp_path / "sc"),
        endpoint=endpoint,
    )  # fmt: skip
    assert [line.split()[1] for line in table.splitlines()[2:5]] == ["1", "2", "3"]
    texts = [turn["text"] for c in _conversations(tmp_path / "sc/model") for turn in c["turns"]]
    assert len(set(texts)) > 3  # the samples of a problem differ
    with (tmp_path / "sc/table.csv").open() as file:
        tokens = [float(row["tokens"]) for row in csv.DictReader(file)]
    assert tokens == sorted(tokens)
    assert tokens[0] > 0


def test_baselines_of_a_model_are_compared_problem_by_problem(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    output = tmp_path / "baselines"
    table = run(
        "optima", "baselines", "--model", str(endpoint.model), "--config", str(RECIPE), "--limit",
        "2", "--n-votes", "2", "--output", str(output), endpoint=endpoint,
    )  # fmt: skip
    methods = ["cot", "sc", "mad", "autoform"]
    assert [line.split()[0] for line in table.splitlines()[2:6]] == methods
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli.main", "compare", *(f"{output}:{m}" for m in methods)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[2 : 2 + len(methods)]
    assert [line.split()[0] for line in lines] == [f"{output}:{method}" for method in methods]
    status = subprocess.run(
        [sys.executable, "-m", "optima.cli.main", "status", str(output)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert status.returncode == 0, status.stderr
    assert "done" in status.stdout


def test_a_model_is_evaluated_on_two_tasks(endpoint: Endpoint, tmp_path: Path) -> None:
    rows = tmp_path / "gsm8k"
    rows.mkdir()
    row = {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3 + 4 = 7\n#### 7"}
    (rows / "test.jsonl").write_text(json.dumps(row) + "\n")
    table = run(
        "optima", "transfer", "--models", str(endpoint.model), "--tasks", "two_hop,gsm8k", "--data",
        f"gsm8k={rows}", "--config", str(RECIPE), "--limit", "2", "--output",
        str(tmp_path / "out"), endpoint=endpoint,
    )  # fmt: skip
    assert table.splitlines()[0].split() == ["model", "two_hop", "gsm8k"]
    assert len(_conversations(tmp_path / "out/gsm8k/run/cold_start")) == 1
