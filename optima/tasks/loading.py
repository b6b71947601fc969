"""Rows to problems: native files, the dataset hub, or code; nothing is dropped without a word.

A row that is malformed is counted, named in the log and skipped, up to the share
``data.max_malformed``; above it loading fails. Repeated rows and, for MMLU, ARC's questions are
left out and counted apart. Draws are seeded and do not depend on the order of rows.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optima.errors import DataError
from optima.recipe.schema import DataSection
from optima.seeding import derive_seed
from optima.tasks.arc_overlap import ArcQuestions, arc_questions
from optima.tasks.dealing import Dealing
from optima.tasks.rows import RawRow, read_hub, read_path
from optima.tasks.task import MalformedRowError, Task
from optima.types import Problem

Split = Literal["train", "test"]
SkipKind = Literal["malformed", "duplicate", "excluded"]
N_NAMED_IN_ERROR = 5

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


def load_problems(
    task: Task, data: DataSection, split: Split, *, n_agents: int, seed: int
) -> LoadedProblems:
    """Return all problems of a split, in file order, unsampled.

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
    )
    if task.generate is not None:
        if data.path is not None or data.hub_id is not None:
            raise DataError(
                f"data.path, data.hub_id: {task.name} is made by code and reads no data; "
                "remove both"
            )
        n_problems = data.n_train if split == "train" else data.n_test
        problems = tuple(task.generate(split, n_problems, dealing))
        return LoadedProblems(problems, n_rows=len(problems))
    rows = read_path(task, data, split) if data.path else read_hub(task, data, split)
    excluded = arc_questions(data) if task.name == "mmlu" and split == "train" else None
    loaded = parse_rows(task, rows, dealing, excluded)
    _check(task, data, split, loaded)
    return loaded


def parse_rows(
    task: Task, rows: Iterable[RawRow], dealing: Dealing, excluded: ArcQuestions | None = None
) -> LoadedProblems:
    """Return the problems of ``rows``; the caller judges whether too many were skipped."""
    if task.parse is None:
        raise ValueError(f"{task.name} reads no rows")
    problem_by_id: dict[str, Problem] = {}
    row_by_id: dict[str, int] = {}
    skipped = []
    number = 0
    for number, raw in enumerate(rows, start=1):
        try:
            problem = task.parse(raw.checked(), dealing)
        except MalformedRowError as error:
            skipped.append(SkippedRow(number, "malformed", f"{raw.place}: {error}"))
            continue
        if excluded is not None and (reason := excluded.reason(raw.checked())):
            skipped.append(SkippedRow(number, "excluded", reason))
        elif problem.problem_id in problem_by_id:
            first = row_by_id[problem.problem_id]
            skipped.append(SkippedRow(number, "duplicate", f"{raw.place}: same as row {first}"))
        else:
            problem_by_id[problem.problem_id] = problem
            row_by_id[problem.problem_id] = number
    return LoadedProblems(tuple(problem_by_id.values()), number, tuple(skipped))


def sample_problems(
    problems: Sequence[Problem], n: int | None, *, seed: int, stage: str
) -> tuple[Problem, ...]:
    """Return ``n`` of the problems in their given order, drawn by (seed, stage, problem id).

    The same problems are drawn whatever their order; a larger ``n`` contains a smaller one. None,
    or more than there are, takes all.
    """
    if n is None or n >= len(problems):
        if n is not None and n > len(problems):
            logger.warning(
                "%s: %d problems asked for, %d there; taking all", stage, n, len(problems)
            )
        return tuple(problems)
    ranks = {p.problem_id: derive_seed(seed, stage, "sample", p.problem_id) for p in problems}
    drawn = set(sorted(ranks, key=lambda problem_id: (ranks[problem_id], problem_id))[:n])
    return tuple(problem for problem in problems if problem.problem_id in drawn)


def told_to_one(problem: Problem) -> Problem:
    """Return the problem as an agent alone gets it: all contexts in one, in the agents' order."""
    evidence = tuple(fact.model_copy(update={"agent": 0}) for fact in problem.evidence)
    contexts = ("\n".join(problem.contexts),) if problem.contexts else ()
    return problem.model_copy(update={"contexts": contexts, "evidence": evidence})


def _check(task: Task, data: DataSection, split: Split, loaded: LoadedProblems) -> None:
    """Log what was skipped; raise when it is too much."""
    place = f"{task.name} {split}"
    for row in loaded.skipped:
        level = logging.WARNING if row.kind == "malformed" else logging.DEBUG
        logger.log(level, "%s row %d skipped (%s): %s", place, row.row, row.kind, row.reason)
    counts = Counter(row.kind for row in loaded.skipped)
    logger.info(
        "%s: %d problems of %d rows (%d malformed, %d duplicate, %d excluded)",
        place,
        len(loaded.problems),
        loaded.n_rows,
        counts["malformed"],
        counts["duplicate"],
        counts["excluded"],
    )
    malformed = [row for row in loaded.skipped if row.kind == "malformed"]
    if loaded.n_rows and len(malformed) / loaded.n_rows > data.max_malformed:
        named = "; ".join(f"row {row.row}: {row.reason}" for row in malformed[:N_NAMED_IN_ERROR])
        raise DataError(
            f"{place}: {len(malformed)} of {loaded.n_rows} rows are malformed, more than "
            f"data.max_malformed={data.max_malformed} allows; repair them or raise it ({named})"
        )
    if not loaded.problems:
        raise DataError(f"{place}: no problem in {loaded.n_rows} rows; check data.path")
