"""What the end-to-end tests share: one real iSFT run, a server of a model it trained, and one of
the start model."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from optima.processes.devices import Devices, free_memory
from optima.processes.environment import resolve_environment
from optima.recipe.loading import load_recipe
from optima.serving.fleet import Fleet
from optima.types import ModelRef
from tests.fake_runs import MARK, ROOT, processes_of, wait_until

RECIPE = ROOT / "recipes" / "sft" / "quickstart.yaml"
MODEL = ROOT / "models" / "smollm2-135m-instruct"
# Servers of two runs, and a training beside them.
HAS_ROOM = (free_memory() or 0) > 18 * 2**30
# What so short a training teaches is chance, so any conversation may be selected. The cold start is
# long enough for utterances that end by themselves.
OVERRIDES = (
    "data.n_train=4", "data.n_test=2", "sampling.n_samples=2", "iterations=1",
    "conversation.max_turns=4", "conversation.max_turn_tokens=32", "select.theta=-10.0",
    "reward.exclude_faults=false", "cold_start.n_problems=12", "train.epochs=1.0",
    "serving.device=cpu", f"serving.keep={'stay' if HAS_ROOM else 'reload'}",
)  # fmt: skip


@dataclass(frozen=True)
class SftRun:
    """A finished run of ``optima-sft`` and the table it printed."""

    root: Path
    table: str

    @property
    def model(self) -> Path:
        """The model after the cold start."""
        return self.root / "cold_start/train/model"


@dataclass(frozen=True)
class Endpoint:
    """A real server that the commands reach as ``serving.endpoints``."""

    model: Path
    url: str
    api_key: str

    @property
    def override(self) -> str:
        """What makes a command use it."""
        return f"serving.endpoints=[{self.url}]"

    @property
    def environ(self) -> dict[str, str]:
        """The variables of a command that uses it."""
        return {**os.environ, "OPTIMA_API_KEY": self.api_key}


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory: pytest.TempPathFactory) -> SftRun:
    """Kill the quickstart, made small, while vLLM generates; then let the same command end it."""
    root = tmp_path_factory.mktemp("sft") / "run"
    for role in ("vllm", "train"):
        resolve_environment(None, role)
    argv = [sys.executable, "-m", "optima.cli", "sft", "--config", str(RECIPE), *OVERRIDES]
    argv += ["--run-dir", str(root)]
    mark = uuid.uuid4().hex
    environ = {**os.environ, MARK: mark}
    victim = subprocess.Popen(argv, cwd=ROOT, env=environ, stderr=subprocess.DEVNULL)
    talk = root / "evaluate" / "base" / "talk"
    # vLLM runs with all its children when the first conversation is there.
    wait_until((talk / "conversations.jsonl").exists, "the first conversation", 300)
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=10)
    wait_until(lambda: not processes_of(mark), "the end of every process", 15)
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return SftRun(root, done.stdout)


@pytest.fixture(scope="session")
def endpoint(sft_run: SftRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Serve the model of the cold start once for all commands that begin with it."""
    with _fleet_of(sft_run.model, tmp_path_factory.mktemp("logs")) as fleet:
        server = fleet.servers[0]
        yield Endpoint(sft_run.model, server.base_url, server.api_key)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Serve the start model once; ``test_weights``, which comes last, gives it other weights."""
    with _fleet_of(MODEL, tmp_path_factory.mktemp("logs")) as started:
        yield started


def _fleet_of(model: Path, log_dir: Path) -> Fleet:
    return Fleet(
        ModelRef(path=str(model)),
        recipe=load_recipe(RECIPE, ["serving.device=cpu"]),
        devices=Devices(kind="cpu"),
        env=resolve_environment(None, "vllm"),
        log_dir=log_dir,
    )
