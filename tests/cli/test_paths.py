"""Directories and files that can be none are refused at once, by every command in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from optima.cli.inference import infer, multi_sc
from optima.cli.main import main
from optima.cli.training import sft
from optima.errors import UsageError
from optima.recipe.schema import ModelSection, Recipe
from optima.records import RecordAppender, check_path, write_text
from optima.runs.directory import RunDir
from optima.runs.files import write_members
from optima.types import Message
from tests.commands import command as run_command

WRONG = {
    "": "is empty",
    " ": "is empty",
    "runs/x\n": "line break",
    "runs/\0x": "control character",
    "runs/\x1b[31m": "control character",
    os.fsdecode(b"runs/\xff\xfe"): "not UTF-8",
    "runs/" + 256 * "x": "over 255 bytes",
    "runs/" + 128 * "é": "over 255 bytes",
    20 * ("x" * 200 + "/") + "y": "over 3840 bytes",
}


@pytest.mark.parametrize(("text", "reason"), WRONG.items())
def test_name_that_can_be_none_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason) as said:
        check_path(text, "--run-dir")
    assert len(str(said.value).splitlines()) == 1
    assert len(str(said.value)) < 150
    str(said.value).encode()  # can be printed
    if text.strip():
        recipe = Recipe(method="sft", task="arc", model=ModelSection(path="m"))
        with pytest.raises(UsageError, match=reason), RunDir(Path(text), recipe):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["runs/x", "/tmp/a b", "./ü", 255 * "x", "."])
def test_unusual_names_are_taken(text: str) -> None:
    check_path(text, "--run-dir")


@pytest.mark.parametrize("text", ["", "x\n", os.fsdecode(b"\xff"), 256 * "x"])
@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (sft, ["--config", "r.yaml", "--run-dir"]),
        (sft, ["--config", "r.yaml", "--output_path"]),
        (infer, ["--model", "m", "--output"]),
        (infer, ["--output", "o", "--model-root"]),
        (infer, ["--output", "o", "--model"]),
        (multi_sc, ["--model", "m", "--output"]),
        (main, ["sweep", "--config", "r.yaml", "--over", "seed=1,2", "--run-dir"]),
        (main, ["ablate", "--config", "r.yaml", "--run-dir"]),
        (main, ["try", "--config", "r.yaml", "--output"]),
        (main, ["baselines", "--model", "m", "--task", "arc", "--output"]),
        (main, ["baselines", "--output", "o", "--run"]),
        (main, ["baselines", "--output", "o", "--control-dir"]),
        (main, ["pairs", "--run"]),
        (main, ["pairs", "--run", "r", "--out"]),
        (main, ["compare"]),
        (main, ["compare", "a", "b", "--csv"]),
        (main, ["status"]),
        (main, ["report"]),
        (main, ["report", "r", "--output"]),
        (main, ["view"]),
        (main, ["recipes", "--dir"]),
    ],
)
def test_every_command_refuses_it_in_one_line(
    command: Callable[[list[str]], int], argv: list[str], text: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert command([*argv, text]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("optima: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["status"], ["report"], ["compare"], ["pairs", "--run"]])
def test_link_to_itself_is_refused(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    status, _, err = run_command("optima", *command, "loop", cwd=tmp_path)
    assert status == 2
    assert "loop: is a link to itself" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rescore", "RUN", "--metric", ""], "--metric: '': is empty"),
        (["rescore", "RUN", "--metric="], "--metric: '': is empty"),
        (["rescore", "RUN", "--metric", "f1\n"], r"--metric: 'f1\n': has a line break"),
        (["doctor", "--vllm-env", "a\nb"], r"--vllm-env: 'a\nb': has a line break"),
        (["report", "RUN", "--output", "a", "--output", "b"], "--output: is given twice"),
        (["report", "RUN", "--output=a", "--output=b"], "--output: is given twice"),
        (["rescore", "RUN", "--metric", "f1", "--metric", "math"], "--metric: is given twice"),
        (["chat", "RUN", "--task", "arc", "--task", "math"], "--task: is given twice"),
        (["compare", "RUN:"], "RUN:: names no model behind its colon; write RUN:MODEL"),
        (["rows", "RUN:"], "RUN:: names no model behind its colon; write RUN:MODEL"),
        (["sweep", "--over", "seed=1,2", "--over", "iterations=1,2"], "--over: is given twice"),
        (["compare", "RUN", "--csv", "."], "--csv: .: is a directory; name a file in it"),
        (["compare", "RUN", "--csv", "a/b"], "--csv: a/b: its folder does not exist"),
        (["pairs", "--run", "RUN", "--out", "."], "--out: .: is a directory; name a file in it"),
    ],
)
def test_words_that_say_nothing_or_too_much_are_refused(
    words: list[str], said: str, tmp_path: Path
) -> None:
    status, out, err = run_command("optima", *words, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith(f"optima: {said}")
    assert len(err.splitlines()) == 1


def test_home_is_written_out_behind_an_option_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, _, err = run_command("optima", "recipes", "--dir=~/mine")
    assert f"--dir {tmp_path}/mine: holds no recipe" in err
    (tmp_path / "r.yaml").write_text("method: sft\ntask: two_hop\nmodel: {path: ~/m}\n")
    words = ("recipes", "show", "~/r.yaml", "model.tokenizer=~/t", "cold_start=~")
    status, out, _ = run_command("optima", *words)
    assert status == 0
    assert f"path: {tmp_path}/m\n" in out
    assert f"tokenizer: {tmp_path}/t\n" in out
    assert "cold_start: null\n" in out


def test_what_is_no_file_is_written_into_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "said\n")
    assert os.read(reader, 100) == b"said\n"
    record = Message(role="user", content="said")
    with RecordAppender(pipe) as appender:
        appender.append(record)
    assert os.read(reader, 100) == record.model_dump_json().encode() + b"\n"
    with RecordAppender(Path("/dev/null")) as appender:
        appender.append(record)
    os.close(reader)
    assert pipe.is_fifo()
    with (tmp_path / "file").open("w") as file:  # as a shell redirects /dev/stdout
        write_text(Path(f"/proc/self/fd/{file.fileno()}"), "said\n")
    assert (tmp_path / "file").read_text() == "said\n"


@pytest.mark.parametrize("name", ["recipe.yaml", "results.json", "plan.json"])
def test_run_writes_over_no_file_of_a_user(name: str, tmp_path: Path) -> None:
    recipe = Recipe(method="sft", task="arc", model=ModelSection(path="m"))
    (tmp_path / name).write_text("mine\n")
    for _ in range(2):
        with (
            pytest.raises(UsageError, match=f"holds {name}, which would be written over"),
            RunDir(tmp_path, recipe),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine\n"
    (tmp_path / name).rename(tmp_path / "moved")  # the remedy
    for _ in range(2):  # a run that was only opened is opened again
        with RunDir(tmp_path, recipe):
            pass


def test_folder_of_runs_is_no_run_itself(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: sft\n")
    with pytest.raises(UsageError, match="is a run, or holds its recipe; give a folder"):
        write_members(tmp_path, ("a", "b"))
    assert not (tmp_path / "plan.json").exists()
