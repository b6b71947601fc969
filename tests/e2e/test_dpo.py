"""iDPO and iSFT-DPO for real, small: real model, CPU vLLM, CPU TRL, the commands a user types.

Both start from a model that had a cold start, for one without is cut off in every utterance.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Endpoint
from tests.fake_runs import ROOT

pytestmark = pytest.mark.e2e

# What so short a training teaches is chance, so any conversation and any pair may be selected.
OVERRIDES = (
    "data.n_train=4", "data.n_test=2", "sampling.n_samples=2", "iterations=1", "cold_start=null",
    "conversation.max_turns=4", "select.theta=-10.0", "reward.exclude_faults=false",
    "train.epochs=1.0", "search.n_problems=3", "search.n_probe=2", "search.n_rounds=2",
    "pairs.theta_filter=-10.0", "pairs.theta_diff=0.0", "pairs.keep_share=1.0",
    "train.eval_share=0.0", "serving.device=cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Overrides of a method, the models it ends with, and the file that holds their weights."""

    overrides: tuple[str, ...]
    labels: tuple[str, ...]
    weights: str


CASES = {
    # Its last model is served as an adapter over the start model.
    "dpo": Case(
        ("initialise=false", "train.lora.serve=adapter"),
        ("base", "iter_0"),
        "adapter_model.safetensors",
    ),
    "sft_dpo": Case((), ("base", "iter_0_sft", "iter_0_dpo"), "model.safetensors"),
}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", CASES)
def test_run_grows_trees_and_trains_a_real_model_on_their_pairs(
    method: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    case, root = CASES[method], tmp_path / "run"
    recipe = ROOT / "recipes" / method / "quickstart.yaml"
    argv = [sys.executable, "-m", "optima.cli", method, "--config", str(recipe)]
    argv += [*OVERRIDES, *case.overrides, f"model.path={endpoint.model}", endpoint.override]
    argv += [f"model.loss_path={ROOT}/models/smollm2-135m-instruct", "--run-dir", str(root)]
    done = subprocess.run(
        argv, cwd=ROOT, env=endpoint.environ, capture_output=True, text=True, timeout=1200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(case.labels)]] == list(case.labels)

    name = case.labels[-1]
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
    for label in case.labels:
        assert metrics[f"evaluate/{label}/talk"]["conversations/errors"] == 0
        assert metrics[f"evaluate/{label}/talk"]["tokens/generated"] > 0
    trained_labels = case.labels[1:]
    weights = [root / label / "train/model" / case.weights for label in trained_labels]
    start = (endpoint.model / "model.safetensors").read_bytes()
    assert len({start, *(path.read_bytes() for path in weights)}) == len(case.labels)
