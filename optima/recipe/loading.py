"""Reading recipes strictly: files in layers, overrides, and messages one can act on.

PyYAML reads ``1e-6`` as a string and ``on`` as a bool, and lax validation would accept both: what
YAML gives is turned to JSON and validated in strict mode. Every finding is reported, one line each:
place (the file or override where the key stands), value, rule, remedy.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optima.errors import RecipeError, UsageError
from optima.recipe.layers import WHOLE, Layers, merge_layers
from optima.recipe.schema import METHOD_SECTIONS, Recipe
from optima.recipe.sections import keys_of, section_above
from optima.recipe.text import write_yaml
from optima.recipe.unread import unread_fields
from optima.tasks import get_task

_FLOAT_AS_TEXT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "model_type": "must be a section of keys",
    "model_attributes_type": "must be a section of keys",
}


def load_recipe(paths: Path | Sequence[Path], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or layers from left to right, and apply ``key.sub=value`` overrides.

    Raises RecipeError that lists everything wrong, one line each.
    """
    return change_recipe(merge_layers(paths, overrides), overrides)


def change_recipe(layers: Layers, overrides: Sequence[str] = ()) -> Recipe:
    """Lay ``key.sub=value`` overrides on merged layers, in place, and validate the whole."""
    for override in overrides:
        layers.add_override(override)
    return build_recipe(layers)


def _with_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with the sections that its method has and it leaves out."""
    method = tree.get("method")
    sections = METHOD_SECTIONS.get(method, {}) if isinstance(method, str) else {}
    filled = dict(tree)
    for name, defaults in sections.items():
        given = filled.get(name)
        if given is None or isinstance(given, Mapping):
            filled[name] = {**defaults, **(given or {})}
    return filled


def build_recipe(layers: Layers) -> Recipe:
    """Validate merged layers."""
    for key, value in _foreign_values(layers.tree):
        raise RecipeError(
            f"{layers.place_of(key)}: {value} is a {type(value).__name__} to YAML, "
            "must be a text, a number, a list or a section; put it in quotes"
        )
    try:
        recipe = Recipe.model_validate_json(json.dumps(_with_sections(layers.tree), allow_nan=True))
    except ValidationError as error:
        lines = [_explain(dict(detail), layers) for detail in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error
    try:
        task = get_task(recipe.task)
    except UsageError as error:
        what = str(error).removeprefix("task: ")
        raise RecipeError(f"{layers.place_of('task')}: {what}") from error
    if recipe.cold_start is not None and not task.has_evidence:
        raise RecipeError(
            f"{layers.place_of('cold_start')}: {task.name} has no gold evidence to script "
            "conversations from; remove cold_start or use conversation.worked_example=true"
        )
    if unread := [
        f"{layers.place_of(key)}: {reason}; remove it"
        for key, reason in unread_fields(recipe, task)
    ]:
        raise RecipeError("\n".join(unread))
    return recipe.model_copy(update={"task": task.name})


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML that loads back equal."""
    return write_yaml(json.loads(recipe.model_dump_json()))


def _explain(detail: Mapping[str, Any], layers: Layers) -> str:
    keys = keys_of(str(part) for part in detail["loc"])
    section = section_above(keys)
    key = ".".join(keys)
    where = layers.place_of(key)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = list(section.model_fields) if section else []
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key ({hint})"
    if kind == "missing":
        base = ", or name a recipe that has it before this layer" if key in WHOLE else ""
        return f"{where}: is missing; add it{base}"
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{layers.place_of_check(message, key)}: {message.partition(': ')[2]}"
    rule = _RULES.get(kind, detail["msg"][0].lower() + detail["msg"][1:])
    return f"{where}: {_shown(value)} {_joined(rule)}{_remedy(kind, value)}"


def _remedy(kind: str, value: Any) -> str:
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        if _FLOAT_AS_TEXT.fullmatch(value):
            mantissa, _, exponent = value.lower().partition("e")
            number = mantissa if "." in mantissa else f"{mantissa}.0"
            sign = "" if exponent[0] in "+-" else "+"
            return f"; YAML reads it as text, write {number}e{sign}{exponent}"
        return "; remove the quotes" if value.replace(".", "").isdigit() else ""
    if isinstance(value, bool) and kind != "bool_type":
        return "; YAML reads on, off, yes and no as true and false"
    if kind == "tuple_type":
        return f"; write [{value}]"
    return ""


def _joined(rule: str) -> str:
    return rule if rule.startswith("must") else f"is refused: {rule}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _foreign_values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what YAML made of a value that no recipe can hold, such as a date, with its key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _foreign_values(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _foreign_values(inner, key)
    elif not isinstance(value, str | int | float | None):
        yield key, value
