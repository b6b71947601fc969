"""Libraries of the training environment, imported when a test first uses them.

Importing them takes seconds, in each of the processes that share the tests; few tests need them.
"""

from typing import Any

import pytest


class _Library:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # what pytest looks for in all that a module holds
            raise AttributeError(attribute)
        return getattr(pytest.importorskip(self._name), attribute)


def library(name: str) -> Any:
    """Return what stands for a module; a test that uses it is skipped where there is none."""
    return _Library(name)
