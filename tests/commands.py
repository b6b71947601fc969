"""Commands as a user types them, done in the process of the tests.

Importing what a command needs takes seconds, in every process anew. Signals, kills and exit
statuses of processes are tested on real ones (``start`` of ``tests.fake_runs``).
"""

import contextlib
import io
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from optima.cli.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 90


@contextlib.contextmanager
def logging_as_it_was() -> Iterator[None]:
    """Leave no level and no handler, such as those of a command with --quiet, behind."""
    logger = logging.getLogger("optima")
    before = (logger.level, logger.propagate, list(logger.handlers))
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1], before[2]


def command(program: str, *words: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Do what ``python -m optima.cli program words`` does; return (exit status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _deadline(f"{program} {' '.join(words)}"), logging_as_it_was(), contextlib.chdir(cwd),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        status = main([program, *words])
    return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def _deadline(what: str) -> Iterator[None]:
    def end(*_: object) -> None:
        pytest.fail(f"not done after {TIMEOUT_S} s: {what}")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
