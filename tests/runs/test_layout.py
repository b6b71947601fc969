"""What users and older attempts leave in a run directory, and what is damaged at its top."""

import json
import os
import shutil
from pathlib import Path

import pytest

from optima.errors import StageError, UsageError
from optima.records import write_text
from optima.runs.comparison import open_runs
from optima.runs.directory import RunDir, read_recipe
from optima.runs.files import read_outline
from optima.runs.layout import finished_stages, read_attempts, read_done, stage_folders
from optima.runs.status import read_folder, read_status
from optima.studies.infer import find_models
from tests.reporting import made
from tests.runs.test_directory import recipe
from tests.runs.test_outputs import trained


def test_stage_made_from_other_inputs_is_moved_aside_and_counts_no_more(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for inputs in ("first", "second", "third"):
        with RunDir(root, recipe()) as run:
            stage = run.stage("iter_0/select", inputs)
            (stage.path / "rows.jsonl").write_text(inputs)
            stage.finish([stage.path / "rows.jsonl"])
    folders = sorted(path.name for path in (root / "iter_0").iterdir())
    assert folders == ["select", "select.superseded-1", "select.superseded-2"]
    assert (root / "iter_0/select.superseded-1/rows.jsonl").read_text() == "first"
    assert (root / "iter_0/select.superseded-2/rows.jsonl").read_text() == "second"
    assert [done.stage for done in finished_stages(root)] == ["iter_0/select"]


def test_stage_without_work_leaves_nothing_aside(tmp_path: Path) -> None:
    for inputs in ("wrong path", "right path"):
        with RunDir(tmp_path / "run", recipe()) as run:
            run.stage("problems", inputs)
    assert not list((tmp_path / "run").glob("*superseded*"))


@pytest.mark.parametrize("what", ["file", "dangling link"])
def test_what_has_the_name_of_a_stage_is_moved_aside(what: str, tmp_path: Path) -> None:
    place = tmp_path / "run/iter_0/select"
    place.parent.mkdir(parents=True)
    if what == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    with RunDir(tmp_path / "run", recipe()) as run:
        run.stage("iter_0/select", "inputs").finish()
    assert os.path.lexists(place.with_name("select.superseded-1"))


def test_file_in_the_place_of_an_iteration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/iter_0").write_text("mine")
    with (
        RunDir(tmp_path / "run", recipe()) as run,
        pytest.raises(StageError, match=r"iter_0.*a file stands where a directory belongs"),
    ):
        run.stage("iter_0/select", "inputs")


def additions(root: Path) -> None:
    """Add what users and file systems add to a run directory."""
    for name in ("iter_0", "evaluate/base"):
        shutil.copytree(root / name, (root / name).with_name(f"{Path(name).name}.old"))
    for folder in (root, root / "logs", root / "iter_0", root / "evaluate", root / "problems"):
        folder.mkdir(exist_ok=True)
        (folder / ".DS_Store").write_bytes(b"\0\1")
        (folder / "lost+found").mkdir()
        (folder / "notes.txt").write_text("mine")
    for name in ("attempt_1.bak", "attempt_x", "attempt_", "attempt_9999999999999", "attempt_²"):
        (root / "logs" / name).mkdir()
    (root / "logs/attempt_7").write_text("a file")
    (root / "talk").write_text("a file")
    (root / "search").mkdir()
    (root / "link").symlink_to(root)
    (root / "dangling").symlink_to("nowhere")


def test_reading_commands_see_the_same_run_beside_what_users_add(tmp_path: Path) -> None:
    root = made.training(tmp_path / "run")
    trained_root = tmp_path / "trained"
    trained(trained_root)

    def seen() -> tuple[object, ...]:
        (history,) = open_runs([root])
        return (
            history.figures, history.drawn, history.costs, read_status(root),
            history.evaluations, history.is_evaluation, sorted(stage_folders(root)),
            [model.label for model in find_models(trained_root)],
        )  # fmt: skip

    before = seen()
    additions(root)
    shutil.copytree(trained_root / "iter_0", trained_root / "iter_0.old")
    shutil.copytree(trained_root / "iter_0/train", trained_root / "iter_0/train.bak")
    assert seen() == before


def test_a_run_goes_on_beside_what_users_add(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        for name in ("iter_0/select", "evaluate/base/talk", "problems"):
            run.stage(name, "inputs").finish()
    additions(root)
    with RunDir(root, recipe()) as run:
        assert run.attempt == 8  # after the file attempt_7
        for name in ("iter_0/select", "evaluate/base/talk", "problems"):
            assert run.stage(name, "inputs").done
        run.write_metrics()
    lines = (root / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_litter_of_killed_attempts_is_cleared_by_the_next(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        run.stage("iter_0/rank", "inputs").finish()
        run.stage("iter_0/select", "inputs")
    gone = 4_194_304  # above the largest process id
    litter = [
        root / f".recipe.yaml.{gone}.tmp",
        root / f"iter_0/rank/.rewards.jsonl.{gone}.tmp",
        root / f"iter_0/select/.SPENT.json.{gone}.tmp",
        root / "iter_0/rank/SPENT.json",
    ]
    for path in litter:
        path.write_text("{}")
    kept = root / f".recipe.yaml.{os.getppid()}.tmp"  # its writer lives
    kept.write_text("")
    with RunDir(root, recipe()) as run:
        run.stage("iter_0/rank", "inputs")
        assert not [path for path in litter if path.exists()]
    assert kept.exists()


def test_finished_stage_whose_DONE_cannot_be_read_is_finished_anew(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        stage = run.stage("iter_0/select", "inputs")
        stage.finish()
    (stage.path / "DONE.json").write_text('{"schema_version": 1, "sta')
    with pytest.raises(StageError, match=r"DONE.json: cannot be read .*run again") as said:
        read_done(stage.path)
    assert "\n" not in str(said.value)
    with RunDir(root, recipe()) as run:
        again = run.stage("iter_0/select", "inputs")
        assert again.done is None
        again.finish()
    assert finished_stages(root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"reward/task": 0.75', '"reward/task": 0.95'),
        ('"seconds": 0', '"seconds": 1'),
        ('"a":', '"b":'),
    ],
)
def test_changed_figure_of_a_finished_stage_is_noticed(old: str, new: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        stage = run.stage("iter_0/rank", "inputs")
        stage.finish(metrics={"reward/task": 0.75, "a": 1e-7})
    path = stage.path / "DONE.json"
    done = read_done(stage.path)
    assert done is not None
    path.write_text(
        json.dumps(json.loads(path.read_text()))
    )  # laid out otherwise, the same figures
    assert read_done(stage.path) == done
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(
        StageError, match=r"DONE\.json: .*it has changed since it was written"
    ) as said:
        read_done(stage.path)
    assert "\n" not in str(said.value)
    tree = json.loads(path.read_text())
    del tree["checksum"]  # of an earlier release: what it says counts
    path.write_text(json.dumps(tree))
    assert read_done(stage.path) is not None


@pytest.mark.parametrize(
    "text", ["", "method: sf", "- a\n", "method: [", "3", "method: sft\ntask: arc\nold_field: 1\n"]
)
def test_stored_recipe_that_cannot_be_read_is_one_line_and_its_remedy_helps(
    text: str, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        run.stage("iter_0/select", "inputs").finish()
    (root / "recipe.yaml").write_text(text)
    for use in (lambda: read_recipe(root), lambda: RunDir(root, recipe()).__enter__()):
        with pytest.raises(UsageError, match=r"recipe\.yaml:.*remove it and give") as said:
            use()
        assert "\n" not in str(said.value)
    (root / "recipe.yaml").unlink()
    with RunDir(root, recipe()) as run:
        assert run.stage("iter_0/select", "inputs").done


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"attempts": {}}', '{"attempts": [1]}', '{"attempts": [{"devices": {}}]}', "\0"],
)
def test_provenance_of_a_wrong_kind_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(text)
    if text == '{"attempts": {}}':
        assert not read_attempts(tmp_path)
        return
    with pytest.raises(StageError, match=r"provenance.json: cannot be read .*remove it") as said:
        read_attempts(tmp_path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("text", ["", "[]", '{"runs": 3}', '{"stages": ["a"'])
def test_plan_that_cannot_be_read_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    for use in (read_outline, read_folder):
        with pytest.raises(StageError, match=r"plan\.json: cannot be read .*remove it"):
            use(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"models": 3}', '{"models": [{}]}', '{"costs": [{"label": 1}]}']
)
def test_results_of_a_wrong_kind_are_one_line(text: str, tmp_path: Path) -> None:
    root = made.baselines(tmp_path / "out")
    (root / "results.json").write_text(text)
    with pytest.raises(
        StageError, match=r"results\.json: is not the JSON of an evaluation"
    ) as said:
        open_runs([root])
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("text", ["", "[]", '{"n_done": 1', '{"n_done": "x"}'])
def test_damaged_progress_is_no_progress(text: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        stage = run.stage("iter_0/train", "inputs")
        (stage.path / "progress.json").write_text(text)
        assert read_status(root).share is None
        row = {"n_done": 1, "n_total": 4, "unit": "steps", "loss": 1.0, "tokens_per_s": 2.0}
        (stage.path / "progress.json").write_text(json.dumps(row))
        assert read_status(root).share == 0.25


@pytest.mark.parametrize("what", ["file", "dangling link", "loop", "missing", "empty"])
def test_what_is_no_run_directory_is_refused_by_reading_commands(what: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.write_text("")
    elif what == "dangling link":
        place.symlink_to("nowhere")
    elif what == "loop":
        place.symlink_to(place)
    elif what == "empty":
        place.mkdir()
    for use in (read_status, lambda path: open_runs([path]), find_models):
        with pytest.raises(UsageError) as said:
            use(place)
        assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("logs", "file"), ("LOCK", "folder"), ("recipe.yaml", "folder"), ("metrics.jsonl", "folder")],
)
def test_what_stands_in_the_place_of_a_runs_own_file_is_one_line(
    name: str, kind: str, tmp_path: Path
) -> None:
    place = tmp_path / "run" / name
    place.parent.mkdir()
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
    with pytest.raises(StageError, match="move it away") as said:
        with RunDir(tmp_path / "run", recipe()) as run:
            run.write_metrics()
    assert str(place) in str(said.value)
    assert "\n" not in str(said.value)


def test_run_directory_that_is_removed_under_a_run_is_one_line(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        stage = run.stage("iter_0/select", "inputs")
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(StageError, match="its folder does not exist"):
            stage.finish()
    with pytest.raises(StageError, match=r"none/table\.csv.*its folder does not exist; make it"):
        write_text(tmp_path / "none/table.csv", "a")
