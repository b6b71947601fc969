"""Fixtures that every test may use."""

import importlib.util
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from tests import commands

# The same examples on every machine, no time limit on busy ones, no folder of found examples.
settings.register_profile("optima", derandomize=True, deadline=None, database=None)
settings.load_profile("optima")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the benchmark rows, beside the repository; a clone alone has none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no benchmark rows: there is no {folder}")
    return folder


@pytest.fixture(scope="session")
def read_pins() -> ModuleType:
    """The script that reads the pins of the environment files."""
    path = ROOT / "scripts" / "read_pins.py"
    spec = importlib.util.spec_from_file_location("read_pins", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["read_pins"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


# What takes longest, longest first: these tests start processes, and wait for them.
LONG = tuple(
    ROOT / "tests" / name
    for name in (
        *("methods", "serving", "scripts", "test_api.py", "studies", "reporting", "runs", "cli"),
        *("test_plugins.py", "stages", "training", "test_disks.py", "processes", "test_wheel.py"),
    )
)


def _place(item: pytest.Item) -> int:
    found = (n for n, place in enumerate(LONG) if item.path.is_relative_to(place))
    return next(found, len(LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no process ends with it while the others have nothing."""
    items.sort(key=_place)


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start, also where they themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Begin without, and leave, no level or handler such as those of a command with --quiet."""
    with commands.logging_as_it_was():
        logging.getLogger().setLevel(logging.WARNING)
        logger = logging.getLogger("optima")
        logger.setLevel(logging.NOTSET)
        logger.handlers, logger.propagate = [], True
        yield
