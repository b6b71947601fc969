"""Reading recipes strictly: files in layers, overrides, and messages one can act on.

PyYAML reads ``1e-6`` as a string and ``on`` as a bool, and lax validation would accept both: what
YAML gives is turned to JSON and validated in strict mode. Every finding is reported, one line each:
place (the file or override where the key stands), value, rule, remedy.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from optima.errors import RecipeError, UsageError
from optima.recipe.layers import WHERE, WHOLE, Condition, Layers, Origin, merge_layers
from optima.recipe.schema import (
    METHOD_SECTIONS,
    MIXED,
    OF_TASKS,
    OWN_OF_RUN,
    Recipe,
    keys_of,
    section_above,
)
from optima.recipe.sections import in_elements
from optima.recipe.text import ENTRIES, printable, quoting, write_yaml
from optima.tasks import TASKS, get_task
from optima.tasks.task import Task
from optima.types import section_of

# Fields that only some tasks read (``Task.reads``), and those that a task made by code does not.
OF_SOME_TASKS = sorted(frozenset[str]().union(*(task.reads for task in TASKS.values())))
OF_ROWS = (
    *("data.path", "data.train_file", "data.test_file", "data.hub_id", "data.hub_revision"),
    *("data.hub_configs", "data.train_split", "data.test_split", "data.max_malformed"),
    "data.overlap",
)
_BOOL_WORD = re.compile(r"\b(yes|no|on|off|true|false)\b", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
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
    if layers.members:
        return _build_mixture(layers)
    elsewhere = [line for condition in layers.others for line in _check_condition(condition)]
    try:
        recipe = _validate(layers.tree)
    except ValidationError as error:
        raise RecipeError("\n".join([*_lines(error, layers), *elsewhere])) from error
    if elsewhere:
        raise RecipeError("\n".join(elsewhere))
    try:
        task = get_task(recipe.task)
    except UsageError as error:
        what = str(error).removeprefix("task: ")
        raise RecipeError(f"{layers.place_of('task')}: {what}") from error
    if recipe.cold_start is not None and not task.has_evidence:
        raise RecipeError(
            f"{layers.place_of('cold_start')}: {task.name} has no gold evidence to script "
            "conversations from; remove cold_start, which conversation.worked_example=true can "
            "replace"
        )
    if unread := [
        f"{layers.place_of(key)}: {reason}; remove it"
        for key, reason in unread_fields(recipe, task)
    ]:
        raise RecipeError("\n".join(unread))
    return recipe.model_copy(update={"task": task.name})


def _build_mixture(layers: Layers) -> Recipe:
    """Validate a mixture: the recipe of each task by itself, and the whole with them as entries."""
    lines, made = [line for one in layers.others for line in _check_condition(one)], {}
    for name, own in layers.members.items():
        tree = {key: value for key, value in own.tree.items() if key != "weight"}
        try:
            made[name] = build_recipe(replace(own, tree=tree))
        except RecipeError as error:
            lines += str(error).split("\n")
    if lines:
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    entries = [
        {"task": name, "weight": layers.members[name].tree.get("weight")}
        | json.loads(one.model_dump_json(include=set(OF_TASKS)))
        for name, one in made.items()
    ]
    cold = next((e["cold_start"] for e in entries if e["cold_start"]), None)
    whole = {"task": MIXED.join(made), **layers.tree, ENTRIES: entries, "cold_start": cold}
    try:
        recipe = _validate(whole)
    except ValidationError as error:
        raise RecipeError("\n".join(_lines(error, layers))) from error
    for name, one in made.items():
        _check_own_of_run(recipe, one, layers.members[name])
    return recipe


def of_one_task(recipe: Recipe, remedy: str = "task=NAME") -> Recipe:
    """Return the recipe; UsageError where it is a mixture, whose task ``remedy`` would name."""
    if recipe.tasks:
        raise UsageError(
            f"tasks: the recipe is a mixture of {', '.join(recipe.members())}; take one of its "
            f"tasks by {remedy}"
        )
    return recipe


def _check_own_of_run(recipe: Recipe, one: Recipe, layers: Layers) -> None:
    """Raise RecipeError where a task of a mixture has another value of what is one for the run."""
    own, whole = flat(one.model_dump()), flat(recipe.model_dump())
    for key, value in own.items():
        section = key.partition(".")[0]
        is_own = section not in ("task", ENTRIES, *OF_TASKS) or key in OWN_OF_RUN
        if is_own and whole.get(key, value) != value:
            raise RecipeError(
                f"{layers.place_of(key)}: is one for the whole run, and {value} for {one.task} "
                f"where others have {whole[key]}; remove it, or set it for all by {key}=..."
            )


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return the values of nested mappings, and of lists of such, as texts by their whole keys."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, tuple) and value and isinstance(value[0], Mapping):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = repr(value)
    return found


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


def _validate(tree: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate_json(json.dumps(_with_sections(tree), allow_nan=True))


def _lines(error: ValidationError, layers: Layers, *, without: Sequence[str] = ()) -> list[str]:
    """Return a line for each finding, but for those of the kinds ``without``."""
    details = [dict(detail) for detail in error.errors() if detail["type"] not in without]
    return list(dict.fromkeys(printable(_explain(detail, layers), 1000) for detail in details))


def _check_condition(condition: Condition) -> list[str]:
    """Return what is wrong with keys and values that hold for other methods and tasks.

    Rules over several fields are left to the recipe that they hold for, with all its layers.
    """
    layers = Layers("", {"method": "sft", "task": "any", "model": {"path": "any"}})
    layers.add(condition.layer, condition.origin)
    try:
        _validate(layers.tree)
    except ValidationError as error:
        return _lines(error, layers, without=("missing", "value_error"))
    return []


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe as YAML that loads back equal."""
    return write_yaml(json.loads(recipe.model_dump_json()))


def _explain(detail: Mapping[str, Any], layers: Layers) -> str:
    keys = keys_of(str(part) for part in detail["loc"])
    key = ".".join(keys)
    where = layers.place_of(key)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key ({_known(keys)})"
    if kind == "missing":
        base = ", or name a recipe that has it before this layer" if key in WHOLE else ""
        return f"{where}: is missing; add it{base}"
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{layers.place_of_check(message, key)}: {message.partition(': ')[2]}"
    rule = _RULES.get(kind, detail["msg"][0].lower() + detail["msg"][1:])
    remedy = _remedy(kind, value, layers.origin_of(key))
    if kind in ("model_type", "model_attributes_type"):
        below = section_above([*keys, ""])
        remedy = f", such as {next(iter(below.model_fields))}" if below else ""
    return f"{where}: {_shown(value)} {_joined(rule)}{remedy}"


def _known(keys: Sequence[str]) -> str:
    """Return what could have been meant by the last of ``keys``."""
    above, last = keys[:-1], keys[-1]
    if keys[0] == WHERE:
        return "stands in files only; give the key alone"
    if "." in last:
        return f"write it as a section: {last.replace('.', ': {')}: ...{'}' * last.count('.')}"
    section = section_above(keys)
    known = list(section.model_fields) if section else []
    close = difflib.get_close_matches(last, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [name for name, field in Recipe.model_fields.items() if last in _below(field)]
    if not above and elsewhere:
        return f"did you mean {elsewhere[0]}.{last}?"
    return f"known keys: {', '.join(known)}"


def _below(field: FieldInfo) -> Iterable[str]:
    section = section_of(field.annotation)
    return section.model_fields if section else ()


def _remedy(kind: str, value: Any, origin: Origin | None) -> str:
    """Return what to write instead, where that follows from the value."""
    if kind == "string_type":
        if origin is None or not origin.key:
            return "; put it in quotes"
        found = _BOOL_WORD.search(origin.text) if isinstance(value, bool) else None
        return f"; {quoting(origin.key, found[0] if found else str(value), origin.text)}"
    if isinstance(value, bool) and kind in ("int_type", "int_from_float", "float_type"):
        return "; YAML reads on, off, yes and no as true and false, write a number"
    if kind in ("int_type", "int_from_float", "float_type"):
        number = _number(value, is_whole=kind != "float_type")
        why = "YAML reads it as text, " if isinstance(value, str) else ""
        return f"; {why}write {number}" if number else ""
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("true", "false"):
        return "; remove the quotes"
    if kind == "tuple_type" and isinstance(value, Mapping):
        return "; give the whole list, as [A, B]"
    if kind == "tuple_type":
        shown = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        shown = shown if "," in shown else in_elements(shown)
        return f"; write [{shown}]"
    return ""


def _number(value: Any, *, is_whole: bool) -> str:
    """Return the number that is meant as YAML reads it, nothing where none is.

    A comma parts thousands, or is a decimal one where what follows are not three digits.
    """
    text = str(value)
    text = text.replace(",", "" if _THOUSANDS.fullmatch(text) else ".")
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number) or (is_whole and not number.is_integer()):
        return ""
    if is_whole:
        return str(int(number))
    mantissa, has_exponent, exponent = text.lower().partition("e")
    if not has_exponent:
        return str(number)
    sign = "" if exponent[0] in "+-" else "+"
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}e{sign}{exponent}"


def _joined(rule: str) -> str:
    return rule if rule.startswith("must") else f"is refused: {rule}"


def _shown(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False), 60)
