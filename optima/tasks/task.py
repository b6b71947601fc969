"""What a benchmark is to the rest of the project, and typed access to the fields of its rows.

A row that breaks a rule raises ``MalformedRowError`` with the reason; loading counts and names it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optima.tasks.dealing import Dealing
from optima.types import AnswerStyle, Metric, Problem, Setting

Row = Mapping[str, Any]
WITHHELD = frozenset(("", "<unk>"))  # what releases write where they keep an answer secret


class MalformedRowError(ValueError):
    """A row of a dataset cannot become a problem; the message is the reason."""


class WithheldGoldError(MalformedRowError):
    """A row has a question and no gold answer, as in splits whose answers are kept secret."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A dataset on the Hugging Face hub; ``revision`` None takes the newest commit.

    ``configs`` are read one after the other and make up one split together.
    """

    dataset_id: str
    configs: tuple[str, ...]
    train_split: str
    test_split: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: how it is talked about, scored and read.

    Exactly one of ``parse`` (a row of the native files or the hub to a problem) and ``generate``
    (split, number of problems or None, dealing) is set. ``has_evidence`` says that the rows carry
    gold evidence, so that conversations can be scripted from it. ``train_files`` and
    ``test_files`` are glob patterns below ``data.path``, the first that matches is taken.
    ``reads`` names the fields of a recipe that only some tasks look at and this one does.
    """

    name: str
    title: str
    setting: Setting
    answer_style: AnswerStyle
    metric: Metric
    has_evidence: bool
    hub: HubSource | None = None
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    parse: Callable[[Row, Dealing], Problem] | None = None
    generate: Callable[[str, int | None, Dealing], Iterator[Problem]] | None = None
    reads: frozenset[str] = frozenset()


def file_names(*stems: str) -> tuple[str, ...]:
    """Return the patterns of the files and shards that a split named by one of ``stems`` has."""
    return tuple(
        pattern
        for stem in stems
        for pattern in (f"{stem}.jsonl", f"{stem}.json", f"{stem}.parquet", f"{stem}-*.parquet")
    )


def text_field(row: Row, name: str) -> str:
    """Return the non-empty text of field ``name``, stripped."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise MalformedRowError(f"field {name!r} is {describe(value)}, not a non-empty text")
    return value.strip()


def gold_field(row: Row, name: str) -> str:
    """Return the gold answer in field ``name``, stripped; WithheldGoldError where there is none."""
    value = row.get(name)
    if value is None or (isinstance(value, str) and value.strip().lower() in WITHHELD):
        raise WithheldGoldError(f"field {name!r} is {describe(value)}, no gold answer")
    return text_field(row, name)


def mapping_field(row: Row, name: str) -> Row:
    """Return field ``name``, which must be an object."""
    value = row.get(name)
    if not isinstance(value, Mapping):
        raise MalformedRowError(f"field {name!r} is {describe(value)}, not an object")
    return value


def texts_field(row: Row, name: str) -> list[str]:
    """Return field ``name``, which must be a list of texts; it may be empty."""
    value = row.get(name)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise MalformedRowError(f"field {name!r} is {describe(value)}, not a list of texts")
    return list(value)


def describe(value: object) -> str:
    """Return a short form of ``value`` for a message."""
    if value is None:
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
