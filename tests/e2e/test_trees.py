"""iDPO and iSFT-DPO for real, small: real model, CPU vLLM, CPU TRL, the commands a user types."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optima.processes.environment import resolve_environment
from tests.pipelines.runs import ROOT

pytestmark = pytest.mark.e2e

# What so short a training teaches is chance, so any conversation and any pair may be selected; a
# cold start, for a model without one is cut off in every utterance.
OVERRIDES = (
    "data.n_train=4", "data.n_test=2", "sampling.n_samples=2", "iterations=1",
    "evaluation.base=false", "conversation.max_turns=4", "select.theta=-10.0",
    "reward.exclude_faults=false", "cold_start.n_problems=12", "train.epochs=1.0",
    "search.n_problems=3", "search.n_probe=2", "search.n_rounds=2", "pairs.theta_filter=-10.0",
    "pairs.theta_diff=0.0", "pairs.keep_share=1.0", "train.eval_share=0.0", "serving.device=cpu",
)  # fmt: skip
# The runs' models after the cold start, and the stages whose rows and models are looked at.
CASES = {
    "dpo": (("initialise=false",), ["cold_start", "iter_0"], "iter_0"),
    "sft_dpo": ((), ["cold_start", "iter_0_sft", "iter_0_dpo"], "iter_0_dpo"),
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", CASES)
def test_run_grows_trees_and_trains_a_real_model_on_their_pairs(
    method: str, tmp_path: Path
) -> None:
    overrides, labels, name = CASES[method]
    for role in ("vllm", "train"):
        resolve_environment(None, role)
    root = tmp_path / "run"
    recipe = ROOT / "recipes" / method / "quickstart.yaml"
    argv = [sys.executable, "-m", f"optima.cli.{method}", "--config", str(recipe)]
    done = subprocess.run(
        [*argv, *OVERRIDES, *overrides, "--run-dir", str(root)],
        cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(labels)]] == labels

    trees = _lines(root / name / "search/trees.jsonl")
    assert [len(tree["rounds"]) for tree in trees] == [2, 2, 2]
    rewards = [
        rollout["reward"] for tree in trees for r in tree["rounds"] for rollout in r["rollouts"]
    ]
    assert len(rewards) == 3 * 2 * 3
    assert all(reward["loss"] > 0 for reward in rewards)  # by a scorer beside the servers
    pairs = _lines(root / name / "pairs/pairs.jsonl")
    assert pairs
    for pair in pairs:
        assert pair["chosen_value"] > pair["rejected_value"]
        assert pair["chosen"]["agent"] == pair["rejected"]["agent"] == len(pair["history"]) % 2

    metrics = {m["stage"]: m for m in _lines(root / "metrics.jsonl")}
    trained = metrics[f"{name}/train"]
    assert trained["train/rows"] == len(pairs)
    assert trained["tokens/trained"] > 0
    weights = [root / label / "train/model/model.safetensors" for label in labels]
    assert len({path.read_bytes() for path in weights}) == len(labels)
