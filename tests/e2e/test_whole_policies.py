"""A whole model per policy on real servers and trainings: two of 135M that part ways."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.records import read_records
from optima.runs.reader import open_run
from optima.types import ModelRef, TeamRef, TrainingRow
from tests.e2e.conftest import MODEL, OVERRIDES, RECIPE
from tests.fake_runs import ROOT

pytestmark = pytest.mark.e2e
POLICIES, NAMES = ("solver", "critic"), ("Alice", "Bob")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the quickstart, made small, with two models of two places; return its directory."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(MODEL, folder / "other")
    argv = [sys.executable, "-m", "optima.cli", "sft", "--config", str(RECIPE)]
    argv += [word for word in OVERRIDES if not word.startswith("serving.keep=")]
    argv += ["agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]"]
    argv += [f"policies.critic.path={folder / 'other'}", "serving.keep=reload"]
    argv += ["serving.cpu_kv_cache_gb=1", "--run-dir", str(folder / "run")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == [
        "base", "cold_start", "iter_0"
    ]  # fmt: skip
    return folder / "run"


def weights(root: Path, label: str, policy: str) -> bytes:
    return (root / label / f"train_{policy}/model/model.safetensors").read_bytes()


def test_models_of_the_policies_are_whole_and_differ(root: Path) -> None:
    made = [weights(root, label, p) for label in ("cold_start", "iter_0") for p in POLICIES]
    assert len(set(made)) == 4
    team = open_run(root).models["iter_0"]
    assert isinstance(team, TeamRef)
    assert [team.member(policy) for policy in POLICIES] == [
        ModelRef(path=str((root / f"iter_0/train_{policy}/model").resolve())) for policy in POLICIES
    ]


def test_policy_begins_as_its_own_model_and_is_trained_on_its_own_words(root: Path) -> None:
    encoder = load_codec(str(MODEL)).encoder
    for agent, (policy, start) in enumerate(
        zip(POLICIES, (MODEL, root.parent / "other"), strict=True)
    ):
        folder = root / "cold_start" / f"train_{policy}"
        job = json.loads((folder / "job.json").read_text())
        assert job["model"] == {"path": str(start.resolve()), "adapter": None}
        for row in read_records(folder / "rows.jsonl", TrainingRow):
            assert row.agent == agent
            for first, _ in row.trained:
                assert encoder.decode(row.input_ids[:first]).endswith(f"{NAMES[agent]}:")


def test_each_policy_was_served_by_a_server_of_its_own_and_compared(root: Path) -> None:
    logs = {
        index: "".join(
            path.read_text(errors="replace")
            for path in sorted((root / "logs").rglob(f"server_{index}.*.log"))
        )
        for index in (0, 1)
    }
    for index, policy in enumerate(POLICIES):
        for label in ("cold_start", "iter_0"):
            places = [str((root / f"{label}/train_{p}/model").resolve()) for p in POLICIES]
            assert [place in logs[index] for place in places] == [p == policy for p in POLICIES]
    run_log = "".join(path.read_text() for path in sorted((root / "logs").rglob("optima.log")))
    assert "not compared with the model" not in run_log
    assert open_run(root).metrics["evaluate/iter_0/talk"]["conversations/errors"] == 0
    talks = list(map(json.loads, (root / "evaluate/iter_0/talk/conversations.jsonl").open()))
    assert {turn["name"] for talk in talks for turn in talk["turns"]} == set(NAMES)
