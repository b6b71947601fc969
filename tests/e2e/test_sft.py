"""The real thing, small: real model, CPU vLLM, CPU TRL, the command a user types."""

import json

import pytest

from tests.e2e.conftest import SftRun
from tests.pipelines.runs import ROOT

pytestmark = pytest.mark.e2e


def test_run_trains_a_real_model_and_serves_it_after_it_was_killed(sft_run: SftRun) -> None:
    root = sft_run.root
    lines = sft_run.table.splitlines()
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
