"""The real 135M model, fetched once where it is missing."""

import subprocess
from pathlib import Path

import pytest

from optima.processes.environment import resolve_environment

MODEL = Path(__file__).resolve().parents[2] / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="session", autouse=True)
def smollm2() -> Path:
    """The directory of the quickstart model."""
    if not (MODEL / "tokenizer.json").is_file():
        env = resolve_environment(None, "train")
        argv = [str(env.python), "-m", "optima.training.fetch_model", "--output", str(MODEL)]
        subprocess.run(argv, check=True, env=env.environ(), timeout=900)
    return MODEL
