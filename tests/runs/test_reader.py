"""A run read from Python."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import optima
from optima.errors import StageError, UsageError
from optima.processes.environment import Environment
from tests.fake_runs import run as run_command
from tests.fakes import fake_environment


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an SFT and an iSFT-DPO run over fakes, one iteration each."""
    folder = tmp_path_factory.mktemp("read")
    environment: Environment = fake_environment(folder)
    for method in ("sft", "sft_dpo"):
        run_command(folder, environment, "iterations=1", run=method, method=method)
    return {method: folder / method for method in ("sft", "sft_dpo")}


def test_run_tells_its_models_in_the_order_in_which_they_were_made(runs: dict[str, Path]) -> None:
    run = optima.open_run(runs["sft_dpo"])
    assert run.recipe.method == "sft_dpo"
    assert list(run.models) == ["cold_start", "iter_0_sft", "iter_0_dpo"]
    assert run.evaluated == ("base", "cold_start", "iter_0_sft", "iter_0_dpo")
    for label, model in run.models.items():
        assert Path(model.place) == (runs["sft_dpo"] / label / "train/model")
    assert run.metrics["problems"]["problems/test"] == 3
    assert run.stages[0].stage == "problems"


def test_evaluation_joins_problem_conversation_and_reward(runs: dict[str, Path]) -> None:
    run = optima.open_run(str(runs["sft"]))
    judged = list(run.evaluation("iter_0"))
    assert {one.problem.problem_id for one in judged} == set(run.problems("test"))
    for one in judged:
        assert one.conversation.problem_id == one.reward.problem_id == one.problem.problem_id
        assert one.conversation.n_tokens == one.reward.n_tokens
    mean = statistics.mean(one.reward.task for one in judged)
    assert mean == pytest.approx(run.metrics["evaluate/iter_0/rank"]["reward/task"])


def test_selected_are_the_best_candidates_of_their_problems(runs: dict[str, Path]) -> None:
    run = optima.open_run(runs["sft"])
    candidates = list(run.candidates("iter_0"))
    assert len(candidates) == 8 * 3  # problems of an iteration, samples of each
    selected = list(run.selected("iter_0"))
    assert len(selected) == run.metrics["iter_0/select"]["selected/problems"] > 0
    for one in selected:
        rivals = [c for c in candidates if c.problem == one.problem and c.reward.is_eligible]
        assert one.reward.total == max(c.reward.total for c in rivals if c.reward.total is not None)


def test_trees_and_their_pairs_are_read(runs: dict[str, Path]) -> None:
    run = optima.open_run(runs["sft_dpo"])
    trees = {tree.problem_id for tree in run.trees("iter_0_dpo")}
    assert len(trees) == 6
    pairs = list(run.pairs("iter_0_dpo"))
    assert pairs
    assert {pair.problem_id for pair in pairs} <= trees


def test_frame_has_a_row_for_each_conversation(runs: dict[str, Path]) -> None:
    run = optima.open_run(runs["sft"])
    frame = run.to_frame("base")
    judged = list(run.evaluation("base"))
    assert list(frame["score"]) == [one.reward.task for one in judged]
    assert list(frame["tokens"]) == [one.conversation.n_tokens for one in judged]
    assert frame["text"][0].startswith("Alice:")


def test_what_is_not_there_is_said_in_one_line_with_what_is(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        optima.open_run(tmp_path)
    run = optima.open_run(runs["sft"])
    with pytest.raises(UsageError, match="no iter_9; it has base, cold_start, iter_0"):
        list(run.evaluation("iter_9"))
    with pytest.raises(UsageError, match="has not finished iter_0/search; finished are problems"):
        list(run.trees("iter_0"))


def test_damaged_file_of_a_stage_is_noticed_when_it_is_read(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs["sft"], tmp_path / "run")
    path = tmp_path / "run/evaluate/iter_0/rank/rewards.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0]) | {"task": 0.123}
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    run = optima.open_run(tmp_path / "run")
    with pytest.raises(StageError, match=r"rewards\.jsonl"):
        list(run.evaluation("iter_0"))
    assert list(run.evaluation("base"))


def test_importing_optima_alone_imports_nothing_heavy() -> None:
    code = "import optima, sys; print(any(name.startswith('optima.') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = optima.nothing
