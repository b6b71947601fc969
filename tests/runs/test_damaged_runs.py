"""A finished run that was damaged: every command that uses a file says so in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optima.cli import main, training
from optima.errors import StageError
from optima.processes.environment import Environment
from optima.reporting.live import LiveReport
from optima.runs.layout import check_model, file_digest
from optima.runs.status import read_status
from optima.types import ModelRef
from tests.fake_runs import results, run
from tests.fakes import fake_environment
from tests.runs.test_outputs import change_one_byte, cut_last_byte, cut_last_line, empty

SHORT = "iterations=2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Environment]:
    """Return a finished run of one iteration of SFT and one of preferences."""
    directory = tmp_path_factory.mktemp("damaged")
    environment = fake_environment(directory)
    run(directory, environment, SHORT, method="dpo")
    return directory, environment


@pytest.fixture
def damaged(finished: tuple[Path, Environment]) -> tuple[Path, list[str]]:
    """Return the run anew, and the words of the command that began it."""
    directory, environment = finished
    kept, root = directory / "kept", directory / "run"
    if not kept.exists():
        shutil.copytree(root, kept)
    shutil.rmtree(root, ignore_errors=True)  # a test may have moved it
    shutil.copytree(kept, root)
    prefix = str(environment.prefix)
    argv = ["--config", str(directory / "recipe.yaml"), SHORT, "--run-dir", str(root)]
    return root, [*argv, "--vllm-env", prefix, "--train-env", prefix]


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("optima: ")]
    assert len(said) == 1
    return said[0]


FILES = (
    "problems/train.jsonl", "problems/test.jsonl", "cold_start/script/rows.jsonl",
    "cold_start/train/result.json", "initial/generate/conversations.jsonl",
    "initial/score/losses.jsonl", "initial/rank/rewards.jsonl", "initial/select/rows.jsonl",
    "initial/train/result.json", "initial/train/logprobs.json", "iter_0/probe/conversations.jsonl",
    "iter_0/search/trees.jsonl", "iter_0/pairs/rows.jsonl", "evaluate/base/rank/rewards.jsonl",
    "evaluate/iter_0/talk/conversations.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [cut_last_line, change_one_byte])
def test_resume_and_report_say_which_file_is_damaged_and_what_helps(
    damage: Callable[[Path], None], file: str, damaged: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    root, argv = damaged
    damage(root / file)
    assert training.dpo([*argv, "--quiet"]) == 1
    assert line_of(capsys).startswith(f"optima: {root / file}: has")
    assert main.main(["report", str(root), "--output", str(tmp_path / "report")]) == 1
    assert line_of(capsys).startswith(f"optima: {root / file}: has")
    assert not (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["pairs", "--run", "RUN"], "iter_0/search/trees.jsonl"),
        (["pairs", "--run", "RUN", "--out", "OUT"], "problems/train.jsonl"),
        (["compare", "RUN:base", "RUN"], "evaluate/base/talk/conversations.jsonl"),
        (["compare", "RUN:base", "RUN"], "evaluate/iter_0/rank/rewards.jsonl"),
        (["status", "RUN"], "initial/select/rows.jsonl"),
    ],
)
def test_commands_that_read_say_which_file_is_damaged(
    command: list[str], file: str, damaged: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    root, _ = damaged
    empty(root / file)
    words = [word.replace("RUN", str(root)).replace("OUT", str(tmp_path / "p")) for word in command]
    assert main.main(words) == 1
    assert line_of(capsys).startswith(f"optima: {root / file}: has")


async def test_view_of_a_damaged_run_says_so_and_serves_on(
    damaged: tuple[Path, list[str]],
) -> None:
    from aiohttp import web

    root, _ = damaged
    report = LiveReport([root])
    empty(root / "initial/rank/rewards.jsonl")
    with pytest.raises(web.HTTPServiceUnavailable) as said:
        await report.content()
    assert "rewards.jsonl: has 0 bytes" in str(said.value.text)


def test_model_that_was_cut_is_not_served_and_its_training_is_done_again_when_moved_away(
    damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, argv = damaged
    before = results(root)
    change_one_byte(root / "initial/train/model/model.safetensors")
    assert training.dpo([*argv, "--quiet"]) == 0  # nothing is served or trained from it
    capsys.readouterr()
    (root / "iter_0/search").rename(tmp_path / "search")
    assert training.dpo([*argv, "--quiet"]) == 1
    assert "initial/train/model/model.safetensors: has changed since it was" in line_of(capsys)
    assert read_status(root).state == "stopped"
    (root / "initial/train").rename(tmp_path / "train")
    assert training.dpo([*argv, "--quiet"]) == 0
    assert results(root) == before


def test_run_ends_in_one_line_where_a_server_has_not_the_trained_weights(
    damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, argv = damaged
    shutil.rmtree(root / "iter_0/search")
    base = root.parent / "model"  # what an old or wrong server may hold
    other = fake_environment(root.parent / "other", server=("--weights", str(base)))
    argv[argv.index("--vllm-env") + 1] = str(other.prefix)
    assert training.dpo([*argv, "--quiet"]) == 1
    said = line_of(capsys)
    assert said.startswith(f"optima: {root}/initial/train/model: server 0 serves another model: ")
    assert f"move {root}/initial/train away and run again" in said
    argv[argv.index("--vllm-env") + 1] = argv[argv.index("--train-env") + 1]
    assert training.dpo([*argv, "--quiet"]) == 0  # the remedy: servers of the right weights


def test_log_probabilities_that_changed_are_noticed_before_the_model_is_served(
    damaged: tuple[Path, list[str]],
) -> None:
    root, _ = damaged
    model = ModelRef(path=str(root / "initial/train/model"))
    check_model(model)
    change_one_byte(root / "initial/train/logprobs.json")
    with pytest.raises(StageError, match=r"train/logprobs\.json: has changed since it was written"):
        check_model(model)


def test_run_that_was_moved_goes_on_from_its_own_models(
    damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, argv = damaged
    moved = tmp_path / "elsewhere"
    before = results(root)
    root.rename(moved)
    shutil.rmtree(moved / "iter_0")
    argv[argv.index("--run-dir") + 1] = str(moved)
    assert training.dpo([*argv, "--quiet"]) == 0, capsys.readouterr().err
    assert {key for key, value in results(moved).items() if before.get(key) != value} == set()


@pytest.mark.parametrize("damage", [empty, cut_last_byte])
def test_half_a_result_of_a_training_that_was_not_finished_is_no_result(
    damage: Callable[[Path], None], damaged: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root, argv = damaged
    before = results(root)
    train = root / "initial/train"
    (train / "DONE.json").unlink()
    damage(train / "result.json")
    assert training.dpo([*argv, "--quiet"]) == 0, capsys.readouterr().err
    assert results(root) == before
    assert not list(root.rglob("*.superseded-*"))


def as_written(stage: Path) -> None:
    """Note what lies in a stage as what it wrote, as where a user made both."""
    done = json.loads((stage / "DONE.json").read_text())
    done["outputs"] = {name: file_digest(stage / name) for name in done["outputs"]}
    done["sizes"] = {name: (stage / name).stat().st_size for name in done["outputs"]}
    del done["checksum"]  # as before the file had one
    (stage / "DONE.json").write_text(json.dumps(done))


@pytest.mark.parametrize(
    ("split", "command"),
    [
        ("test", ["export", "RUN", "--output", "OUT"]),
        ("test", ["compare", "RUN:base", "RUN", "--problems", "9"]),
        ("train", ["rescore", "RUN"]),
        ("train", ["pairs", "--run", "RUN", "--out", "OUT"]),
    ],
)
def test_problem_that_is_missing_is_named_wherever_a_record_is_about_it(
    split: str, command: list[str], damaged: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    root, _ = damaged
    file = root / f"problems/{split}.jsonl"
    empty(file)
    as_written(root / "problems")
    words = [word.replace("RUN", str(root)).replace("OUT", str(tmp_path / "o")) for word in command]
    assert main.main(words) == 1
    said = line_of(capsys)
    assert said.startswith(f"optima: {file}: has no problem 'two_hop-")
    assert f"move {root / 'problems'} away and run again" in said


def test_rewards_of_other_conversations_are_not_taken_for_theirs(
    damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = damaged
    file = root / "evaluate/base/rank/rewards.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*rest, first]))
    as_written(file.parent)
    for words in (["compare", f"{root}:base"], ["rescore", str(root)]):
        assert main.main(words) == 1
        assert f"{file}: has not one record for each conversation" in line_of(capsys)


@pytest.mark.parametrize(
    "file", ["plan.json", "problems/DONE.json", "problems/INPUTS", "results.json"]
)
def test_link_to_itself_in_a_run_is_one_line_at_most(
    file: str, damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = damaged
    (root / file).unlink(missing_ok=True)
    (root / file).symlink_to(Path(file).name)
    for words in (["status", str(root)], ["compare", str(root)], ["rescore", str(root)]):
        main.main(words)
        assert len(capsys.readouterr().err.splitlines()) <= 1


@pytest.mark.parametrize(
    "file", ["recipe.yaml", "provenance.json", "problems/DONE.json", "problems/INPUTS"]
)
def test_file_that_a_disk_does_not_give_is_no_damage_to_be_moved_away(
    file: str, damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, argv = damaged
    kept = (root / file).rename(root.parent / "whole")
    (root / file).symlink_to("/proc/self/mem")  # where reading is an input/output error
    assert training.dpo([*argv, "--quiet"]) == 1
    said = line_of(capsys)
    assert said.startswith(f"optima: {root / file}: the disk gives an input/output error; check it")
    assert not list(root.rglob("*superseded*"))
    (root / file).unlink()
    kept.rename(root / file)
    assert training.dpo([*argv, "--quiet"]) == 0
