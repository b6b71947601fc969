import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from optima.errors import RunBusyError, StageError, UsageError
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.records import (
    RecordAppender,
    disk_errors,
    make_folder,
    read_records,
    repair_tail,
    write_records,
    write_text,
)
from optima.runs.directory import RunDir
from optima.runs.layout import read_attempts
from optima.types import Fact


def recipe(**changes: object) -> Recipe:
    base = Recipe(method="sft", task="arc", model=ModelSection(path="m"))
    return base.model_copy(update=changes)


def test_finished_stage_is_skipped_and_unfinished_one_keeps_its_files(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        stage = run.stage("iter_0/generate", "inputs")
        write_text(stage.path / "out.txt", "made")
        assert stage.done is None
        assert run.stage("iter_0/generate", "inputs").done is None
        assert (stage.path / "out.txt").exists()
        stage.finish([stage.path / "out.txt"], {"tokens": 3.0})
    with RunDir(tmp_path / "run", recipe()) as run:
        again = run.stage("iter_0/generate", "inputs")
        assert again.done is not None
        assert again.metrics == {"tokens": 3.0}
        assert again.digest == stage.digest


def test_account_of_a_stage_counts_every_attempt(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        stage = run.stage("iter_0/generate", "inputs")
        stage.count_unkept(30)
        time.sleep(0.2)
    with RunDir(tmp_path / "run", recipe()) as run:
        stage = run.stage("iter_0/generate", "inputs")
        assert stage.before.n_tokens == 30
        assert stage.before.seconds >= 0.2
        stage.count_unkept(60)
        time.sleep(0.2)
        stage.count_unkept(-50)  # a record has them
        stage.finish(metrics={"tokens/generated": 60.0})
        assert stage.done is not None
        assert 0.4 <= stage.done.seconds < 10
        assert stage.metrics["tokens/discarded"] == 40.0  # of 30 + 60 generated 50 are kept
    assert not (stage.path / "SPENT.json").exists()
    with RunDir(tmp_path / "run", recipe()) as run:
        assert run.stage("iter_0/generate", "inputs").done == stage.done
        other = run.stage("iter_0/generate", "other inputs")
        assert other.before.seconds == 0


def test_account_of_a_killed_owner_is_at_most_a_second_old(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.runs.test_directory import recipe;"
        "from optima.runs.directory import RunDir\n"
        "with RunDir(Path(sys.argv[1]), recipe()) as run:\n"
        "    run.stage('s').count_unkept(7); print('begun', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"begun\n"
    time.sleep(2.5)
    owner.kill()
    owner.wait(timeout=10)
    owner.stdout.close()
    with RunDir(tmp_path / "run", recipe()) as run:
        before = run.stage("s").before
        assert 1.0 <= before.seconds < 10
        assert before.n_tokens == 7


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_run_directory_that_cannot_be_one_is_a_usage_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--run-dir .*file.*: cannot be a directory"):
        with RunDir(tmp_path / place, recipe()):
            pass


def test_run_in_a_model_or_between_the_stages_of_another_run_is_refused(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        run.stage("iter_0/rank", "inputs").finish()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    for place, what in (
        ("config.json", "a model"), ("model.safetensors", "a model"),
        ("run/iter_0", "stages of another run"), ("run/iter_0/rank", "stages of another run"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as said, RunDir(tmp_path / place, recipe()):
            pass
        assert str(said.value) == (
            f"{tmp_path / place}: holds {what}, where a run has a directory of its own; give "
            "another"
        )
        assert not (tmp_path / place / "LOCK").exists()
    with RunDir(tmp_path / "run/results", recipe()) as run:  # beside the stages is room
        assert run.attempt == 1


@pytest.mark.parametrize("below", ["file", "file/in", "gone"])
def test_folder_that_can_be_none_is_refused_by_its_option(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(UsageError, match=r"^--output .*: cannot be a directory \(.+\); give"):
        make_folder(tmp_path / below, "--output")
    make_folder(tmp_path / "new" / "folder", "--output")
    assert (tmp_path / "new" / "folder").is_dir()


def test_stage_made_from_other_inputs_starts_over(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        stage = run.stage("s", "old")
        write_text(stage.path / "out.txt", "old")
        stage.finish([stage.path / "out.txt"])
        assert run.stage("s", "new").done is None
        assert not (stage.path / "out.txt").exists()
        unfinished = run.stage("t", "old").path / "half.txt"
        unfinished.write_text("half")
        run.stage("t", "new")
        assert not unfinished.exists()


def test_stage_that_an_older_release_made_is_found_once_and_named_anew(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        made = run.stage("s", "old text")
        (made.path / "out.txt").write_text("made")
        made.finish([made.path / "out.txt"])
        (run.stage("begun", "old text").path / "half.txt").write_text("half")
    with RunDir(root, recipe()) as run:
        assert run.stage("s", "n=1", older=[("another",), ("old text",)]).done == made.done
        assert run.stage("begun", "n=1", older=[("another",), ("old text",)]).done is None
        assert (root / "begun/half.txt").read_text() == "half"
    with RunDir(root, recipe()) as run:  # what the old text depends on may change from now on
        assert run.stage("s", "n=1", older=[("another",)]).done == made.done
        run.stage("begun", "n=1", older=[("another",)]).finish()
        assert (root / "begun/half.txt").read_text() == "half"
    with RunDir(root, recipe()) as run:
        assert run.stage("s", "n=2", older=[("another",)]).done is None
        assert (root / "s.superseded-1/out.txt").read_text() == "made"
        assert run.stage("s", "n=2").done is None
        assert not (root / "s.superseded-2").exists()


def test_metrics_are_rewritten_from_finished_stages_without_doubles(tmp_path: Path) -> None:
    for _ in range(2):
        with RunDir(tmp_path / "run", recipe()) as run:
            for name in ("b", "a"):
                stage = run.stage(name)
                if not stage.done:
                    stage.finish(metrics={"reward/task": 0.5})
                run.write_metrics()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == ["b", "a"]
    assert json.loads(lines[0])["reward/task"] == 0.5


def test_run_directory_of_another_recipe_is_refused_and_serving_may_differ(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        run.stage("iter_0/generate")
    with RunDir(tmp_path / "run", recipe(serving=ServingSection(concurrency=7))):
        pass
    with (
        pytest.raises(UsageError, match=r"differs in seed\)"),
        RunDir(tmp_path / "run", recipe(seed=5)),
    ):
        pass


def test_a_start_with_wrong_input_does_not_occupy_the_directory(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe(seed=5)) as run:
        run.stage("problems")  # begun, and given up as data.path was wrong
    with RunDir(tmp_path / "run", recipe()) as run:
        assert run.stage("problems").done is None
        run.stage("problems").finish()
    with (
        pytest.raises(UsageError, match="differs in seed"),
        RunDir(tmp_path / "run", recipe(seed=5)),
    ):
        pass


def test_damaged_provenance_is_named(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == []
    (tmp_path / "provenance.json").write_text('{"schema_version": 1, "atte')
    with pytest.raises(StageError, match=r"provenance.json: cannot be read .*remove it"):
        read_attempts(tmp_path)


def test_busy_run_directory_names_its_owner(tmp_path: Path) -> None:
    with (
        RunDir(tmp_path / "run", recipe()),
        pytest.raises(RunBusyError, match=str(os.getpid())),
        RunDir(tmp_path / "run", recipe()),
    ):
        pass
    with RunDir(tmp_path / "run", recipe()) as run:  # free again
        assert run.attempt == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(
            UsageError, match=r"--run-dir .*gives no locks .* give a --run-dir on another"
        ),
        RunDir(tmp_path / "run", recipe()),
    ):
        pass


def test_lock_of_a_killed_owner_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.runs.test_directory import recipe;"
        "from optima.runs.directory import RunDir\n"
        "with RunDir(Path(sys.argv[1]), recipe()):\n"
        "    print('owned', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdout=subprocess.PIPE, cwd=root,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"owned\n"
    with pytest.raises(RunBusyError), RunDir(tmp_path / "run", recipe()):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait(timeout=10)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with RunDir(tmp_path / "run", recipe()):
                return
        except RunBusyError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its owner")


@pytest.mark.parametrize("torn", [b'{"agent":1,"te', b"x" * 200_000])
def test_torn_last_line_is_cut_and_nothing_else(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "records.jsonl"
    facts = [Fact(agent=0, text="one"), Fact(agent=1, text="two")]
    write_records(path, facts)
    with path.open("ab") as file:
        file.write(torn)
    with RecordAppender(path) as appender:
        appender.append(Fact(agent=2, text="three"))
    assert list(read_records(path, Fact)) == [*facts, Fact(agent=2, text="three")]
    assert repair_tail(path) == 0


def test_file_without_any_newline_is_emptied_by_repair(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"half a line")
    assert repair_tail(path) == 11
    assert path.read_bytes() == b""
    assert repair_tail(tmp_path / "none") == 0


def test_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"agent":0,"text":"a"}\n{"agent":"0"}\n')
    with pytest.raises(StageError, match=r"records\.jsonl:2: not a Fact record"):
        list(read_records(path, Fact))


def test_failing_writer_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_text(path, "old")

    def broken() -> Iterator[Fact]:
        yield Fact(agent=0, text="a")
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_records(path, broken())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_clear_error() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as file,
        pytest.raises(StageError, match="the disk is full"),
        disk_errors(Path("/dev/full")),
    ):
        file.write(b"x")
    with pytest.raises(OSError, match="other"), disk_errors(Path("x")):
        raise OSError(errno.EINVAL, "other")
