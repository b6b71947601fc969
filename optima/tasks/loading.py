"""Rows to problems: native files, the dataset hub, or code; nothing is dropped without a word.

A row that is malformed, or has no gold answer, is counted and skipped, up to the share
``data.max_malformed``; above it loading fails. Repeated rows and those that the task excludes are
left out and counted apart. Test problems that stand in the train split too are refused, unless
``data.overlap`` says otherwise. Draws are seeded and do not depend on the order of rows.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

from optima.errors import DataError, OptimaError
from optima.plugins import describe_error
from optima.seeding import derive_seed, digest
from optima.tasks.choices import named_choice
from optima.tasks.dealing import NO_CONTEXT, Dealing
from optima.tasks.judging import Judge, JudgeError
from optima.tasks.numbers import parse_number
from optima.tasks.rows import RawRow, read_hub, read_path
from optima.tasks.task import (
    DataSection,
    Excluded,
    MalformedRowError,
    Row,
    Task,
    WithheldGoldError,
    describe,
)
from optima.types import Problem

T = TypeVar("T")
Split = Literal["train", "test"]
SkipKind = Literal["malformed", "withheld", "duplicate", "excluded"]
_LETTERED = re.compile(r"[A-Z]\. ")
N_NAMED = 5  # rows named in a message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that became no problem; ``row`` counts from 1 over the whole split."""

    row: int
    kind: SkipKind
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """A split in file order, what was skipped of it, and how many rows there were."""

    problems: tuple[Problem, ...]
    n_rows: int
    skipped: tuple[SkippedRow, ...] = ()

    def counts(self) -> str:
        """Return how many problems there are and what was skipped, each kind by its name."""
        n = Counter(row.kind for row in self.skipped)
        kinds = [f"{n[kind]} {kind}" for kind in ("malformed", "duplicate", "excluded")]
        kinds += [f"{n['withheld']} without a gold answer"] if n["withheld"] else []
        return f"{len(self.problems)} problems of {self.n_rows} rows ({', '.join(kinds)})"


def load_splits(
    task: Task, data: DataSection, *, n_agents: int, seed: int
) -> tuple[LoadedProblems, LoadedProblems]:
    """Return the train and the test split, apart as ``data.overlap`` says.

    Raises ``DataError`` as ``load_problems`` does, and for problems that stand in both.
    """
    train = load_problems(task, data, "train", n_agents=n_agents, seed=seed)
    test = load_problems(task, data, "test", n_agents=n_agents, seed=seed)
    if task.generate is not None:
        return train, test  # made apart, whatever the seed
    shared = overlap(train.problems, test.problems)
    if not shared:
        return train, test
    what = describe_overlap(shared, len(test.problems), "the train split")
    if data.overlap == "refuse":
        raise DataError(
            f"data.overlap: {what}; give another test split, or set data.overlap=drop to train "
            "without them, or data.overlap=keep to train and test on them"
        )
    done = "left out of the training" if data.overlap == "drop" else "kept, scores tell little"
    logger.warning("%s: %s: %s", task.name, what, done)
    if data.overlap == "keep":
        return train, test
    keys = {content_key(problem) for problem in shared}
    kept = tuple(problem for problem in train.problems if content_key(problem) not in keys)
    if not kept:
        raise DataError(
            f"{task.name} train: no problem is left without those of the test split; give another "
            "data.test_file or data.test_split"
        )
    return replace(train, problems=kept), test


def overlap(trained: Iterable[Problem], tested: Sequence[Problem]) -> list[Problem]:
    """Return the problems of ``tested`` that stand among ``trained``."""
    keys = {content_key(problem) for problem in trained}
    return [problem for problem in tested if content_key(problem) in keys]


def describe_overlap(shared: Sequence[Problem], n_tested: int, place: str) -> str:
    """Return how many test problems stand in ``place`` too, and which, for a message."""
    named = "; ".join(describe(problem.question) for problem in shared[:N_NAMED])
    return f"{len(shared)} of {n_tested} test problems stand in {place} too, such as {named}"


def content_key(problem: Problem) -> str:
    """Return a digest of what is asked: the question, its choices, and the first gold answer.

    Case, white space, the order of the choices and the notation of a number make no difference.
    """
    gold, choices = problem.golds[0], problem.choices
    index = named_choice(gold, choices) if choices else None
    gold = gold if index is None else choices[index]
    number = parse_number(gold)
    lines = problem.question.splitlines()
    asked = [line for line in lines if not (_LETTERED.match(line) and line[3:] in choices)]
    texts = (
        "\n".join(asked),
        *sorted(choices, key=str.casefold),
        gold if number is None else str(number),
    )
    return digest(*(" ".join(text.casefold().split()) for text in texts))


def load_problems(
    task: Task, data: DataSection, split: Split, *, n_agents: int, seed: int
) -> LoadedProblems:
    """Return the problems of a split, in file order, unsampled: all, or ``data.first_test``.

    The built-in task makes ``data.n_train`` or ``data.n_test`` of them. Raises ``DataError`` when
    files are missing or unreadable, when too many rows are malformed, or when no problem is left.
    An agent alone is told what two would be told together, so its problems are the same ones.
    """
    if n_agents == 1:
        dealt = load_problems(task, data, split, n_agents=2, seed=seed)
        return replace(dealt, problems=tuple(map(told_to_one, dealt.problems)))
    dealing = Dealing(
        n_agents=n_agents,
        seed=seed,
        paragraphs=data.paragraphs,
        max_context_words=data.max_context_words,
        passages=data.passages,
    )
    n_first = data.first_test if split == "test" else None
    if task.generate is not None:
        if data.path is not None or data.hub_id is not None:
            raise DataError(
                f"data.path, data.hub_id: {task.name} is made by code and reads no data; "
                "remove both"
            )
        n_problems = data.n_train if split == "train" else data.n_test
        problems = _generated(task, split, n_problems, dealing)
        _prove(task, problems)
        return LoadedProblems(problems[:n_first], n_rows=len(problems))
    rows = read_path(task, data, split) if data.path is not None else read_hub(task, data, split)
    excluded = _excluded(task, data) if split == "train" else None
    loaded = parse_rows(task, rows, dealing, excluded)
    _check(task, data, split, loaded)
    _prove(task, loaded.problems)
    return replace(loaded, problems=loaded.problems[:n_first])


def parse_rows(
    task: Task, rows: Iterable[RawRow], dealing: Dealing, excluded: Excluded | None = None
) -> LoadedProblems:
    """Return the problems of ``rows``; the caller judges whether too many were skipped."""
    problem_by_id: dict[str, Problem] = {}
    row_by_id: dict[str, int] = {}
    skipped = []
    number = 0
    for number, raw in enumerate(rows, start=1):
        try:
            problem = _parsed(task, raw.checked(), dealing, raw.place)
        except MalformedRowError as error:
            kind: SkipKind = "withheld" if isinstance(error, WithheldGoldError) else "malformed"
            skipped.append(SkippedRow(number, kind, f"{raw.place}: {error}"))
            continue
        except UnicodeEncodeError:  # JSON can write one, and no text can hold it
            skipped.append(SkippedRow(number, "malformed", f"{raw.place}: has a lone surrogate"))
            continue
        except RecursionError:
            skipped.append(SkippedRow(number, "malformed", f"{raw.place}: is nested too deeply"))
            continue
        if excluded is not None and (reason := excluded(raw.checked())):
            skipped.append(SkippedRow(number, "excluded", reason))
        elif problem.problem_id in problem_by_id:
            first = row_by_id[problem.problem_id]
            if task.source and content_key(problem) != content_key(
                problem_by_id[problem.problem_id]
            ):
                raise DataError(
                    f"{raw.place}: task {task.name} ({task.source}) gives it the problem_id "
                    f"{problem.problem_id!r} of row {first}, another problem; mend its parse"
                )
            skipped.append(SkippedRow(number, "duplicate", f"{raw.place}: same as row {first}"))
        else:
            problem_by_id[problem.problem_id] = problem
            row_by_id[problem.problem_id] = number
    return LoadedProblems(tuple(problem_by_id.values()), number, tuple(skipped))


def _parsed(task: Task, row: Row, dealing: Dealing, place: str) -> Problem:
    """Return the problem of a row; DataError where the code of another package fails."""
    if task.parse is None:
        raise ValueError(f"{task.name} reads no rows")
    if not task.source:
        return task.parse(row, dealing)
    try:
        return _checked(task, task.parse(row, dealing), dealing)
    except (MalformedRowError, UnicodeEncodeError, RecursionError):
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{place}: task {task.name} ({task.source}) fails on it ({describe_error(error)}); "
            "mend its parse, which raises MalformedRowError for a row that cannot be used"
        ) from error


def _excluded(task: Task, data: DataSection) -> Excluded | None:
    """Return what leaves rows out; DataError where the code of another package fails."""

    def guarded(call: Callable[..., T], *args: object) -> T:
        try:
            return call(*args)
        except OptimaError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"task {task.name} ({task.source}): its exclude fails ({describe_error(error)}); "
                "mend it"
            ) from error

    if task.exclude is None or not task.source:
        return None if task.exclude is None else task.exclude(data)
    found = guarded(task.exclude, data)
    return None if found is None else partial(guarded, found)


def _generated(task: Task, split: Split, n: int | None, dealing: Dealing) -> tuple[Problem, ...]:
    """Return the problems that a task makes; DataError where the code of another package fails."""
    assert task.generate is not None
    if not task.source:
        return tuple(task.generate(split, n, dealing))
    try:
        problems = tuple(
            _checked(task, problem, dealing) for problem in task.generate(split, n, dealing)
        )
        if not problems:
            raise ValueError("it made no problem")
        place_by_id: dict[str, int] = {}
        for place, problem in enumerate(problems, start=1):
            first = place_by_id.setdefault(problem.problem_id, place)
            if first != place:
                raise ValueError(
                    f"problems {first} and {place} have one problem_id, {problem.problem_id!r}"
                )
    except OptimaError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"task {task.name} ({task.source}): its generate fails for the {split} split "
            f"({describe_error(error)}); mend it"
        ) from error
    return problems


def _checked(task: Task, problem: object, dealing: Dealing) -> Problem:
    """Return a problem of another package under the task's name; ValueError for what it lacks."""
    if not isinstance(problem, Problem):
        raise TypeError(f"a {type(problem).__name__} was made, not a Problem")
    if not problem.golds or not all(gold.strip() for gold in problem.golds):
        raise ValueError(f"problem {problem.problem_id} has no gold answer, or an empty one")
    if len(problem.contexts) not in (0, dealing.n_agents):
        raise ValueError(
            f"problem {problem.problem_id} has {len(problem.contexts)} contexts for "
            f"{dealing.n_agents} agents"
        )
    return problem.model_copy(update={"task": task.name})


def _prove(task: Task, problems: Sequence[Problem]) -> None:
    """Score the first gold of another package's task against itself, before models are asked."""
    if not task.source or not problems:
        return
    first = problems[0]
    gold = first.golds[0]
    try:
        with Judge(n_workers=1) as judge:
            judge.prove(task.metric)
            score = judge.score(task.metric, gold, (gold,), first.choices)
            task.metric.same(gold, first.question, first.choices)
            task.metric.says_only(gold, gold, first.choices)
    except JudgeError as error:
        raise DataError(f"task {task.name} ({task.source}): {error}; mend the metric") from error
    if score != 1.0:
        raise DataError(
            f"task {task.name} ({task.source}): the gold answer {describe(gold)} scores {score:g} "
            f"by metric {task.metric} against itself, which must be 1; mend the metric"
        )


def sample_problems(
    problems: Sequence[Problem], n: int | None, *, seed: int, stage: str
) -> tuple[Problem, ...]:
    """Return ``n`` of the problems in their given order, drawn by (seed, stage, problem id).

    The same problems are drawn whatever their order; a larger ``n`` contains a smaller one. None,
    or more than there are, takes all.
    """
    if _takes_all(n, problems, stage):
        return tuple(problems)
    ranks = _ranks(problems, seed, stage)
    return _pick(problems, ranks[:n])


def take_in_turn(
    problems: Sequence[Problem],
    n: int | None,
    t: int,
    *,
    seed: int,
    stage: str,
    backwards: bool = False,
) -> tuple[Problem, ...]:
    """Return the ``t``-th ``n`` problems of one seeded order, in their given order.

    Behind its last the order begins again. ``backwards`` goes through it from its end, so that
    two kinds of stages share problems only where there are too few. All as in ``sample_problems``.
    """
    if n is None or _takes_all(n, problems, stage):
        return tuple(problems)
    order = _ranks(problems, seed, "in_turn")[:: -1 if backwards else 1]
    return _pick(problems, [order[k % len(order)] for k in range(t * n, (t + 1) * n)])


def _takes_all(n: int | None, problems: Sequence[Problem], stage: str) -> bool:
    if n is not None and n > len(problems):
        logger.warning("%s: %d problems asked for, %d there; taking all", stage, n, len(problems))
    return n is None or n >= len(problems)


def _ranks(problems: Sequence[Problem], seed: int, stage: str) -> list[str]:
    """Return the ids in an order drawn by (seed, stage, problem id)."""
    ranks = {p.problem_id: derive_seed(seed, stage, "sample", p.problem_id) for p in problems}
    return sorted(ranks, key=lambda problem_id: (ranks[problem_id], problem_id))


def _pick(problems: Sequence[Problem], ids: Iterable[str]) -> tuple[Problem, ...]:
    drawn = set(ids)
    return tuple(problem for problem in problems if problem.problem_id in drawn)


def told_to_one(problem: Problem) -> Problem:
    """Return the problem as an agent alone gets it: all contexts in one, in the agents' order."""
    evidence = tuple(fact.model_copy(update={"agent": 0}) for fact in problem.evidence)
    told = [context for context in problem.contexts if context != NO_CONTEXT]
    contexts = ("\n".join(told),) if problem.contexts else ()
    return problem.model_copy(update={"contexts": contexts, "evidence": evidence})


def _check(task: Task, data: DataSection, split: Split, loaded: LoadedProblems) -> None:
    """Log what was skipped, in one line a kind; raise when it is too much."""
    place = f"{task.name} {split}"
    logger.info("%s: %s", place, loaded.counts())
    by_kind = {
        kind: [row for row in loaded.skipped if row.kind == kind]
        for kind in ("malformed", "withheld")
    }
    malformed, withheld = by_kind["malformed"], by_kind["withheld"]
    if len(malformed) + len(withheld) > data.max_malformed * loaded.n_rows:
        if len(withheld) >= len(malformed):
            raise DataError(
                f"{place}: {len(withheld)} of {loaded.n_rows} rows have no gold answer, which this "
                "split withholds; name one that has them in data."
                f"{split}_{'file' if data.path is not None else 'split'} ({_named(withheld)})"
            )
        raise DataError(
            f"{place}: {len(malformed)} of {loaded.n_rows} rows are malformed, more than "
            f"data.max_malformed={data.max_malformed} allows; repair them or raise it "
            f"({_named(malformed)})"
        )
    for kind, rows in by_kind.items():
        if rows:
            logger.warning("%s: %d rows skipped (%s): %s", place, len(rows), kind, _named(rows))
    if not loaded.problems:
        where = "data.path" if data.path is not None else f"data.hub_id and data.{split}_split"
        raise DataError(f"{place}: no problem in {loaded.n_rows} rows; check {where}")


def _named(rows: Sequence[SkippedRow]) -> str:
    """Return the first rows with their reasons, and how many more there are."""
    named = "; ".join(f"row {row.row}: {row.reason}" for row in rows[:N_NAMED])
    return named + (f"; and {len(rows) - N_NAMED} more" if len(rows) > N_NAMED else "")
