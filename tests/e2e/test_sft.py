"""The real thing, small: real model, CPU vLLM, CPU TRL, the command a user types."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from optima.processes.environment import resolve_environment
from tests.pipelines.runs import MARK, ROOT, processes_of, wait_until

pytestmark = pytest.mark.e2e

# What so short a training teaches is chance, so any conversation may be selected.
OVERRIDES = (
    "data.n_train=4", "data.n_test=2", "sampling.n_samples=2", "iterations=1",
    "conversation.max_turns=4", "conversation.max_turn_tokens=32", "select.theta=-10.0",
    "reward.exclude_faults=false", "cold_start.n_problems=8", "cold_start.epochs=1.0",
    "train.epochs=1.0", "serving.device=cpu",
)  # fmt: skip


def command(run_dir: Path) -> list[str]:
    """Return the quickstart's command, made small; the environments must be there."""
    for role in ("vllm", "train"):
        resolve_environment(None, role)
    recipe = str(ROOT / "recipes" / "sft" / "quickstart.yaml")
    argv = [sys.executable, "-m", "optima.cli.sft", "--config", recipe, *OVERRIDES]
    return [*argv, "--run-dir", str(run_dir)]


def test_run_trains_a_real_model_and_serves_it_and_dies_whole_when_killed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    mark = uuid.uuid4().hex
    environ = {**os.environ, MARK: mark}
    victim = subprocess.Popen(command(root), cwd=ROOT, env=environ, stderr=subprocess.DEVNULL)
    talk = root / "evaluate" / "base" / "talk"
    # vLLM runs with all its children when the first conversation is there.
    wait_until((talk / "conversations.jsonl").exists, "the first conversation", 300)
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=10)
    wait_until(lambda: not processes_of(mark), "the end of every process", 15)

    done = subprocess.run(
        command(root), cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["base", "cold_start", "iter_0"]

    metrics = {m["stage"]: m for m in map(json.loads, (root / "metrics.jsonl").open())}
    for label in ("base", "cold_start", "iter_0"):
        assert metrics[f"evaluate/{label}/talk"]["conversations/errors"] == 0
        assert metrics[f"evaluate/{label}/talk"]["tokens/generated"] > 0
    assert metrics["iter_0/rank"]["reward/loss"] > 0
    assert metrics["iter_0/train"]["tokens/trained"] > 0
    base = (ROOT / "models" / "smollm2-135m-instruct" / "model.safetensors").read_bytes()
    weights = [root / part / "train/model/model.safetensors" for part in ("cold_start", "iter_0")]
    found = {path.read_bytes() for path in weights}
    assert len(found | {base}) == 3  # three different models
    held = (root / "iter_0/generate/conversations.jsonl").read_text().splitlines()
    assert len(held) == 8
