"""Files and folders of another user: one line with status 2, nothing written, nothing lost.

Root may read and write everything, so where the tests run as root a command is given to a process
that has laid that power down.
"""

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import command
from tests.fake_runs import results, run
from tests.fakes import fake_environment

_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # capabilities(7)
_VERSION = 0x20080522


def _lay_powers_down() -> None:
    """Give up for good what lets this process pass permissions; OSError where that is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, of 32 powers, twice
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for index in range(3):
        sets[index] &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def as_user(program: str, *words: str, cwd: Path) -> tuple[int, str, str]:
    """Do what ``command`` does in a process that permissions hold for; skipped where there is none.

    Its servers and trainings have all powers again, as any program that root starts.
    """
    read_fd, write_fd = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            _lay_powers_down()
            (cwd / ".closed").mkdir(mode=0o000)
            has_none = not os.access(cwd / ".closed", os.R_OK)
            (cwd / ".closed").rmdir()
            said = command(program, *words, cwd=cwd) if has_none else (-1, "", "root may all")
        except BaseException as error:  # noqa: BLE001  it is told to the parent
            said = (-2, "", repr(error))
        with os.fdopen(write_fd, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd) as file:
        status, out, err = json.load(file)
    os.waitpid(pid, 0)
    assert status != -2, err
    if status == -1:
        pytest.skip(f"permissions hold for nobody here: {err}")
    return status, out, err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("made")
    run(folder, fake_environment(folder), "iterations=1", "cold_start=null")
    return folder


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that may not be entered."""
    place = tmp_path / "closed"
    place.mkdir(mode=0o000)
    yield place
    place.chmod(0o700)


@pytest.fixture
def fixed(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that may be read and not be written to."""
    place = tmp_path / "fixed"
    place.mkdir(mode=0o500)
    yield place
    place.chmod(0o700)


def refused(*words: str, cwd: Path) -> str:
    """Return the one line by which a command is refused."""
    status, out, err = as_user(*words, cwd=cwd)
    assert (status, out) == (2, ""), err
    (line,) = err.splitlines()
    return line


def _training(made: Path, *words: str) -> tuple[str, ...]:
    env = str(made / "fake_env")
    return ("sft", "--config", str(made / "recipe.yaml"), "--vllm-env", env, "--train-env", env,
            "iterations=1", "cold_start=null", "--quiet", *words)  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("optima", "status", "PLACE"),
        ("optima", "report", "PLACE"),
        ("optima", "view", "PLACE"),
        ("optima", "rows", "PLACE"),
        ("optima", "compare", "RUN", "PLACE"),
        ("optima", "rescore", "PLACE", "reward.lambda_token=0.3"),
        ("optima", "export", "PLACE", "--output", "log"),
        ("optima", "export", "RUN", "--output", "PLACE"),
        ("optima", "report", "RUN", "--output", "PLACE"),
        ("optima", "compare", "RUN", "RUN:base", "--csv", "PLACE.csv"),
        ("optima", "chat", "PLACE"),
        ("optima", "recipes", "--dir", "PLACE"),
        ("optima", "recipes", "show", "PLACE"),
        ("optima", "doctor", "--config", "PLACE"),
        ("optima", "pairs", "--run", "PLACE"),
        ("infer", "--model", "PLACE", "--task", "two_hop", "--output", "out"),
        ("infer", "--model-root", "PLACE", "--task", "two_hop", "--output", "out"),
        ("infer", "--model", "RUN", "--output", "PLACE"),
        ("training", "--run-dir", "PLACE"),
        ("training", "--run-dir", "PLACE", "--dry-run"),
        ("training", "--run-dir", "r", "--vllm-env", "PLACE"),
        ("training", "--run-dir", "r", "model.path=PLACE"),
        ("training", "--run-dir", "r", "model.loss_path=PLACE"),
        ("training", "--run-dir", "r", "sampling.format_pool_path=PLACE"),
    ],
)
def test_what_lies_in_a_folder_that_may_not_be_entered(
    words: tuple[str, ...], made: Path, closed: Path, tmp_path: Path
) -> None:
    place = closed / "place"
    words = tuple(w.replace("PLACE", str(place)).replace("RUN", str(made / "run")) for w in words)
    if words[0] == "training":
        words = (*_training(made), *words[1:])
    line = refused(*words, cwd=tmp_path)
    assert f" may not enter {closed}); give it, or give another" in line
    assert str(place)[:40] in line
    assert "run again" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["closed"]


def test_folder_of_recipes_that_may_not_be_read_is_not_called_empty(
    closed: Path, tmp_path: Path
) -> None:
    line = refused("optima", "recipes", "--dir", str(closed), cwd=tmp_path)
    assert line == f"optima: {closed}: no permission; give it, or give another directory"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("report", "RUN", "--output", "FIXED/out"), "--output FIXED/out: no permission; give it"),
        (("export", "RUN", "--output", "FIXED/out"), "--output FIXED/out: no permission; give it"),
        (("compare", "RUN", "RUN:base", "--csv", "FIXED/t.csv"),
         "--csv: FIXED/t.csv: its folder cannot be written to; give another"),
        (("pairs", "--run", "RUN", "--out", "FIXED/t.jsonl"),
         "--out: FIXED/t.jsonl: its folder cannot be written to; give another"),
    ],
)  # fmt: skip
def test_output_into_a_folder_that_may_not_be_written_to(
    words: tuple[str, ...], said: str, made: Path, fixed: Path, tmp_path: Path
) -> None:
    words = tuple(w.replace("FIXED", str(fixed)).replace("RUN", str(made / "run")) for w in words)
    line = refused("optima", *words, cwd=tmp_path)
    assert line.startswith(f"optima: {said.replace('FIXED', str(fixed))}")


def test_run_of_another_user_is_read_and_not_resumed(
    made: Path, fixed: Path, tmp_path: Path
) -> None:
    before, folders = results(made / "run"), [made / "run", *(made / "run").rglob("*")]
    modes = {path: path.stat().st_mode for path in folders}
    for path in folders:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        root = str(made / "run")
        for words in (
            ("status", root), ("rows", root), ("compare", root, f"{root}:base"),
            ("rescore", root, "reward.lambda_token=0.3"), ("report", root, "--output", "report"),
        ):  # fmt: skip
            assert as_user("optima", *words, cwd=tmp_path)[0] == 0
        line = refused("optima", "report", root, cwd=tmp_path)
        assert line.startswith(f"optima: --output {root}/report: no permission; give it, or give")
        for words in (("--run-dir", root), ("--run-dir", root, "--dry-run")):
            line = refused(*_training(made, *words), cwd=tmp_path)
            assert line == f"optima: --run-dir {root}: {root} cannot be written to; give another"
        status, _, err = as_user(
            "infer", "--model", root, "--output", "out", "--vllm-env", str(made / "fake_env"),
            cwd=tmp_path,
        )  # fmt: skip
        assert status == 0, err
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert results(made / "run") == before


@pytest.mark.parametrize("name", ["LOCK", "logs", "evaluate"])
def test_what_a_resumed_run_will_write_to_is_checked_before_it_begins(
    name: str, made: Path, tmp_path: Path
) -> None:
    path = made / "run" / name
    mode = path.stat().st_mode
    path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        for words in ((), ("--dry-run",)):
            line = refused(*_training(made, "--run-dir", f"{made}/run", *words), cwd=tmp_path)
            assert line == (
                f"optima: --run-dir {made}/run: {path} cannot be written to; give another"
            )
    finally:
        path.chmod(mode)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recipe.yaml", ("status",)),
        ("iter_0", ("status",)),
        ("iter_0/train/DONE.json", ("compare", "RUN:base")),
        ("evaluate/iter_0/talk/conversations.jsonl", ("report", "--output", "report")),
        ("iter_0/train/rows.jsonl", ("rows",)),
        ("problems", ("rescore", "reward.lambda_token=0.3")),
    ],
)
def test_file_of_a_run_that_may_not_be_read_is_named(
    name: str, words: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    path = made / "run" / name
    if not path.exists():
        path = next((made / "run/iter_0").rglob("rows.jsonl"))
    mode = path.stat().st_mode
    path.chmod(0o000)
    try:
        root = str(made / "run")
        rest = (word.replace("RUN", root) for word in words[1:])
        line = refused("optima", words[0], root, *rest, cwd=tmp_path)
    finally:
        path.chmod(mode)
    assert line.startswith(f"optima: {path}")
    assert line.endswith("; give it, or give another directory")


def test_model_is_not_fetched_into_a_folder_that_may_not_be_entered(
    closed: Path, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=r"SystemExit\(2\)"):
        as_user("fetch-model", "smollm2-135m-instruct", str(closed / "model"), cwd=tmp_path)
