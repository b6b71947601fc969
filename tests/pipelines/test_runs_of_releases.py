"""A run that the release of 2026-11-27 made over the stand-ins goes on, and is not made again.

The archive holds a run of iSFT-DPO with a cold start and selection by influence (every kind of
stage), and the votes of its last model; their rows are made up. It was made by the code of that
release in a folder of its own, from ``recipe.yaml`` with relative paths.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from optima.pipelines.context import Model
from optima.pipelines.infer import run_inference
from optima.plan import plan
from optima.prompts.rendering import TEMPLATE_DIR
from optima.recipe.loading import load_recipe
from optima.types import ModelRef
from tests.commands import TIMEOUT_S
from tests.fakes import commands, fake_environment
from tests.pipelines.runs import ROOT, results

ARCHIVE = ROOT / "tests/data/runs/release_2026_11_27.tar.gz"
KINDS = {
    *("problems", "script", "train", "talk", "score", "rank", "generate", "select", "probe"),
    *("search", "pairs", "rows", "selected"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the release's run, its votes, and what they were made from."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    fake_environment(tmp_path)
    return tmp_path


def _optima(folder: Path, command: str, *argv: str) -> None:
    environment = str(folder / "fake_env")
    called = [sys.executable, "-m", "optima.cli", command, "--config", "recipe.yaml", *argv]
    called += ["--vllm-env", environment]
    done = subprocess.run(
        called, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _go_on(folder: Path) -> None:
    _optima(folder, "sft_dpo", "--run-dir", "run", "--train-env", str(folder / "fake_env"))


def _started(folder: Path) -> list[str]:
    """Return the modules that were started as processes of the environments."""
    argvs = commands(fake_environment(folder))
    return [argv[1] for argv in argvs if argv[0] == "-m"]


def _files(root: Path) -> dict[str, bytes]:
    """Return what stages wrote, without the markers of their inputs."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.parent != root)
    kept = (path for path in paths if "logs" not in path.parts and path.name != "INPUTS")
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def test_archive_holds_every_kind_of_stage(folder: Path) -> None:
    assert {path.parent.name for path in (folder / "run").rglob("DONE.json")} == KINDS
    assert (folder / "votes/model/groups/DONE.json").is_file()


def test_stages_of_a_run_are_the_steps_of_its_plan(folder: Path) -> None:
    root = folder / "run"
    steps = {step.name for step in plan(load_recipe(folder / "recipe.yaml"))}
    assert {str(path.parent.relative_to(root)) for path in root.rglob("DONE.json")} == steps


def test_finished_run_of_the_release_is_found_finished(folder: Path) -> None:
    before = _files(folder / "run")
    _go_on(folder)
    assert _files(folder / "run") == before
    assert _started(folder) == []


def test_finished_votes_of_the_release_are_found_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _files(folder / "votes")
    monkeypatch.chdir(folder)
    overrides = ["evaluation.n_samples=2", "evaluation.temperature=0.5", "reward.lambda_loss=0.0"]
    recipe = load_recipe(Path("recipe.yaml"), overrides)
    model = Model("model", ModelRef(path="model"), "0123456789abcdef")
    env = fake_environment(folder)
    run_inference(recipe, [model], Path("votes"), vllm_env=env, is_grouped=True)
    assert _files(folder / "votes") == before
    assert _started(folder) == []


def test_run_that_the_release_left_in_a_stage_goes_on_from_there(folder: Path) -> None:
    before = results(folder / "run")
    for name in ("iter_0_dpo/train", "evaluate/iter_0_dpo"):
        shutil.rmtree(folder / "run" / name)
    talk = folder / "run/iter_0_sft/generate"
    (talk / "DONE.json").unlink()  # the marker of its inputs and its conversations stay
    _go_on(folder)
    assert results(folder / "run") == before
    assert "accelerate.commands.launch" in _started(folder)
    assert not list((folder / "run").rglob("*superseded*"))


def test_template_of_a_run_makes_anew_what_is_told_by_it_and_any_other_nothing(
    folder: Path,
) -> None:
    own = folder / "prompts"
    own.mkdir()
    for name in ("information_exchange", "solver"):
        shutil.copy(TEMPLATE_DIR / f"{name}.txt", own)

    def go_on() -> None:
        options = ("--run-dir", "own", "--train-env", str(folder / "fake_env"))
        changes = ("method=sft", "search=null", "pairs=null", "cold_start=null")
        _optima(folder, "sft", *options, *changes, "conversation.prompts=prompts")

    go_on()
    before, n_started = _files(folder / "own"), len(_started(folder))
    (own / "solver.txt").write_text("Solve {{ question }}")  # a template of debates
    go_on()
    assert _files(folder / "own") == before
    assert len(_started(folder)) == n_started
    (own / "information_exchange.txt").write_text("Find {{ question }}")
    go_on()
    for name in ("iter_0/generate", "evaluate/base/talk"):
        aside = folder / "own" / f"{name}.superseded-1/DONE.json"
        assert aside.read_bytes() == before[f"{name}/DONE.json"]
    assert (folder / "own/problems/DONE.json").read_bytes() == before["problems/DONE.json"]
