"""YAML of recipes and of ``key.sub=value``, read strictly, and written so that it reads back equal.

What comes out is plain: mappings by text, lists, texts, finite numbers, true, false and null. All
else is refused with its line and what to write instead: a key given twice, a tag, a date, a number
that YAML reads in another base, an anchor that holds itself, text that cannot be a file name.
Numbers such as 1e-06 are written as 1.0e-06, which YAML reads as a number.
"""

import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from optima.errors import RecipeError

logger = logging.getLogger(__name__)

FOLDER = "recipes"
ENTRIES = "tasks"
MAX_BYTES = 2**20  # a resolved recipe has 8 KiB
MAX_DEPTH = 20  # a recipe has 4
MAX_NODES = 20_000  # aliases written out; a resolved recipe has 300
MAX_DIGITS = 40  # beyond any bound of the schema
_OVERRIDE = re.compile(rf"({ENTRIES}\.[\w.:-]+|[a-z_][\w.]*)=")  # of package.module:NAME, too
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_BOOLS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
# What PyYAML complains of -> what to do; it names no remedy itself.
_REMEDIES = {
    r"'\t' that cannot start": "put spaces in place of the tab",
    "another document": "keep one document and remove the others with their `---`",
    "undefined alias": "define it above by `&`, or put the text in quotes",
    "mapping values are not allowed": "put text with `: ` in quotes, or mend the indentation",
    "cannot start any token": "put the text in quotes",
    "tag handle": "remove the tag",
    "incompatible YAML": "remove the line that begins with %YAML",
    "expected '<document start>'": "keep one document and remove the others with their `...`",
    "could not find expected ':'": "put a space after each `:`, and close quotes",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where YAML stands: a file, or the value of the override ``key=text``."""

    place: str
    key: str = ""

    def at(self, line: int) -> str:
        """Return the place of a line, counted from 0."""
        return self.place if self.key else f"{self.place}:{line + 1}"

    def quoting(self, text: str, whole: str) -> str:
        """Return the remedy that makes ``text``, in ``whole``, a text to YAML."""
        return quoting(self.key, text, whole) if self.key else "put it in quotes"


def quoting(key: str, text: str, whole: str) -> str:
    """Return what to write for the override ``key=whole`` so that ``text`` in it is a text.

    A shell takes the outer quotes away, YAML the inner ones.
    """
    if text == whole or not whole.startswith(("[", "{")) or whole.count(text) != 1:
        if whole.startswith(("[", "{")) and text != whole:
            return "put it in quotes"
        text = whole
    quoted = whole.replace(text, json.dumps(text, ensure_ascii=False))
    return f"write {printable(shlex.quote(f'{key}={quoted}'), len(quoted) * 10)}"


def printable(text: str, limit: int = 120) -> str:
    """Return text on one line, cut where it is long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


@dataclass(frozen=True, slots=True)
class Written:
    """A recipe file as it is written; ``lines`` has the line of each key, counted from 1."""

    tree: dict[str, Any]
    lines: Mapping[str, int]


def packaged_recipes() -> Path:
    """Return the folder of the recipes that come along: in the package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / FOLDER
    return inside if inside.is_dir() else package.parent / FOLDER


def find_recipe(path: Path) -> Path:
    """Return the file itself, or the packaged one of the name ``recipes/...`` where it is not."""
    if path.exists() or path.is_absolute() or path.parts[:1] != (FOLDER,):
        return path
    found = packaged_recipes().joinpath(*path.parts[1:])
    if ".." in path.parts or not found.is_file():
        return path
    logger.warning("%s is not here, taking %s", path, found)
    return found


def read_file(path: Path) -> Written:
    """Read a recipe file; RecipeError when it is not a mapping."""
    place = printable(str(path))
    listing = "`optima recipes` lists recipes and layers"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        is_assignment = " (an override is key=value, its key in small letters)"
        hint = is_assignment if "=" in path.name else ""
        raise RecipeError(f"{place}: there is no such file{hint}; {listing}") from error
    except OSError as error:
        raise RecipeError(f"{place}: cannot be read ({error.strerror}); {listing}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"{place}:{line}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{place}: has over {MAX_BYTES} bytes, too many for a recipe; {listing}")
    lines: dict[str, int] = {}
    tree = parse_yaml(text, Source(place), lines)
    if not isinstance(tree, dict):
        what = "is empty, " if tree is None else ""
        raise RecipeError(f"{place}: {what}must be a mapping of sections, such as `task: arc`")
    return Written(tree, lines)


def is_override(text: str) -> bool:
    """Return whether a word of a command line is ``key=value`` and no file."""
    return _OVERRIDE.match(text) is not None


def parse_override(override: str) -> tuple[str, str, Any]:
    """Return key, text and value of ``key.sub=text``; RecipeError when it is not of this form."""
    key, separator, text = override.partition("=")
    place, keys = override_place(override), key.split(".")
    if not separator or not all(part.strip() for part in keys) or len(keys) > MAX_DEPTH:
        raise RecipeError(
            f"{place}: must be key=value or section.key=value, such as train.learning_rate=1.0e-5"
        )
    return key, text, parse_yaml(text, Source(place, key)) if text.strip() else ""


def override_place(override: str) -> str:
    """Return what messages about an override begin with."""
    return f"override {printable(override)}"


def check_said_once(overrides: Sequence[str]) -> None:
    """Raise RecipeError where one of the words of a command takes back what another says.

    What files say is there to be changed; of two words that a user writes side by side one would be
    lost. A section may be opened by ``section={}`` for fields that follow.
    """
    values: dict[str, str] = {}  # the override of each key
    sections: dict[str, str] = {}
    for override in overrides:
        key, _, value = parse_override(override)
        lost = [other for name, other in values.items() if key.startswith(f"{name}.")]
        both = [*values.items(), *sections.items()]
        lost += [other for name, other in both if f"{name}.".startswith(f"{key}.")]
        if lost:
            raise RecipeError(
                f"{override_place(override)}: takes back {printable(lost[0])}, which stands "
                "before it; remove one of them"
            )
        is_open = isinstance(value, dict) or key == ENTRIES  # to what follows
        (sections if is_open else values)[key] = override
        values |= dict.fromkeys(_keys_below(key, value), override)


def _keys_below(key: str, value: Any) -> Iterator[str]:
    """Yield the key of each value that a section holds."""
    for name, below in value.items() if isinstance(value, dict) else ():
        inner = f"{key}.{name}"
        if isinstance(below, dict) and below:
            yield from _keys_below(inner, below)
        else:
            yield inner


def parse_yaml(text: str, source: Source, lines: dict[str, int] | None = None) -> Any:
    """Return the plain value that ``text`` holds; RecipeError, beginning with its place.

    The line of each key, and of each element of a list (``key.0``), is written into ``lines``.
    """
    try:
        node = _Loader(text, source).get_single_node()
    except yaml.reader.ReaderError as error:
        where = source.at(text[: error.position].count("\n"))
        code = f"#x{int(error.character):04x}"
        raise RecipeError(
            f"{where}: is not valid YAML: the character {code} is not allowed; remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = printable(error.problem or error.context or "cannot be read")
        remedies = (remedy for part, remedy in _REMEDIES.items() if part in what)
        remedy = next(remedies, "mend brackets, quotes, indentation")
        if source.key:
            remedy = f"mend brackets and quotes, or {quoting(source.key, text, text)}"
        where = source.at(mark.line if mark else 0)
        raise RecipeError(f"{where}: is not valid YAML: {what}; {remedy}") from error
    end = 0 if node is None else node.end_mark.index
    if source.key and text[end:].strip():
        raise RecipeError(
            f"{source.place}: `#` begins a comment in YAML, so what follows it is lost; "
            f"{quoting(source.key, text, text)}"
        )
    reading = _Reading(source, text, {} if lines is None else lines)
    return None if node is None else reading.value(node, source.key)


def write_yaml(tree: Any) -> str:
    """Return a mapping of plain values as YAML."""
    return yaml.dump(tree, sort_keys=False, allow_unicode=True, width=100, Dumper=_FloatDumper)


class _Loader(yaml.SafeLoader):
    """Composes nodes to a depth that no recipe has."""

    def __init__(self, text: str, source: Source) -> None:
        super().__init__(text)
        self._source = source
        self._text = text
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._depth > MAX_DEPTH:
            where = self._source.at(self.line)
            raise RecipeError(
                f"{where}: is nested over {MAX_DEPTH} deep, as no recipe is; remove it"
            )
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._source.key and event.anchor and not isinstance(event, yaml.AliasEvent):
            raise RecipeError(
                f"{self._source.place}: `&` names a value in YAML, which is not used here; "
                f"{quoting(self._source.key, self._text, self._text)}"
            )
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(slots=True)
class _Reading:
    """Turns nodes into plain values."""

    source: Source
    text: str
    lines: dict[str, int]
    n_nodes: int = 0
    above: list[yaml.Node] = field(default_factory=list)

    def value(self, node: yaml.Node, key: str) -> Any:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            self._refuse(node, key, "aliases write out too many values; write out what is meant")
        if any(node is other for other in self.above):
            self._refuse(node, key, "is an alias of what holds it; write out what is meant")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != _TAG + kind:
            self._refuse_tag(node, key)
        self.above.append(node)
        read = self._list(node, key) if kind == "seq" else self._mapping(node, key)
        self.above.pop()
        return read

    def _list(self, node: yaml.Node, key: str) -> list[Any]:
        for index, item in enumerate(node.value):
            self.lines[f"{key}.{index}"] = item.start_mark.line + 1
        return [
            self.value(item, f"{key}.{index}" if isinstance(item, yaml.MappingNode) else key)
            for index, item in enumerate(node.value)
        ]

    def _mapping(self, node: yaml.Node, key: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        merge = f"{_TAG}merge"  # read first: what is written here itself goes over it
        for name_node, value_node in sorted(node.value, key=lambda pair: pair[0].tag != merge):
            if name_node.tag == merge:
                for layer in self._merged(value_node, key):
                    merged.update(layer)
                continue
            if name_node.tag != f"{_TAG}str" or not isinstance(name_node, yaml.ScalarNode):
                shown = printable(str(getattr(name_node, "value", "")), 40)
                is_scalar = isinstance(name_node, yaml.ScalarNode)
                what = f"key {shown or '(empty)'}" if is_scalar else "key that is a list or section"
                self._refuse(name_node, key, f"{what}: must be the name of a field; rename it")
            name = self._text(name_node, key)
            inner = f"{key}.{name}" if key else name
            if not name.strip():
                self._refuse(name_node, key, "key '': must be the name of a field; rename it")
            if name in own:
                self._refuse(name_node, inner, "given twice; remove one of them")
            self.lines[inner] = name_node.start_mark.line + 1
            own[name] = self.value(value_node, inner)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, key: str) -> Iterator[dict[str, Any]]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part in reversed(nodes):  # the first of several wins
            layer = self.value(part, key)
            if not isinstance(layer, dict):
                self._refuse(part, key, "<<: must be a section, or a list of them; name one")
            yield layer

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind in ("str", "value"):
            return self._text(node, key)
        if kind == "null" and text in ("", "~", "null", "Null", "NULL"):
            return None
        if kind == "bool" and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        if kind == "timestamp" and text[:1].isdigit():
            remedy = self.source.quoting(text, self.text)
            self._refuse(node, key, f"{printable(text, 40)} is a date to YAML; {remedy}")
        if kind in ("int", "float"):
            return self._number(node, key, kind)
        return self._refuse_tag(node, key)

    def _number(self, node: yaml.ScalarNode, key: str, kind: str) -> int | float:
        text = node.value
        if len(text) > MAX_DIGITS:
            self._refuse(node, key, f"{text[:20]}... has over {MAX_DIGITS} digits; write fewer")
        if kind == "int" and _DECIMAL.fullmatch(text):
            return int(text.replace("_", ""))
        try:
            read = getattr(yaml.SafeLoader(""), f"construct_yaml_{kind}")(node)
        except (ValueError, IndexError):  # a tag on something else
            return self._refuse_tag(node, key)
        if kind == "float" and ":" not in text:
            return float(read)
        # 010 is 8, 0x10 is 16 and 1:30 is 90: nobody is given another number than the one they see
        remedy = self.source.quoting(text, self.text)
        return self._refuse(node, key, f"{text} is {read} to YAML; write {read}, or {remedy}")

    def _text(self, node: yaml.ScalarNode, key: str) -> str:
        text: str = node.value
        if found := _UNPRINTABLE.search(text):
            code = f"#x{ord(found[0]):04x}"
            self._refuse(node, key, f"holds the character {code}, which is not allowed; remove it")
        return text

    def _refuse_tag(self, node: yaml.Node, key: str) -> NoReturn:
        tag = printable(node.tag.replace(_TAG, "!!"), 60)
        shown = f"{printable(node.value, 40)} is " if isinstance(node, yaml.ScalarNode) else ""
        whole = self.text
        quoted = f", or {quoting(self.source.key, whole, whole)}" if self.source.key else ""
        self._refuse(
            node, key, f"{shown}not a {tag} that a recipe can hold; remove the tag{quoted}"
        )

    def _refuse(self, node: yaml.Node, key: str, what: str) -> NoReturn:
        where = self.source.at(node.start_mark.line)
        named = f"{printable(key, 60)}: " if key else ""
        raise RecipeError(f"{where}: {named}{what}")


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
