"""What a task is to the rest of the project, the data of it that a recipe takes, and typed rows.

A task says itself how it is asked, marked, scored and split, and what it leaves out; no other
module asks which task it has. A row that breaks a rule raises ``MalformedRowError`` with the
reason; loading counts and names it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from optima.errors import OptimaError
from optima.plugins import describe_error, is_reference
from optima.tasks.dealing import Dealing
from optima.tasks.texts import normalise_text
from optima.types import AnswerStyle, Problem, Section, Setting

Row = Mapping[str, Any]
N_PAIR = 2  # agents, of which each has a role of its own
WITHHELD = frozenset(("", "<unk>"))  # what releases write where they keep an answer secret


class DataSection(Section):
    """Which problems, from where."""

    path: str | None = None
    """Directory with the benchmark's native train and test files; None reads the dataset hub."""
    train_file: str | None = None
    """File below ``path`` for the train split; None takes the task's usual names."""
    test_file: str | None = None
    """File below ``path`` for the test split; None takes the task's usual names."""
    hub_id: str | None = None
    """Dataset id on the hub; None takes the task's own."""
    hub_revision: str | None = None
    """Commit of the hub dataset; None takes the task's own."""
    hub_configs: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Configurations of the hub dataset that make up a split together; None takes the task's."""
    train_split: str | None = None
    """Name of the train split on the hub; None takes the task's own."""
    test_split: str | None = None
    """Name of the test split on the hub; None takes the task's own."""
    n_train: int | None = Field(default=None, ge=1, le=10_000_000)
    """Problems per iteration, a seeded sample of the train split; None takes all."""
    draw: Literal["anew", "in_turn"] = "anew"
    """How an iteration comes to its problems: by a sample of its own (reference), or by the next in
    one seeded order, so that none comes again before all have come; trees and scripts of a cold
    start take them from that order's other end. For small train splits: a problem that was trained
    on is remembered, and what is selected of it teaches little."""
    n_test: int | None = Field(default=None, ge=1, le=10_000_000)
    """Held-out problems evaluated after each iteration, a seeded sample; None takes all."""
    first_test: int | None = Field(default=None, ge=1, le=10_000_000)
    """Only so many problems of the test split, the first in its order, of which ``n_test`` are
    drawn; the reference takes the first 1,000 of the tasks of information exchange. None: all."""
    overlap: Literal["refuse", "drop", "keep"] = "refuse"
    """What is done about test problems that stand in the train split too (equal in question,
    choices, whatever their order, and gold answer): stop, leave them out of the training, or train
    on them."""
    max_malformed: float = Field(default=0.02, ge=0, le=1)
    """Share of malformed rows, those without a gold answer in, above which loading fails; below it
    they are counted and skipped."""
    paragraphs: Literal["whole", "lead_sentence"] = "whole"
    """What of each paragraph of hotpot_qa and mwh_qa an agent is given; ``lead_sentence`` restores
    the reference."""
    passages: Literal["description", "document"] = "description"
    """What of each search result of trivia_qa is dealt: its short description (reference), or the
    whole document, mostly longer than ``train.max_length``. Rows without search results give their
    Wikipedia pages up to the first empty line, or the whole of them."""
    max_context_words: int | None = Field(default=None, ge=20, le=1_000_000)
    """Words of context per agent, evidence kept; for models with short contexts. None: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("train_file", "test_file"):
            if getattr(self, name) is not None and self.path is None:
                raise ValueError(f"{name}: is looked for below path, which is not set; set path")
        for name in ("hub_id", "hub_revision", "hub_configs", "train_split", "test_split"):
            if getattr(self, name) is not None and self.path is not None:
                raise ValueError(f"{name}: contradicts path={self.path}; remove one of them")
        return self


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


class JudgeError(OptimaError):
    """The score of one answer could not be computed; the message names the answer and the cause."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How an answer is scored against a gold one, and which two answers are the same by it.

    All functions take two texts that are not empty, and the texts of the problem's choices.
    ``score(answer, gold, choices)`` is in [0, 1]. ``is_same(a, b, choices)`` is symmetric and
    agrees with it: what is the same as the gold scores 1. Without it two answers are the same when
    each scores 1 against the other. ``adds_nothing`` tells whether an unmarked text, which is the
    same as an answer, says no more than that; without it the words must be equal.

    A score that may hang, or that needs what is slow to import, is given by its place instead,
    ``"package.module:function"``: processes that can be killed import and call it. Where there is
    ``is_same`` too, its True scores 1 and its False 0; only what it leaves open, None, is asked.
    """

    name: str
    score: Callable[[str, str, Sequence[str]], float] | str
    is_same: Callable[[str, str, Sequence[str]], bool | None] | None = None
    adds_nothing: Callable[[str, str, Sequence[str]], bool] | None = None

    def __post_init__(self) -> None:
        if not callable(self.score) and not is_reference(str(self.score)):
            raise ValueError(
                f"metric {self.name}: score is {self.score!r}; give a function, or the place of "
                "one, package.module:function"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def is_slow(self) -> bool:
        """Whether the score is computed in processes that can be killed."""
        return isinstance(self.score, str)

    def points(self, answer: str, gold: str, choices: Sequence[str] = ()) -> float:
        """Return the score; raises ``JudgeError`` where there is none in [0, 1]."""
        if isinstance(self.score, str):
            raise TypeError(f"metric {self.name}: is slow, so its scores are for the judge")
        try:
            value = self.score(answer, gold, choices)
        except (Exception, SystemExit) as error:
            raise JudgeError(
                self._failed(answer, gold, f"raised {describe_error(error)}")
            ) from error
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise JudgeError(
                self._failed(answer, gold, f"gave {value!r}, which is not a number from 0 to 1")
            )
        return float(value)

    def same(self, a: str, b: str, choices: Sequence[str] = ()) -> bool | None:
        """Tell whether two answers are the same by the rule that scores the task.

        Symmetric; every text but the empty one is the same as itself. None, of a slow metric only,
        means that the judge has to compare them. Raises ``JudgeError``.
        """
        if a == b:
            return bool(a)
        if not a.strip() or not b.strip():
            return False
        if self.is_same is not None:
            try:
                told = self.is_same(a, b, choices)
                return None if told is None else bool(told)
            except (Exception, SystemExit) as error:
                raise JudgeError(self._failed(a, b, f"raised {describe_error(error)}")) from error
        if self.is_slow:
            return None
        return self.points(a, b, choices) == 1.0 == self.points(b, a, choices)

    def says_only(self, text: str, answer: str, choices: Sequence[str] = ()) -> bool:
        """Tell whether an unmarked ``text`` means ``answer`` and nothing more.

        Raises ``JudgeError``.
        """
        if self.same(text, answer, choices) is not True:
            return False
        if self.adds_nothing is None:
            return normalise_text(text) == normalise_text(answer)
        try:
            return bool(self.adds_nothing(text, answer, choices))
        except (Exception, SystemExit) as error:
            what = f"raised {describe_error(error)}"
            raise JudgeError(self._failed(text, answer, what)) from error

    def _failed(self, a: str, b: str, what: str) -> str:
        return f"answer {shown(a)} against {shown(b)}: metric {self.name} {what}"


def shown(text: str) -> str:
    """Return an answer for a message, the beginning of a long one."""
    return repr(text) if len(text) <= 80 else f"{text[:77]!r}..."


@dataclass(frozen=True, slots=True)
class RoleSet:
    """Which prompt each agent gets, by the names of templates.

    ``two`` are those of two agents in order of speaking, ``more`` that of each of three and more.
    ``directory`` holds the templates that are not built in, and those that replace built-in ones of
    the same name. A format of the pool changes the prompts of all agents or of the first alone.
    """

    two: tuple[str, str]
    more: str
    directory: Path | None = None
    formats: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.two, tuple) or len(self.two) != N_PAIR:
            raise ValueError(f"roles: two is {self.two!r}; give a tuple of two templates' names")
        if not isinstance(self.directory, Path | None):
            raise ValueError(f"roles: directory is {self.directory!r}; give a pathlib.Path")
        if self.formats not in ("all", "first"):
            raise ValueError(f"roles: formats is {self.formats!r}; give 'all' or 'first'")

    def template(self, agent: int, n_agents: int) -> str:
        """Return the name of the template of an agent among two or more."""
        return self.two[agent] if n_agents == N_PAIR else self.more

    def names(self) -> tuple[str, ...]:
        """Return the names of all templates."""
        return (*self.two, self.more)


# Paper section 3.1: in debate the pool changes the solver's prompt only.
ROLES: dict[Setting, RoleSet] = {
    "information_exchange": RoleSet(("information_exchange",) * 2, "information_exchange"),
    "debate": RoleSet(("solver", "critic"), "debater", formats="first"),
}
Excluded = Callable[[Row], str | None]


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: how it is talked about, scored and read.

    Exactly one of ``parse`` (a row of the native files or the hub to a problem) and ``generate``
    (split, number of problems or None, dealing) is set. ``has_evidence`` says that the rows carry
    gold evidence, so that conversations can be scripted from it. ``train_files`` and
    ``test_files`` are glob patterns below ``data.path``, the first that matches is taken.
    ``reads`` names the fields of a recipe that only some tasks look at and this one does.

    ``exclude`` returns, once per reading of the train split, a function that gives the reason why
    a row must not be trained on, None where it may stay; or None where nothing is left out.
    ``roles`` are the prompts, those of the setting where left out. ``n_original_test`` is how many
    problems of the test split the original project's programs ask, None for all. ``source`` is
    set on loading: where a plug-in comes from, with its version; empty for what is built in.
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
    exclude: Callable[[DataSection], Excluded | None] | None = None
    roles: RoleSet | None = None
    n_original_test: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        rules = {
            "parse and generate: exactly one must be set": (self.parse is None)
            != (self.generate is None),
            f"setting: must be one of {', '.join(get_args(Setting))}": self.setting in ROLES,
            f"answer_style: must be one of {', '.join(get_args(AnswerStyle))}": self.answer_style
            in get_args(AnswerStyle),
            "metric: must be an object of type Metric": isinstance(self.metric, Metric),
            "roles: must be an object of type RoleSet": isinstance(self.roles, RoleSet | None),
        }
        for rule, is_kept in rules.items():
            if not is_kept:
                raise ValueError(f"task {self.name}: {rule}")

    @property
    def role_set(self) -> RoleSet:
        """The prompts that its agents get."""
        return self.roles or ROLES[self.setting]

    @property
    def builds_on_previous(self) -> bool:
        """Whether each SFT starts from the model before it (paper Alg. 1: not in debate)."""
        return self.setting == "information_exchange"

    @property
    def versions(self) -> tuple[str, ...]:
        """What a stage depends on beside the recipe: the plug-in that the task came with."""
        return (self.source,) if self.source else ()


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
