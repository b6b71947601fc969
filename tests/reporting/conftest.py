"""A finished run of iSFT-DPO over fakes, and its report, made once for all tests of pages."""

from pathlib import Path

import pytest

from optima.reporting.report import Limits, write_report
from tests.fake_runs import run
from tests.fakes import fake_environment


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of two iterations, with trees and candidates."""
    directory = tmp_path_factory.mktemp("trained")
    run(directory, fake_environment(directory), method="sft_dpo")
    return directory / "run"


@pytest.fixture(scope="session")
def report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page about that run."""
    return write_report([trained], tmp_path_factory.mktemp("report"), Limits())
