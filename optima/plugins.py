"""What other packages add: tasks, role sets and pools of formats.

A package announces an object by an entry point of one of the groups below, under a name of its own;
or a recipe names the object itself, as ``package.module:NAME``. Code of others runs only where it
was named, or where all plug-ins are listed. Whatever is wrong with one is a ``UsageError``.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import TypeVar

from optima.errors import UsageError

TASKS, PROMPTS, FORMATS = "optima.tasks", "optima.prompts", "optima.formats"

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*(?:\.\w+)*)")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plugin:
    """An object that is not ours: its name, where it stands, and the distribution it came with.

    ``source`` has the version, "optima-estimates 0.1", or is the reference where none is known.
    """

    name: str
    reference: str
    source: str

    def __str__(self) -> str:
        """Return name and source for a message."""
        where = "" if self.source == self.name else f" of {self.source}"
        return f"{self.name!r}{where}"


def is_reference(name: str) -> bool:
    """Tell whether ``name`` is ``package.module:NAME``."""
    return _REFERENCE.fullmatch(name) is not None


@cache
def installed(group: str) -> tuple[Plugin, ...]:
    """Return the plug-ins of a group by name; nothing is imported."""
    found = set()
    for point in metadata.entry_points(group=group):
        reference = point.value.partition("[")[0].replace(" ", "")
        source = f"{point.dist.name} {point.dist.version}" if point.dist else reference
        found.add(Plugin(point.name, reference, source))
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.source)))


def find(group: str, name: str, built_in: Collection[str] = ()) -> Plugin | None:
    """Return the plug-in that ``name`` means, None where it means none; of two it is neither."""
    if is_reference(name):
        return Plugin(name, name, _distribution(name.partition(".")[0].partition(":")[0]) or name)
    found = [plugin for plugin in installed(group) if plugin.name == name]
    owners = [*(["optima itself"] if name in built_in else []), *(p.source for p in found)]
    if len(owners) > 1:
        raise UsageError(
            f"{name!r} is given by {' and by '.join(owners)}; uninstall one, or rename its entry "
            f"point in the group {group}"
        )
    return found[0] if found else None


def load(plugin: Plugin, kind: type[T]) -> T:
    """Import the object of a plug-in, which must be a ``kind``."""
    if not is_reference(plugin.reference):
        raise UsageError(
            f"{plugin}: {plugin.reference!r} is not package.module:NAME; mend its entry point"
        )
    module_name, _, path = plugin.reference.partition(":")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # code of others raises whatever it likes
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        remedy = f"mend {module_name}, or name another"
        if absent is not None and f"{module_name}.".startswith(f"{absent}."):
            remedy = "install it in this environment, or put its folder on PYTHONPATH"
        raise UsageError(
            f"{plugin}: cannot be imported ({describe_error(error)}); {remedy}"
        ) from error
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    if isinstance(found, kind):
        return found
    others = [name for name, value in vars(module).items() if isinstance(value, kind)]
    there = ", ".join(f"{module_name}:{name}" for name in others) or f"none in {module_name}"
    what = "does not exist" if found is None else f"is of type {type(found).__name__}"
    raise UsageError(
        f"{plugin}: {plugin.reference} {what}, where an object of type {kind.__name__} is "
        f"expected; there is {there}"
    )


def describe_error(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    said = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@cache
def _distribution(package: str) -> str | None:
    """Return name and version of the distribution that installed a top-level package."""
    names = metadata.packages_distributions().get(package)
    return f"{names[0]} {metadata.version(names[0])}" if names else None
