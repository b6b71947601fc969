"""The real thing, small: real model, CPU vLLM, CPU TRL, the command a user types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import SftRun
from tests.fake_runs import ROOT
from tests.reporting.browser import chromium

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


def test_report_of_a_real_run_shows_what_its_models_said(sft_run: SftRun, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli.main", "report", str(sft_run.root), "--output",
         str(tmp_path / "report")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    talk = sft_run.root / "evaluate/base/talk/conversations.jsonl"
    said = json.loads(talk.read_text().splitlines()[0])["turns"][0]["text"].strip()
    with chromium() as page:
        page.open(Path(done.stdout.strip()), "#conversations")
        page.wait(lambda: page.count(".line"), "the list")
        names = page.run("return given.sources.map((s) => s.name)")
        page.choose("f-source", str(names.index("evaluate/base/talk")))
        page.click(".line")
        page.wait(lambda: page.count("#reader .turn"), "a conversation")
        assert " ".join(said.split()) in " ".join(page.text("#reader").split())
        assert page.complaints() == []
