"""The batch scripts, with a stand-in for srun."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the programs that the scripts look for; srun prints what it is given."""
    for name in (".envs/train/bin/optima-sft", ".envs/vllm/bin/python", "bin/srun"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
        path.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "slurm").symlink_to(SCRIPTS)
    return tmp_path


def _submit(checkout: Path, script: str, *arguments: str, **variables: str) -> list[str]:
    environ = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}", **variables}
    environ["SLURM_SUBMIT_DIR"] = str(checkout)
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        env=environ, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_run_gets_every_core_that_was_asked_for(checkout: Path) -> None:
    # srun has not taken over --cpus-per-task since Slurm 22.05: it gave the run one core of 64.
    words = _submit(checkout, "sft.sbatch", "r.yaml", "a=b c", SLURM_CPUS_PER_TASK="64")
    assert words == [
        *("--ntasks=1", "--cpus-per-task=64", ".envs/train/bin/optima-sft"),
        *("--config", "r.yaml", "a=b c"),
    ]


def test_tasks_of_an_array_differ_in_their_seed(checkout: Path) -> None:
    given = {"SLURM_CPUS_PER_TASK": "8", "SLURM_ARRAY_TASK_ID": "2"}
    words = _submit(checkout, "sft_array.sbatch", "r.yaml", **given)
    assert words[1] == "--cpus-per-task=8"
    assert words[-3:] == ["--config", "r.yaml", "seed=2"]
