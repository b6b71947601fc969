"""optima-sft --dry-run: the plan, and what stops it."""

import json
import sys
from pathlib import Path

import pytest

from optima.cli.sft import main

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "sft" / "quickstart.yaml"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


def arguments(folder: Path, *overrides: str) -> list[str]:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    python = sys.executable
    argv = ["--config", str(QUICKSTART), "--dry-run", "--run-dir", str(folder / "run"), "--quiet"]
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
