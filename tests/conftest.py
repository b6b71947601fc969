"""Fixtures that every test may use."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine, no time limit on busy ones, no folder of found examples.
settings.register_profile("optima", derandomize=True, deadline=None, database=None)
settings.load_profile("optima")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the benchmark rows, beside the repository."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start, also where they themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
