"""Fixtures that every test may use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the benchmark rows, beside the repository."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"
