"""Which fields of a recipe something asks for while a piece of code runs."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from optima import types
from optima.recipe import per_task, schema, sections
from optima.recipe.schema import Recipe
from optima.runs import identity
from optima.tasks import task
from optima.types import Section, section_of

NO_USE = {module.__file__ for module in (types, task, schema, per_task, sections, identity)}


def fields_of(section: type[Any] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key in a recipe, section's class, name) of every field that is no section itself."""
    for name, field in section.model_fields.items():
        below = section_of(field.annotation)
        if below is None:
            yield prefix + name, section.__name__, name
        else:
            yield from fields_of(below, f"{prefix}{name}.")


@contextlib.contextmanager
def unread_fields() -> Iterator[set[str]]:
    """Fill the set, at the end, with the keys of the fields that nobody asked for meanwhile.

    Copies, comparisons and texts of whole sections ask for no field; what checks them, or tells
    which stages are the same, is no use.
    """
    asked: set[tuple[str, str]] = set()
    unread: set[str] = set()
    plain = Section.__getattribute__

    def noting(section: Section, name: str) -> Any:
        caller = sys._getframe(1).f_code.co_filename
        if not name.startswith("_") and caller not in NO_USE:
            asked.add((type(section).__name__, name))
        return plain(section, name)

    Section.__getattribute__ = noting  # type: ignore[method-assign, assignment]
    try:
        yield unread
    finally:
        Section.__getattribute__ = plain  # type: ignore[method-assign]
        unread |= {key for key, *field in fields_of() if tuple(field) not in asked}
