"""Recipes in layers: files and overrides merged from left to right, and where each key was set.

A later layer wins key by key, and sections merge. A null in a layer that lies on another, or in an
override, takes back what was set: the field has its default again, a section such as ``cold_start``
is gone. Only the merged whole is validated, so a layer alone may lack method, task and model.

What a layer holds for some methods or tasks only stands below ``for``, by names that are methods,
tasks, settings, ``evidence`` or ``no_evidence`` (whether the task's rows carry gold evidence)::

    for:
      dpo, sft_dpo:
        search: {n_problems: 100}
      no_evidence:
        conversation: {worked_example: true}

It counts where one of the names applies to the merged recipe, over what the same file says outside
of ``for`` and in the order of the file. Overrides have no ``for``: what is said there is meant.

Of ``task`` and ``tasks`` (a mixture) in files the last one counts; the override ``task=NAME`` takes
one entry of a mixture. What an entry of ``tasks`` says lies over the rest of its file, for its task
alone, as if below a ``for`` of that task at its end; later layers and overrides lie over it. What
holds ``for`` a task holds for its entry. ``tasks.NAME.key=value`` is for one entry, others for all.
"""

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from optima.errors import RecipeError, UsageError
from optima.plugins import is_reference
from optima.recipe.schema import METHOD_SECTIONS, MIXED, OF_TASKS, Recipe, section_above
from optima.recipe.text import (
    ENTRIES,
    find_recipe,
    override_place,
    parse_override,
    printable,
    read_file,
)
from optima.tasks import SPELLINGS, get_task, task_names
from optima.tasks.task import Task
from optima.types import Setting

WHERE = "for"
_EVIDENCE = {True: "evidence", False: "no_evidence"}
WHOLE = ("method", "task", "model")  # what a file must hold to be a recipe by itself
_OF_ENTRIES = ("task", "weight", *OF_TASKS)


@dataclass(frozen=True, slots=True)
class Origin:
    """Who set a key: a file, what stands below a ``for`` of it, or the override ``key=text``.

    ``lines`` are those of the file, by key; ``above`` is the key of the ``for``, or of the entry of
    ``tasks``, in it.
    """

    place: str
    key: str = ""
    text: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    above: str = ""

    def at(self, key: str) -> str:
        """Return the place where ``key``, or the section that it is missing from, stands."""
        keys = [*filter(None, [self.above]), *filter(None, key.split("."))]
        paths = (".".join(keys[:n]) for n in range(len(keys), 0, -1))
        line = next((f":{self.lines[path]}" for path in paths if path in self.lines), "")
        kind, _, below = self.above.partition(".")
        names = ", ".join(map(str.strip, below.split(",")))
        condition = {"": "", WHERE: f": {WHERE} {names}", ENTRIES: f": {self.above}"}
        return f"{self.place}{line}{condition[kind]}"


@dataclass(frozen=True, slots=True)
class Condition:
    """What stands below ``for`` in a file, and the names of those it holds for."""

    names: Sequence[str]
    layer: Mapping[str, Any]
    origin: Origin


@dataclass(slots=True)
class Layers:
    """What layers come to: the merged mapping, and who set each of its keys last.

    ``place`` stands for all files together, for what none of them says; ``others`` hold for other
    methods and tasks. ``members`` has those of each task of a mixture, as recipes of these tasks.
    """

    place: str
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    others: list[Condition] = field(default_factory=list)
    members: dict[str, "Layers"] = field(default_factory=dict)

    def add(self, layer: Mapping[str, Any], origin: Origin, *, is_first: bool = False) -> None:
        """Lay a mapping on what is there; the first one's nulls stay, for validation to judge."""
        _merge(self, self.tree, layer, "", origin, keeps_nulls=is_first)

    def add_override(self, override: str) -> None:
        """Lay ``key.sub=value`` on what is there; RecipeError when it is not of this form."""
        key, text, _ = parse_override(override)
        if key == ENTRIES:
            return  # says which members there are, and is laid on them
        if key.startswith(f"{ENTRIES}."):
            name = self._member_of(override)
            own = key.removeprefix(f"{ENTRIES}.{name}.").partition(".")[0]
            if own not in (*_OF_ENTRIES, *Recipe.model_fields):
                raise RecipeError(f"{override_place(override)}: {printable(own)}: {_foreign(own)}")
            self.members[name].override(override, below=f"{ENTRIES}.{name}.")
            validated = key.replace(f".{name}.", f".{list(self.members).index(name)}.", 1)
            self.origins[validated] = Origin(override_place(override), key, text)
            return
        for layers in (self, *self.members.values()):
            layers.override(override)

    def _member_of(self, override: str) -> str:
        """Return the task that ``tasks.NAME.key=value`` is for."""
        if not self.members:
            own = override.removeprefix(f"{ENTRIES}.").partition(".")[2]
            remedy = (
                f"write {own}" if own.partition("=")[0] not in ("task", "weight") else "remove it"
            )
            raise RecipeError(
                f"{override_place(override)}: is for one task of a mixture, and the recipe has no "
                f"tasks; {remedy}"
            )
        name = next((n for n in self.members if override.startswith(f"{ENTRIES}.{n}.")), None)
        if name is None or override.startswith(f"{ENTRIES}.{name}.task="):
            raise RecipeError(
                f"{override_place(override)}: must be {ENTRIES}.NAME.key=value with a NAME of "
                f"{', '.join(self.members)}, and a key other than task"
            )
        return name

    def override(self, override: str, *, below: str = "") -> None:
        """Lay ``key.sub=value`` on these layers alone, without what stands in front of ``key``."""
        whole, text, value = parse_override(override)
        key = whole.removeprefix(below)
        *sections, last = key.split(".")
        node: Any = self.tree
        for depth, section in enumerate(sections):
            node = node.get(section)
            if node is None:
                break
            if not isinstance(node, dict):
                above = ".".join(sections[: depth + 1])
                raise RecipeError(
                    f"{override_place(override)}: {printable(above)} is a value, not a section; "
                    "remove what follows it"
                )
        layer = {last: value}
        for section in reversed(sections):
            layer = {section: layer}
        origin = Origin(override_place(override), whole, text)
        if isinstance(value, dict):  # a section given as a whole replaces what was there
            _forget(self, key)
            if isinstance(node, dict):
                node.pop(last, None)
        self.add(layer, origin)

    def place_of(self, key: str) -> str:
        """Return ``place: key`` with the place where the key, or what is below it, was set."""
        origin = self.origin_of(key) or self.origin_of(key.rpartition(".")[0])
        where = origin.at(key) if origin else self.place
        return f"{where}: {printable(key)}" if key else where

    def place_of_check(self, message: str, section: str) -> str:
        """Return the place of a check over several fields, ``key: what is wrong``.

        An override of any field that the message names is that place; else it is where the key
        stands, or, if it has its default, the last of the others.
        """
        prefix = f"{section}." if section else ""
        key = prefix + message.partition(": ")[0]
        named = [
            (name, origin)
            for name, origin in reversed(self.origins.items())
            if name == key
            or name.startswith(f"{key}.")
            or re.search(rf"(?<![\w.]){re.escape(name.removeprefix(prefix))}=", message)
        ]
        overrides = [(name, origin) for name, origin in named if origin.key]
        own = self.origin_of(key)
        chosen = overrides or ([(key, own)] if own else named)
        return f"{chosen[0][1].at(chosen[0][0])}: {key}" if chosen else self.place_of(key)

    def origin_of(self, key: str) -> Origin | None:
        """Return who set the key, or what is below it, last; None where nobody did."""
        below = None
        for name, origin in reversed(self.origins.items()):
            if key == name or key.startswith(f"{name}."):
                return origin
            if below is None and name.startswith(f"{key}."):
                below = origin
        return below


def merge_layers(
    paths: Path | Sequence[Path], overrides: Sequence[str] = (), *, task: str | None = None
) -> Layers:
    """Read recipe files and merge them, what holds ``for`` some methods and tasks resolved.

    A file ``recipes/...`` that is not there is taken from those that come with the package.
    Overrides are not applied yet, but a method or task that they set decides, and so does ``task``.
    Of a mixture, ``task`` (or that override) takes the entry of that name, or else none of them.
    Raises RecipeError for a file that cannot be read, for unknown names after ``for`` and for what
    cannot be an entry of ``tasks``.
    """
    files = [find_recipe(path) for path in ([paths] if isinstance(paths, Path) else paths)]
    read = [read_file(path) for path in files]
    trees = [file.tree for file in read]
    origins = [
        Origin(printable(str(path)), lines=file.lines)
        for path, file in zip(files, read, strict=True)
    ]
    given = {key: value for key, _, value in map(parse_override, overrides)}
    methods = (given.get("method"), *(tree.get("method") for tree in reversed(trees)))
    method = next(filter(None, methods), None)
    stack = _Stack(
        origins,
        [
            {key: value for key, value in tree.items() if key not in (WHERE, ENTRIES)}
            for tree in trees
        ],
        [_conditions(tree.get(WHERE), origin) for tree, origin in zip(trees, origins, strict=True)],
    )
    if entries := _find_entries(trees, origins, given):
        return _mixture(stack, entries, method, task or given.get("task"))
    tasks = (given.get("task"), *(tree.get("task") for tree in reversed(trees)))
    return stack.merged(_applying(method, next(filter(None, tasks), None), task=task))


@dataclass(frozen=True, slots=True)
class _Stack:
    """Files from left to right: who wrote them, what they say, and what holds ``for`` some."""

    origins: Sequence[Origin]
    trees: Sequence[dict[str, Any]]
    conditions: Sequence[Sequence[Condition]]

    def merged(self, *names: frozenset[str], entry: "_Entry | None" = None) -> Layers:
        """Merge what holds for one of ``names`` (for each of several tasks' names), and an entry of
        ``tasks`` at the end of its file.
        """
        merged = Layers(" + ".join(origin.place for origin in self.origins))
        for index, (origin, tree) in enumerate(zip(self.origins, self.trees, strict=True)):
            merged.add(tree, origin, is_first=index == 0)
            for condition in self.conditions[index]:
                if all(own.intersection(condition.names) for own in names):
                    merged.add(condition.layer, condition.origin)
                else:
                    merged.others.append(condition)
            if entry is not None and entry.index == index:
                merged.add(entry.layer, entry.origin)
        if entry is not None and entry.index == len(self.trees):  # of an override
            merged.add(entry.layer, entry.origin)
        return merged


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is said of one task of a mixture, and after which file it lies on the rest."""

    index: int
    layer: Mapping[str, Any]
    origin: Origin


def _find_entries(
    trees: Sequence[Mapping[str, Any]], origins: Sequence[Origin], given: Mapping[str, Any]
) -> dict[str, _Entry]:
    """Return the last ``tasks`` that is given, by task; nothing where ``task`` comes after it."""
    if ENTRIES in given:
        return _read_entries(given[ENTRIES], len(trees), Origin(f"override {ENTRIES}", ENTRIES))
    for index, (tree, origin) in reversed(list(enumerate(zip(trees, origins, strict=True)))):
        if ENTRIES in tree:
            return _read_entries(tree[ENTRIES], index, origin)
        if tree.get("task"):
            break
    return {}


def _read_entries(value: Any, index: int, origin: Origin) -> dict[str, _Entry]:
    """Return the entries of ``tasks``, none where it takes back what was there.

    Raises RecipeError for what names no task, or one twice, in whatever spelling.
    """
    if value is None:
        return {}
    if not isinstance(value, list):
        place = origin.at(ENTRIES)
        raise RecipeError(f"{place}: {ENTRIES}: must be a list, such as [{{task: arc}}, ...]")
    found: dict[str, _Entry] = {}
    tasks: dict[str, Task] = {}
    for number, entry in enumerate(value):
        own = replace(origin, above=f"{ENTRIES}.{number}")
        name = entry.get("task") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise RecipeError(f"{own.at('')}: must name a task, as {{task: arc, weight: 2.0}}")
        if wrong := next((key for key in entry if key not in _OF_ENTRIES), None):
            raise RecipeError(f"{own.at(wrong)}: {printable(wrong)}: {_foreign(wrong)}")
        with contextlib.suppress(UsageError):  # said when the recipe of the task is built
            task = get_task(name)
            name = task.name
            tasks.setdefault(name, replace(task, name="", source=""))
        if name in found:
            raise RecipeError(f"{own.at('task')}: {name} is there twice; remove one of its entries")
        if other := next((n for n in found if n in tasks and tasks[n] == tasks.get(name)), None):
            raise RecipeError(f"{own.at('task')}: {name} is {other}; remove one of their entries")
        found[name] = _Entry(index, {**entry, "task": name}, own)
    return found


def _foreign(key: str) -> str:
    """Return why a key cannot stand in an entry of ``tasks``, and what to do."""
    if key in Recipe.model_fields:
        return f"is one for the whole run; move it out of {ENTRIES}"
    close = difflib.get_close_matches(key, _OF_ENTRIES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(_OF_ENTRIES)}"
    return f"unknown key ({hint})"


def _mixture(stack: _Stack, entries: Mapping[str, _Entry], method: Any, task: Any) -> Layers:
    """Merge a mixture: what is the run's, and all that holds for each of its tasks."""
    index, origin = (first := next(iter(entries.values()))).index, replace(first.origin, above="")
    beside = stack.trees[index].get("task") if index < len(stack.trees) else None
    for tree in stack.trees:
        tree.pop("task", None)
    if task is not None:
        entry = entries.get(SPELLINGS.get(task, task)) if isinstance(task, str) else None
        merged = stack.merged(_applying(method, task, task=None), entry=entry)
        merged.tree.pop("weight", None)
        if entry is None:
            merged.tree["task"] = MIXED.join(entries)
        return merged
    names = {name: _applying(method, name, task=None) for name in entries}
    merged = stack.merged(*names.values())
    merged.tree |= {"task": beside} if beside else {}
    merged.origins[ENTRIES] = origin
    held = frozenset[str]().union(*names.values())
    merged.others = [one for one in merged.others if not held.intersection(one.names)]
    for name, entry in entries.items():
        merged.members[name] = stack.merged(names[name], entry=entry)
        merged.members[name].others = []  # judged once, with what is the run's
    return merged


def is_layer(tree: Mapping[str, Any]) -> bool:
    """Return whether a file is not a recipe by itself, but lies on one."""
    return any(tree.get(key) is None and not (key == "task" and tree.get(ENTRIES)) for key in WHOLE)


def _applying(method: Any, own_task: Any, *, task: str | None) -> frozenset[str]:
    """Return the names after ``for`` that apply; a wrong method or task is for validation."""
    names = {str(method)}
    try:
        found = get_task(str(task or own_task))
    except UsageError:
        return frozenset(names)
    return frozenset({*names, found.name, found.setting, _EVIDENCE[found.has_evidence]})


def _conditions(value: Any, origin: Origin) -> list[Condition]:
    """Return what stands below ``for`` in a file; RecipeError for unknown names."""
    if value is None:
        return []
    place = origin.at(WHERE)
    if not isinstance(value, Mapping):
        raise RecipeError(f"{place}: {WHERE}: must be a section, such as `for: {{dpo: ...}}`")
    known = [*METHOD_SECTIONS, *task_names(), *get_args(Setting), *_EVIDENCE.values()]
    found = []
    for key, layer in value.items():
        names = [name.strip() for name in key.split(",")]
        for name in names:
            if name not in known and not is_reference(name):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                where = f"{origin.at(f'{WHERE}.{key}')}: {WHERE}"
                raise RecipeError(f"{where}: {name!r} is not a method or task ({hint})")
        below = replace(origin, above=f"{WHERE}.{key}")
        if not isinstance(layer, dict):
            where = below.at("")
            raise RecipeError(f"{where}: must be a section of keys, such as `iterations: 2`")
        for banned in ("method", "task", WHERE):
            if banned in layer:
                where = below.at(banned)
                raise RecipeError(f"{where}: {banned}: cannot stand here; move it out of {WHERE}")
        found.append(Condition(names, layer, below))
    return found


def _merge(
    merged: Layers, node: dict[str, Any], layer: Mapping[str, Any], above: str, origin: Origin, *,
    keeps_nulls: bool,
) -> None:  # fmt: skip
    for name, value in layer.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            if not isinstance(node.get(name), dict):
                _forget(merged, key)
                node[name] = {}
            _merge(merged, node[name], value, key, origin, keeps_nulls=keeps_nulls)
            continue
        if isinstance(value, Mapping) and isinstance(node.get(name), dict):
            continue  # an empty section on one that is there
        _forget(merged, key)
        merged.origins[key] = origin
        if value is None and not keeps_nulls and _has_default(key):
            node.pop(name, None)
        else:
            node[name] = dict(value) if isinstance(value, Mapping) else value


def _forget(merged: Layers, key: str) -> None:
    for name in [name for name in merged.origins if name == key or name.startswith(f"{key}.")]:
        del merged.origins[name]


def _has_default(key: str) -> bool:
    keys = key.split(".")
    section = section_above(keys)
    known = section.model_fields.get(keys[-1]) if section else None
    return known is not None and not known.is_required()
