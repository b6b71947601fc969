"""A policy per agent on real servers and trainings: two adapters over the 135M model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.processes.devices import Devices
from optima.processes.environment import resolve_environment
from optima.recipe.loading import load_recipe
from optima.records import read_records
from optima.runs.reader import open_run
from optima.serving.fleet import Fleet
from optima.serving.probe import distance, prompt_logprobs, read_logprobs
from optima.types import TeamRef, TrainingRow
from tests.e2e.conftest import OVERRIDES, RECIPE
from tests.fake_runs import ROOT

pytestmark = pytest.mark.e2e
POLICIES = ("solver", "critic")
NAMES = ("Alice", "Bob")
TIMEOUT_S = 120.0
TEAM = (
    "agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]",
    "train.lora.serve=adapter",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the quickstart, made small, with two policies; return its directory."""
    root = tmp_path_factory.mktemp("team") / "run"
    argv = [sys.executable, "-m", "optima.cli", "sft", "--config", str(RECIPE), *OVERRIDES, *TEAM]
    argv += ["--run-dir", str(root)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == [
        "base", "cold_start", "iter_0"
    ]  # fmt: skip
    return root


def adapter(root: Path, label: str, policy: str) -> Path:
    return root / label / f"train_{policy}" / "model"


def test_policies_are_adapters_that_differ_and_go_on_from_their_own(root: Path) -> None:
    found = {
        (adapter(root, label, policy) / "adapter_model.safetensors").read_bytes()
        for label in ("cold_start", "iter_0")
        for policy in POLICIES
    }
    assert len(found) == 4
    for policy in POLICIES:
        job = json.loads((root / "iter_0" / f"train_{policy}" / "job.json").read_text())
        assert job["model"]["adapter"] == str(adapter(root, "cold_start", policy).resolve())


@pytest.mark.parametrize("label", ["cold_start", "iter_0"])
def test_policy_is_trained_on_the_tokens_of_its_own_agent_alone(root: Path, label: str) -> None:
    encoder = load_codec(open_run(root).recipe.model.path).encoder
    metrics = open_run(root).metrics
    for agent, policy in enumerate(POLICIES):
        folder = root / label / f"train_{policy}"
        rows = list(read_records(folder / "rows.jsonl", TrainingRow))
        assert rows
        assert {row.agent for row in rows} == {agent}
        n_trained = 0
        for row in rows:
            n_trained += sum(stop - first for first, stop in row.trained)
            for first, _ in row.trained:
                assert encoder.decode(row.input_ids[:first]).endswith(f"{NAMES[agent]}:")
        of_one_epoch = metrics[f"{label}/train_{policy}"]["tokens/trained_with_loss"]
        assert of_one_epoch >= n_trained  # epochs and no other rows


def test_both_policies_were_served_in_the_evaluation(root: Path) -> None:
    logs = sorted((root / "logs").rglob("server_0.*.log"))
    text = logs[-1].read_text(errors="replace")
    for policy in POLICIES:
        assert str(adapter(root, "iter_0", policy).resolve()) in text
    run_log = "".join(path.read_text() for path in sorted((root / "logs").rglob("optima.log")))
    assert "not compared with the model" not in run_log
    talks = list(map(json.loads, (root / "evaluate/iter_0/talk/conversations.jsonl").open()))
    assert {turn["name"] for talk in talks for turn in talk["turns"]} == set(NAMES)
    assert open_run(root).metrics["evaluate/iter_0/talk"]["conversations/errors"] == 0


def test_a_request_is_answered_by_the_adapter_that_it_names(root: Path, tmp_path: Path) -> None:
    run = open_run(root)
    team = run.models["iter_0"]
    assert isinstance(team, TeamRef)
    fleet = Fleet(
        team,
        recipe=load_recipe(RECIPE, ["serving.device=cpu", *TEAM]),
        devices=Devices(kind="cpu"),
        env=resolve_environment(None, "vllm"),
        log_dir=tmp_path,
    )
    with fleet:
        (server,) = fleet.servers
        for policy, other in zip(POLICIES, reversed(POLICIES), strict=True):
            expected = read_logprobs(adapter(root, "iter_0", policy))
            assert expected is not None
            own, not_own, base = (
                prompt_logprobs(server, name, expected.token_ids, TIMEOUT_S)
                for name in (fleet.name_of(policy), fleet.name_of(other), fleet.model_name)
            )
            assert distance(own, expected.trained) < distance(base, expected.trained)
            assert own != not_own
