"""The schema as one may ask it: which section a key leads to."""

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from optima.recipe.schema import Recipe


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, None for a plain value."""
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def section_above(keys: Sequence[str]) -> type[BaseModel] | None:
    """Return the section in which the last of ``keys`` stands, None where there is none."""
    section: type[BaseModel] | None = Recipe
    for key in keys[:-1]:
        field = section.model_fields.get(key) if section else None
        section = section_of(field.annotation) if field else None
    return section


def keys_of(location: Iterable[str]) -> list[str]:
    """Return the keys of an error's location, without pydantic's tags of unions."""
    section: type[BaseModel] | None = Recipe
    keys: list[str] = []
    for part in location:
        if section is None:  # below a plain field only list positions are the user's own words
            if part.isdigit():
                keys.append(part)
            continue
        keys.append(part)
        field = section.model_fields.get(part)
        section = section_of(field.annotation) if field else None
    return keys
