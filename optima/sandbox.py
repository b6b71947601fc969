"""Templates that others wrote, chat templates of models and prompts of recipes, in a sandbox.

A template is a program. What it may reach is bounded by jinja2; how large a number or a text it
makes, and how long it takes, are bounded here while it is proven at a start (``bounded``), in its
steps, so that every machine says the same. A rendering afterwards, one of millions, is not watched.
"""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 5_000_000  # lines and calls of Python, some seconds; the proof of a talk takes 70,000
MAX_SIZE = 100_000_000  # characters of a text, entries of a list, or a number that asks for them
_MAX_BITS = 4096  # of a whole number
_WIDE, _WIDE_FIELD = re.compile(r"%[-+ #0]*\d{9}"), re.compile(r"\d{9}")  # widths in formats
_WATCHED = ("jinja2.", "json", "string")  # a template itself has no name


class ExcessError(Exception):
    """A template takes more steps, or makes larger things, than any that is sensible."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates reach nothing of Python, and whose operators have bounds.

    What draws at random is not there: a text would differ between generation and training.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.filters["random"], self.globals["lipsum"]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may see an attribute; of a loop, asked for each message, at once.

        jinja2 compares the loop with all kinds that have methods which change them, and it is none.
        """
        if type(obj) is LoopContext and not attr.startswith("_"):
            return True
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator gives; ExcessError, before it is done, for what is too large."""
        if operator == "%":
            is_excessive = isinstance(left, str) and _is_wide(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            n, m = left.bit_length(), right.bit_length()
            is_excessive = (n * abs(right) if operator == "**" else n + m) > _MAX_BITS
        else:
            lengths = (len(x) if hasattr(x, "__len__") else x for x in (left, right))
            n, m = (x if isinstance(x, int) else 0 for x in lengths)
            is_excessive = n * m > MAX_SIZE
        if is_excessive:
            raise ExcessError(f"{operator} makes something larger than {MAX_SIZE:,}")
        return super().call_binop(context, operator, left, right)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let what is parsed and rendered in the context raise ExcessError for too much of anything."""
    n_steps = 0

    def watch(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps > MAX_STEPS:
            raise ExcessError(f"takes more than {MAX_STEPS:,} steps")
        if event in ("call", "return") and _is_watched(frame):
            values = tuple(frame.f_locals.values()) if event == "call" else (value,)
            field = frame.f_locals.get("format_spec")  # of what `string` formats
            is_wide = isinstance(field, str) and _WIDE_FIELD.search(field)
            if is_wide or _is_excessive(values):
                raise ExcessError(f"asks for something larger than {MAX_SIZE:,}")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _is_watched(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return name is None or name.startswith(_WATCHED)


def _is_wide(form: str, values: Any) -> bool:
    """Tell whether ``form % values`` is too large; a text to be put in is no form itself."""
    values = values.values() if isinstance(values, dict) else values
    given = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else ()
    numbers = [one for one in (*given, values) if isinstance(one, int)]
    return _is_excessive(form) or any(map(_is_excessive, numbers))


def _is_excessive(value: Any, depth: int = 2) -> bool:
    """Tell whether a value, or one in it, is too large, or asks for a text that is."""
    if isinstance(value, int):
        return abs(value) > MAX_SIZE
    if isinstance(value, str):
        return len(value) > MAX_SIZE or _WIDE.search(value) is not None
    if isinstance(value, tuple | list | dict) and depth:
        items = value.values() if isinstance(value, dict) else value
        return len(value) > MAX_SIZE or (
            len(value) < 99 and any(_is_excessive(item, depth - 1) for item in items)
        )
    return False
