"""Fields that the recipe's task looks at in no place: a value of theirs is refused, not ignored.

What a task reads of such fields stands in its ``reads``; one made by code reads no rows at all.
"""

from collections.abc import Iterator

from optima.recipe.schema import Recipe
from optima.tasks import TASKS
from optima.tasks.task import Task

OF_SOME_TASKS = sorted(frozenset[str]().union(*(task.reads for task in TASKS.values())))
OF_ROWS = (
    *("data.path", "data.train_file", "data.test_file", "data.hub_id", "data.hub_revision"),
    *("data.hub_configs", "data.train_split", "data.test_split", "data.max_malformed"),
    "data.overlap",
)


def foreign_fields(task: Task) -> Iterator[tuple[str, str]]:
    """Yield the fields that ``task`` does not read, each with the reason."""
    for key in OF_SOME_TASKS:
        if key not in task.reads:
            readers = ", ".join(name for name, other in TASKS.items() if key in other.reads)
            yield key, f"{task.name} does not read it, only {readers} do"
    if task.generate is not None:
        for key in OF_ROWS:
            yield key, f"{task.name} is made by code and reads no data"


def unread_fields(recipe: Recipe, task: Task) -> Iterator[tuple[str, str]]:
    """Yield the fields that have another value than their default, which nothing reads."""
    for key, reason in foreign_fields(task):
        name, _, field = key.partition(".")
        section = getattr(recipe, name)
        if getattr(section, field) != type(section).model_fields[field].default:
            yield key, reason
