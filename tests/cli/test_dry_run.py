"""--dry-run of the training commands: the plan, and what stops it."""

import json
import sys
from pathlib import Path

import pytest

from optima.cli import dpo, sft_dpo
from optima.cli.sft import main

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


def arguments(folder: Path, *overrides: str, method: str = "sft") -> list[str]:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    python = sys.executable
    recipe = RECIPES / method / "quickstart.yaml"
    argv = ["--config", str(recipe), "--dry-run", "--run-dir", str(folder / "run"), "--quiet"]
    argv += ["--vllm-env", python, "--train-env", python]
    return [*argv, f"model.path={model}", "serving.device=cpu", *overrides]


def test_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "data.n_train=5", "sampling.n_samples=3", "iterations=2")) == 0
    out = capsys.readouterr().out
    assert "iter_0/generate by cold_start: 5 problems x 3 = 15 conversations" in out
    assert "iter_1/train from iter_0" in out
    assert "vllm.entrypoints.openai.api_server" in out
    assert "optima.training.sft --job" in out
    assert not (tmp_path / "run").exists()


def test_dry_run_refuses_a_window_the_model_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "model.max_model_len=4096")) == 2
    assert "model.max_model_len: 4096" in capsys.readouterr().err


def test_dry_run_refuses_missing_data(tmp_path: Path) -> None:
    missing = [f"data.path={tmp_path}/none", "task=gsm8k"]
    assert main(arguments(tmp_path, *missing)) == 2


def test_plan_of_influence_counts_its_trials_and_needs_problems_without_a_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("pairs.strategy=influence", "pairs.influence={n_groups: 3, n_problems: 8}")
    assert dpo.main(arguments(tmp_path, *some, "search.n_problems=5", method="dpo")) == 0
    # 8 problems before and after each of 3 trainings
    assert "iter_0/influence: 32 conversations by trials" in capsys.readouterr().out
    assert dpo.main(arguments(tmp_path, *some, "search.n_problems=9999", method="dpo")) == 2
    assert "none is left to measure influence on" in capsys.readouterr().err


def test_servers_leave_room_for_a_scorer_that_only_trees_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ("reward.lambda_loss=0", "search.lambda_loss=1.0")
    assert dpo.main(arguments(tmp_path, *weights, method="dpo")) == 0
    out = capsys.readouterr().out
    assert "scorer on CPU, beside the servers" in out
    assert "conversations, scored while they grow" in out


def test_plan_of_idpo_begins_with_sft_and_counts_every_rollout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("search.n_problems=5", "search.n_rounds=8", "search.n_probe=7", "iterations=2")
    assert dpo.main(arguments(tmp_path, *overrides, method="dpo")) == 0
    out = capsys.readouterr().out
    assert "initial/train from cold_start" in out
    assert "iter_0/probe by initial: 7 conversations" in out
    assert "iter_1/search by iter_0: 5 trees x 8 rounds x 3 = 120 conversations" in out
    assert "iter_1/pairs, iter_1/train from iter_0" in out
    assert "beside the servers" in out
    assert "optima.training.dpo --job" in out
    assert dpo.main(arguments(tmp_path, "initialise=false", method="dpo")) == 0
    assert "initial" not in capsys.readouterr().out.replace("initialise", "")


def test_plan_of_isft_dpo_takes_turns_from_the_model_of_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft_dpo.main(arguments(tmp_path, "iterations=2", method="sft_dpo")) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    trainings = [line for line in lines if "/train from" in line]
    assert trainings == [
        "cold_start/train from base: 44 scripted conversations",
        "iter_0_sft/train from cold_start",
        "iter_0_dpo/pairs, iter_0_dpo/train from iter_0_sft",
        "iter_1_sft/train from iter_0_dpo",
        "iter_1_dpo/pairs, iter_1_dpo/train from iter_1_sft",
    ]
    assert any("optima.training.sft --job" in line for line in lines)
    assert any("optima.training.dpo --job" in line for line in lines)


def test_dry_run_reads_the_preferences_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preferences.jsonl"
    path.write_text("{}\n")
    assert dpo.main(arguments(tmp_path, f"pairs.path={path}", method="dpo")) == 2
    assert "preferences.jsonl:1: is no preference" in capsys.readouterr().err
