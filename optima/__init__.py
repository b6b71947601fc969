"""Optima: train agents that talk to each other to be right in fewer words (arXiv 2410.08115)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optima.api import dry_run as dry_run
    from optima.api import evaluate as evaluate
    from optima.api import load_recipe as load_recipe
    from optima.api import run as run
    from optima.recipe.schema import Recipe as Recipe
    from optima.runs.reader import Run as Run
    from optima.runs.reader import open_run as open_run
    from optima.tasks import get_task as get_task
    from optima.tasks.task import Task as Task
    from optima.types import Conversation as Conversation
    from optima.types import Problem as Problem

__version__ = "0.1.0"
# Part of the API -> the module it comes from, imported when it is asked for: the trainers import
# no more of the package than they need, and `import optima` takes no time.
_PLACES = {
    "Conversation": "optima.types",
    "Problem": "optima.types",
    "Recipe": "optima.recipe.schema",
    "Run": "optima.runs.reader",
    "Task": "optima.tasks.task",
    "dry_run": "optima.api",
    "evaluate": "optima.api",
    "get_task": "optima.tasks",
    "load_recipe": "optima.api",
    "open_run": "optima.runs.reader",
    "run": "optima.api",
}
__all__ = [
    "Conversation",
    "Problem",
    "Recipe",
    "Run",
    "Task",
    "dry_run",
    "evaluate",
    "get_task",
    "load_recipe",
    "open_run",
    "run",
]


def __getattr__(name: str) -> Any:
    """Return a part of the API, imported now."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the API, for completion."""
    return sorted([*globals(), *_PLACES])
