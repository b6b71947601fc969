"""Reading recipes strictly: YAML, overrides ``key.sub=value``, and messages one can act on.

PyYAML reads ``1e-6`` as a string and ``on`` as a bool, and lax validation would accept both: what
YAML gives is turned to JSON and validated in strict mode. Every finding of a file is reported, one
line each: place, value, rule, remedy.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from optima.errors import RecipeError, UsageError
from optima.recipe.schema import METHOD_SECTIONS, Recipe
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


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the method below
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise RecipeError(f"line {line}: {key_node.value}: given twice; remove one of them")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.sub=value`` overrides to it.

    Raises RecipeError that lists everything wrong, one line each.
    """
    return change_recipe(load_tree(path), str(path), overrides)


def load_tree(path: Path) -> dict[str, Any]:
    """Read a recipe file as it is written; RecipeError when it is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); `optima recipes` lists recipes"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: no UTF-8 text ({error.reason}); is it a recipe?") from error
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: must be a mapping of sections, such as `task: arc`")
    return tree


def change_recipe(tree: dict[str, Any], place: str, overrides: Sequence[str]) -> Recipe:
    """Apply ``key.sub=value`` overrides to a mapping, in place, and validate it as a recipe."""
    origins: dict[str, str] = {}
    for override in overrides:
        key = _apply(tree, override)
        origins[key] = f"override {override}"
    return build_recipe(tree, place, origins)


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


def build_recipe(
    tree: Mapping[str, Any], place: str, origins: Mapping[str, str] | None = None
) -> Recipe:
    """Validate a mapping; ``origins`` maps keys to the override that set them."""
    for key, value in _foreign_values(tree):
        raise RecipeError(
            f"{_place(key, place, origins or {})}: {value} is a {type(value).__name__} to YAML, "
            "must be a text, a number, a list or a section; put it in quotes"
        )
    try:
        recipe = Recipe.model_validate_json(json.dumps(_with_sections(tree), allow_nan=True))
    except ValidationError as error:
        lines = [_explain(dict(detail), place, origins or {}) for detail in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error
    try:
        task = get_task(recipe.task)
    except UsageError as error:
        what = str(error).removeprefix("task: ")
        raise RecipeError(f"{_place('task', place, origins or {})}: {what}") from error
    if recipe.cold_start is not None and not task.has_evidence:
        raise RecipeError(
            f"{_place('cold_start', place, origins or {})}: {task.name} has no gold evidence to "
            "script conversations from; remove cold_start or use conversation.worked_example=true"
        )
    return recipe.model_copy(update={"task": task.name})


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML that loads back equal."""
    tree = json.loads(recipe.model_dump_json())
    return yaml.dump(tree, sort_keys=False, allow_unicode=True, width=100, Dumper=_FloatDumper)


def _represent_float(dumper: Any, value: float) -> yaml.ScalarNode:
    node: yaml.ScalarNode = yaml.SafeDumper.represent_float(dumper, value)
    if "e" in node.value and "." not in node.value:
        node.value = node.value.replace("e", ".0e")
    return node


class _FloatDumper(yaml.SafeDumper):
    """Writes 1e-06 as 1.0e-06, which YAML reads back as a number."""

    yaml_representers = {  # noqa: RUF012  PyYAML's own table
        **yaml.SafeDumper.yaml_representers,
        float: _represent_float,
    }


def _parse(text: str, place: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{place}{line}: no valid YAML: {reason}") from error


def _apply(tree: dict[str, Any], override: str) -> str:
    key, separator, text = override.partition("=")
    if not separator or not key or not all(key.split(".")):
        raise RecipeError(
            f"override {override}: must be key=value or section.key=value, such as "
            "train.learning_rate=1.0e-5"
        )
    value = _parse(text, f"override {override}") if text else ""
    *sections, last = key.split(".")
    node = tree
    for depth, section in enumerate(sections):
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            place = ".".join(sections[: depth + 1])
            raise RecipeError(f"override {override}: {place} is a value, not a section")
        node = child
    node[last] = value
    return key


def _explain(detail: Mapping[str, Any], place: str, origins: Mapping[str, str]) -> str:
    path = [str(part) for part in detail["loc"]]
    keys, section = _resolve(path)
    key = ".".join(keys)
    where = _place(key, place, origins)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = list(section.model_fields) if section else []
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key ({hint})"
    if kind == "missing":
        return f"{where}: is missing; add it"
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{_place_of_check(message, key, place, origins)}: {message.partition(': ')[2]}"
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


def _place(key: str, place: str, origins: Mapping[str, str]) -> str:
    for origin, override in origins.items():
        if key == origin or key.startswith(f"{origin}.") or origin.startswith(f"{key}."):
            return f"{override}: {key}"
    return f"{place}: {key}" if key else place


def _place_of_check(message: str, section: str, place: str, origins: Mapping[str, str]) -> str:
    """Return where a check over several fields failed: the override of any field it names."""
    prefix = f"{section}." if section else ""
    key = prefix + message.partition(": ")[0]
    for origin, override in origins.items():
        named = origin.removeprefix(prefix)
        if key == origin or origin.startswith(f"{key}.") or f"{named}=" in message:
            return f"{override}: {key}"
    return _place(key, place, origins)


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


def _resolve(path: Iterable[str]) -> tuple[list[str], type[BaseModel] | None]:
    """Return the keys of an error's location, without pydantic's union tags, and their section."""
    section: type[BaseModel] | None = Recipe
    keys: list[str] = []
    for part in path:
        if section is None:  # below a plain field only list positions are the user's own words
            if part.isdigit():
                keys.append(part)
            continue
        keys.append(part)
        field = section.model_fields.get(part)
        section = _section_of(field.annotation) if field else None
    return keys, _parent_section(keys)


def _parent_section(keys: Sequence[str]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Recipe
    for key in keys[:-1]:
        field = section.model_fields.get(key) if section else None
        section = _section_of(field.annotation) if field else None
    return section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None
