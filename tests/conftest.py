"""Fixtures that every test may use."""

import logging
import signal
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Leave no level, such as that of a command with --quiet, to the tests after it."""
    logger = logging.getLogger("optima")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1], before[2]
