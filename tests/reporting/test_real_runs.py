"""What the commands really write, over fakes at the process borders, makes figures and tables."""

import subprocess
import sys

import pytest

from optima.reporting.figures import figures_of
from optima.reporting.history import History, read_histories
from optima.reporting.run_tables import tables_of
from tests.fakes import fake_environment
from tests.pipelines.runs import ROOT, TIMEOUT_S, run


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, History]:
    """Return a training with trees, its inference, its self-consistency and baselines."""
    directory = tmp_path_factory.mktemp("runs")
    environment = fake_environment(directory)
    run(directory, environment, "iterations=2", method="dpo")
    trained, model = directory / "run", directory / "model"
    given = ("--limit", "3", "--vllm-env", str(environment.prefix))
    commands = {
        "infer": ("infer", "--model-root", str(trained)),
        "sc": ("multi_sc", "--model", str(model), "--n-samples", "3", "--config",
               str(trained / "recipe.yaml")),
        "baselines": ("optima", "baselines", "--model", str(model), "--methods", "cot,sc",
                      "--n-votes", "2", "--config", str(trained / "recipe.yaml")),
    }  # fmt: skip
    for name, argv in commands.items():
        done = subprocess.run(
            [sys.executable, "-m", "optima.cli", *argv, *given, "--output", str(directory / name)],
            cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = read_histories([trained, *(directory / name for name in commands)])
    return {history.name: history for history in found}


def test_every_command_is_told_by_what_it_wrote(histories: dict[str, History]) -> None:
    assert {name: history.kind for name, history in histories.items()} == {
        "run": "training", "infer": "inference", "sc": "consistency", "baselines": "baselines"
    }  # fmt: skip
    assert [m.label for m in histories["run"].models] == [
        "base", "cold_start", "initial", "iter_0"
    ]  # fmt: skip
    assert [c.label for c in histories["run"].candidates] == ["initial", "iter_0"]
    assert [cost.label for cost in histories["infer"].costs] == ["cold_start", "initial", "iter_0"]
    assert [len(scaling.points) for scaling in histories["sc"].scalings] == [3]
    assert [model.n_samples for model in histories["baselines"].models] == [1, 2]


def test_candidates_of_trees_have_the_parts_of_their_reward(histories: dict[str, History]) -> None:
    for candidates in histories["run"].candidates:
        metrics = candidates.metrics
        weighted = metrics["reward/task"] - 0.6 * metrics["reward/token"]
        total = weighted + metrics["reward/loss_term"]
        assert metrics["reward/total"] == pytest.approx(total, abs=1e-9)


def test_models_table_is_that_of_the_inference(histories: dict[str, History]) -> None:
    history = histories["infer"]
    written = (history.root / "table.csv").read_text().splitlines()
    models = next(table for table in tables_of([history]) if table.name == "models").table
    for line, row in zip(written[1:], models.rows, strict=True):
        cells = dict(zip(models.head, row, strict=True))
        columns = ("model", "score", "score, 95 %", "answered", "tokens", "tokens, 95 %", "median",
                   "p95", "generated", "turns", "failed")  # fmt: skip
        assert line.split(",")[:11] == [cells[column] for column in columns]


def test_report_over_all_of_them_has_everything_but_a_transfer(
    histories: dict[str, History],
) -> None:
    everything = tuple(histories.values())
    assert len(figures_of(everything)) == 10
    assert [table.name for table in tables_of(everything)] == [
        "models", "differences", "self-consistency", "rewards", "stop-reasons", "cost"
    ]  # fmt: skip
