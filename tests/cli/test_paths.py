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
from optima.records import check_path
from optima.runs.directory import RunDir

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
