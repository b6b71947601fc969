"""Runs of every kind read for a report, over directories written here."""

import json
import shutil
from pathlib import Path

import pytest

from optima.cli.main import main
from optima.errors import StageError, UsageError
from optima.runs.comparison import find_runs, open_runs
from optima.runs.reader import Run
from optima.runs.status import read_status
from tests.reporting import made


def test_training_has_models_candidates_and_costs_in_order(tmp_path: Path) -> None:
    (history,) = open_runs([made.training(tmp_path / "run")])
    assert (history.kind, history.recipe.method, history.name) == ("training", "sft", "run")
    assert [model.label for model in history.figures] == ["base", "iter_0", "iter_1"]
    assert list(history.drawn) == ["iter_0", "iter_1"]
    base, first = history.figures[:2]
    assert base.score.mean == 1 / 4
    assert base.tokens.mean == (100 + 200 + 300 + 400) / 4
    assert list(first.counts) == [50, 100, 150, 200]
    assert first.made_in_s == 40 + 10 + 10 + 20  # generate, score, rank, train
    assert (base.reward, base.made_in_s) == (0.1, 0)
    assert history.drawn["iter_0"]["reward/total"] == 0.4
    assert history.drawn["iter_0"]["stop/max_turns"] == 0.3
    assert [cost.n_generated for cost in history.costs] == [1000, 1900]


def test_baseline_that_votes_counts_all_its_samples(tmp_path: Path) -> None:
    (history,) = open_runs([made.baselines(tmp_path / "out")])
    assert history.kind == "baselines"
    vote = history.figures[1]
    assert (vote.label, vote.n_samples) == ("sc", 3)
    assert vote.score.mean == 1  # two of three agree on what is right
    assert list(vote.counts) == [10 + 20 + 30] * 4
    assert vote.reward is None


@pytest.mark.parametrize("is_finished", [True, False])
def test_self_consistency_has_the_same_curve_before_and_after_its_results_are_written(
    is_finished: bool, tmp_path: Path
) -> None:
    root = made.consistency(tmp_path / "out", is_finished=is_finished)
    (history,) = open_runs([root])
    assert history.kind == "consistency"
    (scaling,) = history.figures
    assert [point.k for point in scaling.points] == [1, 2, 3, 4]
    assert scaling.points[3].coverage.mean == 1
    # The first problem is a tie that order decides; the second goes to the wrong answer.
    assert 0 <= scaling.points[3].score.mean <= 1 / 2
    assert scaling.points[3].n_tokens == 40


def test_folder_of_inferences_called_as_their_tasks_is_a_transfer(tmp_path: Path) -> None:
    root = made.transfer(tmp_path / "out")
    histories = open_runs([root])
    assert [(one.kind, one.recipe.task) for one in histories] == [
        ("transfer", "hotpot_qa"), ("transfer", "gsm8k")
    ]  # fmt: skip
    assert [one.kind for one in open_runs([root / "gsm8k"])] == ["inference"]


def test_folder_of_runs_is_read_as_its_runs(tmp_path: Path) -> None:
    made.training(tmp_path / "sweep/value")
    made.training(tmp_path / "sweep/random", n_iterations=1)
    histories = open_runs([tmp_path / "sweep"])
    assert [(one.name, one.kind) for one in histories] == [
        ("random", "training"), ("value", "training")
    ]  # fmt: skip


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    roots = [made.training(tmp_path / name / "run", n_iterations=0) for name in ("a", "b")]
    assert [one.name for one in open_runs(roots)] == ["a/run", "b/run"]


def test_run_that_has_only_begun_has_nothing(tmp_path: Path) -> None:
    made.Maker(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/problems")
    (history,) = open_runs([tmp_path / "run"])
    assert (history.figures, history.drawn, history.costs) == ((), {}, ())


def test_unfinished_stages_are_left_out(tmp_path: Path) -> None:
    root = made.training(tmp_path / "run")
    (root / "iter_1/rank/DONE.json").unlink()
    (root / "evaluate/iter_1/rank/DONE.json").unlink()
    (root / "evaluate/iter_1/rank/rewards.jsonl").write_text('{"torn')
    (history,) = open_runs([root])
    assert [model.label for model in history.figures] == ["base", "iter_0"]
    assert "reward/total" not in history.drawn["iter_1"]
    assert "tokens/conversation" in history.drawn["iter_1"]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    root = made.training(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    open_runs([root])
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        open_runs([tmp_path])
    with pytest.raises(UsageError, match="nowhere: is not a run directory"):
        open_runs([tmp_path / "nowhere"])


def test_broken_record_is_named_by_file_and_line(tmp_path: Path) -> None:
    root = made.training(tmp_path / "run")
    path = root / "evaluate/base/talk/conversations.jsonl"
    path.write_text(path.read_text().replace("{", "(", 1))
    with pytest.raises(StageError, match=r"conversations\.jsonl:1: is not a JSON record"):
        open_runs([root])


def test_trials_of_influence_are_no_evaluated_models_and_make_no_inference_of_a_run(
    tmp_path: Path,
) -> None:
    run = made.Maker(tmp_path / "run", method="dpo")
    run.model("evaluate/base", [1.0], [10])
    run.model("iter_0/influence/before", [1.0], [10])
    run.model("iter_0/influence/group_0", [1.0], [10])
    assert Run(run.root).evaluated == ("base",)
    assert not Run(run.root).is_evaluation
    assert read_status(run.root).n_stages > 6  # as its recipe says, not what has begun
    assert open_runs([run.root])[0].kind == "training"


def test_costs_that_an_inference_noted_are_read(tmp_path: Path) -> None:
    run = made.Maker(tmp_path / "out")
    run.model("iter_0", [1.0, 0.0], [10, 20])
    cost = {"label": "iter_0", "n_generated": 5, "n_trained": 6, "device_seconds": {"train": 2.0}}
    run.results(models=[], costs=[cost])
    (history,) = open_runs([run.root])
    assert history.kind == "inference"
    assert [one.n_tokens for one in history.costs] == [11]
    (run.root / "results.json").write_text(json.dumps({})[:-1])
    with pytest.raises(StageError, match=r"results\.json: is not the JSON of an evaluation"):
        open_runs([run.root])


def _damaged_runs(folder: Path) -> list[str]:
    """Write five runs, of which three are damaged; return the beginnings of what is said."""
    for name in "abcde":
        made.training(folder / name)
    (folder / "b/recipe.yaml").write_text("method: [")
    (folder / "c/recipe.yaml").unlink()
    (folder / "d/problems/DONE.json").write_text("{")
    (folder / "f").mkdir()  # a start that came to nothing
    (folder / "f/LOCK").touch()
    return [f"{folder}/{name}" for name in ("b/recipe.yaml:1: ", "c", "d/problems/DONE.json: ")]


def test_status_of_a_folder_tells_of_all_runs_and_each_damaged_one_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _damaged_runs(tmp_path / "runs")
    assert main(["status", str(tmp_path / "runs")]) == 1
    out, err = capsys.readouterr()
    first, *lines = out.splitlines()
    assert first == f"{tmp_path}/runs: stopped, 0 of 5 runs done"
    assert [line.split()[0] for line in lines] == list("abcde")
    for line, place in zip(lines[1:4], said, strict=True):
        assert line.split(maxsplit=1)[1].startswith(f"damaged: {place}")
    assert lines[0].startswith("  a  stopped, ")
    assert not err


@pytest.mark.parametrize("command", ["report", "view", "compare"])
def test_commands_over_several_runs_name_all_that_are_damaged(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _damaged_runs(tmp_path / "runs")
    if command == "view":
        with pytest.raises(StageError) as caught:
            open_runs(find_runs([tmp_path / "runs"]))
        lines = str(caught.value).splitlines()
    else:
        runs = [f"{tmp_path}/runs/{name}" for name in "abcd"]
        given = [f"{tmp_path}/runs"] if command == "report" else runs
        assert main([command, *given]) == 1
        lines = [line.removeprefix("optima: ") for line in capsys.readouterr().err.splitlines()]
    assert not (tmp_path / "runs/report").exists()
    assert len(lines) == len(said)
    for place in said:
        assert any(line.startswith(place) for line in lines)
