"""What the commands really write, over fakes at the process borders, makes figures and tables."""

import pytest

from optima.reporting.report import figures_of, tables_of
from optima.runs.comparison import open_runs
from optima.runs.reader import Run
from tests.commands import command
from tests.fake_runs import run
from tests.fakes import fake_environment


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
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
        status, _, err = command(*argv, *given, "--output", str(directory / name))
        assert status == 0, err
    found = open_runs([trained, *(directory / name for name in commands)])
    return {history.name: history for history in found}


def test_every_command_is_told_by_what_it_wrote(histories: dict[str, Run]) -> None:
    assert {name: history.kind for name, history in histories.items()} == {
        "run": "training", "infer": "inference", "sc": "consistency", "baselines": "baselines"
    }  # fmt: skip
    assert [m.label for m in histories["run"].figures] == [
        "base", "cold_start", "initial", "iter_0"
    ]  # fmt: skip
    assert list(histories["run"].drawn) == ["initial", "iter_0"]
    assert [cost.label for cost in histories["infer"].costs] == ["cold_start", "initial", "iter_0"]
    assert [len(one.points) for one in histories["sc"].figures] == [3]
    assert [model.n_samples for model in histories["baselines"].figures] == [1, 2]


def test_candidates_of_trees_have_the_parts_of_their_reward(histories: dict[str, Run]) -> None:
    for metrics in histories["run"].drawn.values():
        weighted = metrics["reward/task"] - 0.6 * metrics["reward/token"]
        total = weighted + metrics["reward/loss_term"]
        assert metrics["reward/total"] == pytest.approx(total, abs=1e-9)


def test_models_table_is_that_of_the_inference(histories: dict[str, Run]) -> None:
    history = histories["infer"]
    models = next(table for table in tables_of([history]) if table.name == "models")
    assert (history.root / "table.csv").read_text().splitlines() == models.csv().splitlines()
    assert [row[0] for row in models.rows] == ["cold_start", "initial", "iter_0"]


def test_report_over_all_of_them_has_everything_but_a_transfer(
    histories: dict[str, Run],
) -> None:
    everything = tuple(histories.values())
    assert len(figures_of(everything)) == 10
    assert [table.name for table in tables_of(everything)] == [
        "models", "differences", "self-consistency", "rewards", "stop-reasons", "agents", "cost"
    ]  # fmt: skip
