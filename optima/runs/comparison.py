"""Several runs: found in folders, opened together under names that tell them apart, and compared.

Models stand side by side, with paired differences over the same problems. A run is what a training
or an inference left. Where answers were grouped (self-consistency), what is compared is the vote
among all samples of a problem. Nothing is served or computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optima.errors import StageError, UsageError
from optima.evaluation.figures import Figures, JudgedConversation
from optima.evaluation.statistics import Estimate, estimate_mean_of_means, estimate_means
from optima.plan import kind_of
from optima.records import check_path
from optima.runs.files import LOCK, RECIPE
from optima.runs.layout import check_run, find_begun, read_done, read_each
from optima.runs.reader import Run, open_run
from optima.tasks import get_task
from optima.types import Problem


def open_runs(places: Sequence[Path]) -> tuple[Run, ...]:
    """Open runs, and all those in folders of such, in the order given; a folder's as they began.

    A mixture is opened as each of its tasks.
    All that reports show of them is read. Raises UsageError for directories that are neither,
    StageError for what is damaged, each named.
    """
    found = [pair for pairs in read_each(_expand, places) for pair in pairs]
    folders = dict(reversed(found))
    roots = list(dict.fromkeys(root for root, _ in found))
    names = dict(zip(roots, _names(roots), strict=True))

    def read(root: Path) -> Run:
        run = Run(root, name=names[root], folder=folders[root])
        check_run(root)
        _ = run.recipe, run.figures, run.costs
        return run

    runs = read_each(read, roots)
    for run in runs:
        beside = [other for other in runs if run.folder is not None and other.folder == run.folder]
        run.is_transfer = bool(beside) and all(map(_is_called_as_its_task, beside))
    return tuple(task for run in runs for task in run.tasks)


def wholes(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs whole, each once, where mixtures were opened task by task."""
    return tuple({run.root: run.whole for run in runs}.values())


def find_runs(places: Sequence[Path]) -> tuple[Path, ...]:
    """Return the directories of runs that ``places`` are or hold; UsageError for neither."""
    return tuple(dict.fromkeys(root for pairs in read_each(_expand, places) for root, _ in pairs))


def transfers(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the inferences of each transfer, a task each, without those that have no model yet.

    The key tells what is made of them apart: nothing for one alone, else ``-1``, ``-2`` and so on.
    """
    groups: dict[Path | None, list[Run]] = {}
    for run in runs:
        if run.kind == "transfer" and run.figures:
            groups.setdefault(run.folder, []).append(run)
    is_alone = len(groups) == 1
    return {"" if is_alone else f"-{i}": group for i, group in enumerate(groups.values(), start=1)}


def _is_called_as_its_task(run: Run) -> bool:
    return run.kind in ("inference", "transfer") and run.root.name == run.recipe.task


def _expand(place: Path) -> list[tuple[Path, Path | None]]:
    if (place / RECIPE).is_file() or (place / LOCK).is_file():
        return [(place, None)]
    if not (below := find_begun(place)):
        raise UsageError(
            f"{place}: is not a run directory (it has no {RECIPE}) nor a folder of some; give what "
            "--run-dir or --output named"
        )
    return [(path, place) for path in sorted(below, key=_order)]


def _order(root: Path) -> tuple[float, str]:
    """Return when a run began: a folder's runs come in that order, as in its own table."""
    try:
        begun = read_done(root / "problems")
    except StageError:  # said when the run is read
        begun = None
    return (begun.started_unix_s if begun else float("inf"), root.name)


def _names(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts[1:] or ("/",) for path in roots]
    names = []
    for own in parts:
        n = 1
        while n < len(own) and sum(other[-n:] == own[-n:] for other in parts) > 1:
            n += 1
        names.append("/".join(own[-n:]))
    return names


@dataclass(frozen=True, slots=True)
class Compared:
    """One model of a run beside the first: its figures, and the differences on common problems.

    ``score`` and ``tokens`` are None in the first, which everything is compared with, and where
    ``n_common`` is 0.
    """

    run: Run
    figures: Figures
    n_common: int
    score: Estimate | None
    tokens: Estimate | None


def compare(specs: Sequence[str], *, seed: int = 0) -> tuple[Compared, ...]:
    """Compare models named ``RUN`` (its last) or ``RUN:MODEL`` with the first of them.

    Mixtures are compared by their tasks, one after the other, each with the first on that task; if
    all are of the same tasks, by the means over these in the end. Others meet them on their task.
    Raises UsageError for what is not a run, names no model of it, or has no problem in common, and
    StageError for damaged ones, a line each.
    """
    named = list(zip(specs, read_each(find_evaluated, specs), strict=True))
    seen: dict[tuple[Path, str], str] = {}
    for spec, (run, label) in named:
        if (other := seen.get((run.root.resolve(), label))) is not None:
            raise UsageError(f"{spec}: is {other} again; name a model once")
        seen[run.root.resolve(), label] = spec
    tasks_M = [[one.recipe.task for one in run.tasks] for _, (run, _) in named]
    common = [task for task in tasks_M[0] if all(task in others for others in tasks_M)]
    if not common:
        _check_tasks([run for _, (run, _) in named])
    rows: list[Compared] = []
    for task in common:
        of_task = [(spec, open_run(run.root, task), label) for spec, (run, label) in named]
        rows += _compared(of_task, seed=seed)
    if len(common) > 1 and all(set(tasks) == set(common) for tasks in tasks_M):
        rows += _means([(run, label) for _, (run, label) in named], rows, seed=seed)
    return tuple(rows)


def _compared(models: Sequence[tuple[str, Run, str]], *, seed: int) -> tuple[Compared, ...]:
    """Compare models on one task; UsageError for one without a problem of the first."""
    found = read_each(lambda one: (one[1], _measure(*one)), models)
    rows = differences(found, seed=seed)
    for (spec, *_), row in zip(models, rows, strict=True):
        if not row.n_common:
            raise UsageError(
                f"{spec}: has no problem in common with {models[0][0]}; compare runs of one task "
                "with the same data and seed"
            )
    return rows


def _means(
    models: Sequence[tuple[Run, str]], rows: Sequence[Compared], *, seed: int
) -> list[Compared]:
    """Return the means over the tasks of mixtures, whose tasks were compared in ``rows``."""
    n, found = len(models), []
    for m, (run, label) in enumerate(models):
        pairs_T = [(rows[t], rows[t + m]) for t in range(0, len(rows), n)]
        score, tokens = (
            estimate_mean_of_means(
                [
                    [getattr(own.figures, name)[key] - first for key, first in
                     getattr(before.figures, name).items() if key in getattr(own.figures, name)]
                    for before, own in pairs_T
                ],
                seed=seed,
            )
            for name in ("score_by_problem", "tokens_by_problem")
        )  # fmt: skip
        (figures,) = run.measure([label])
        n_common = sum(own.n_common for _, own in pairs_T)
        is_first = m == 0
        found.append(
            Compared(
                run, figures, n_common, None if is_first else score, None if is_first else tokens
            )
        )
    return found


def differences(models: Sequence[tuple[Run, Figures]], *, seed: int) -> tuple[Compared, ...]:
    """Return each model's differences to the first, problem by problem."""
    first = models[0][1]
    common_M = [
        [key for key in first.score_by_problem if key in figures.score_by_problem]
        for _, figures in models
    ]
    values_M = [
        [ours[key] - theirs[key] for key in common]
        for (_, figures), common in zip(models[1:], common_M[1:], strict=True)
        for ours, theirs in (
            (figures.score_by_problem, first.score_by_problem),
            (figures.tokens_by_problem, first.tokens_by_problem),
        )
    ]
    estimates = iter(estimate_means([values for values in values_M if values], seed=seed))
    rows = []
    for m, ((run, figures), common) in enumerate(zip(models, common_M, strict=True)):
        score = tokens = None
        if m > 0 and common:
            score, tokens = next(estimates), next(estimates)
        rows.append(Compared(run, figures, len(common), score, tokens))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Decided:
    """A problem that two models did not solve alike: what each answered, scored and spent.

    Answers are those of the first conversations about it, None where none was marked.
    """

    problem: Problem
    answers: tuple[str | None, str | None]
    scores: tuple[float, float]
    tokens: tuple[float, float]

    @property
    def gain(self) -> float:
        """What the second model scores more than the first."""
        return self.scores[1] - self.scores[0]

    def row(self) -> dict[str, Any]:
        """Return it as a line of a table."""
        return {
            "problem_id": self.problem.problem_id,
            "question": self.problem.question,
            "golds": list(self.problem.golds),
            "answers": list(self.answers),
            "scores": list(self.scores),
            "tokens": list(self.tokens),
        }


def decided(first: Compared, other: Compared) -> tuple[Decided, ...]:
    """Return the problems behind the difference of two models, the largest differences first."""
    pair = (first, other)
    problem_by_id = first.run.problems("test")
    answer_by_id: list[dict[str, str | None]] = []
    for one in pair:
        said = one.run.evaluation(one.figures.label)
        answers = ((o.conversation.problem_id, o.conversation.answer) for o in said
                   if o.conversation.n == 0)  # fmt: skip
        answer_by_id.append(dict(answers))
    scores, tokens = (
        [getattr(one.figures, name) for one in pair]
        for name in ("score_by_problem", "tokens_by_problem")
    )
    found = [
        Decided(
            problem_by_id[key],
            (answer_by_id[0].get(key), answer_by_id[1].get(key)),
            (scores[0][key], scores[1][key]),
            (tokens[0][key], tokens[1][key]),
        )
        for key in scores[0]
        if key in scores[1] and scores[0][key] != scores[1][key]
    ]

    return tuple(sorted(found, key=lambda one: (-abs(one.gain), one.problem.problem_id)))


@dataclass(frozen=True, slots=True)
class Said:
    """What a model of a run said about a problem, a conversation a sample."""

    run: Run
    label: str
    samples: tuple[JudgedConversation, ...]

    @property
    def name(self) -> str:
        """What names it on a command line."""
        return f"{self.run.root}:{self.label}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem, what models said about it, and the runs that were not asked it, each with why."""

    problem: Problem
    said: tuple[Said, ...]
    lacking: tuple[tuple[Run, str], ...]


def said_about(specs: Sequence[str], problem_id: str) -> Asked:
    """Return what every evaluated model of ``RUN``, or that of ``RUN:MODEL``, said about a problem.

    Runs may be of several tasks. Raises UsageError where none was asked it, and for what is not a
    run or names no model of it; StageError for damaged ones.
    """
    models: list[Said] = []
    lacking: dict[Path, tuple[Run, str]] = {}
    problem: Problem | None = None
    for spec, (run, last) in zip(specs, read_each(find_evaluated, specs), strict=True):
        found = [(one, one.problems("test")) for one in run.tasks]
        run, problems = next((pair for pair in found if problem_id in pair[1]), (run, {}))
        own = problems.get(problem_id)
        problem = problem or own
        if own is None:
            there = ", ".join(f"{len(asked)} problems of {one.recipe.task}" for one, asked in found)
            lacking[run.root] = (run, f"was not asked it ({there})")
        elif problem is None or (own.question, own.golds) != (problem.question, problem.golds):
            lacking[run.root] = (run, f"calls another problem so: {own.question}")
        else:
            labels = run.evaluated if split_name(spec)[1] is None else (last,)
            for label in labels:
                talks = (o for o in run.evaluation(label) if o.problem.problem_id == problem_id)
                models.append(Said(run, label, tuple(talks)))
    if problem is None:
        raise UsageError(
            f"--problem {problem_id}: {specs[0]} {next(iter(lacking.values()))[1]}"
            f"{', nor was any other' if len(specs) > 1 else ''}; `optima compare --problems 20` "
            "lists some, test.jsonl in or below problems of a run all"
        )
    return Asked(problem, tuple(models), tuple(lacking.values()))


def open_task(root: str | Path, task: str | None) -> Run:
    """Open a run as the one of its tasks that ``--task`` names; UsageError where it must."""
    run = open_run(root, task or "")
    if run.is_mixture:
        raise UsageError(
            f"{run.root}: is a mixture of {', '.join(run.recipe.members())}; take one of its tasks "
            "by --task NAME"
        )
    return run


def find_evaluated(spec: str) -> tuple[Run, str]:
    """Return the run and the label that ``RUN:MODEL`` names, or ``RUN`` for its last model.

    Raises UsageError for what is not a run, has evaluated nothing, or not that model.
    """
    place, label = split_name(spec)
    run = Run(place)
    known = run.evaluated
    if not known:
        raise UsageError(
            f"{run.root}: holds no evaluated model; give a run or an inference's output"
        )
    if label is not None and label not in known:
        raise UsageError(f"{spec}: {run.root} has evaluated no {label}; it has {', '.join(known)}")
    return run, label or known[-1]


def find_trained(spec: str) -> tuple[Run, str]:
    """Return the run and the label that ``RUN:MODEL`` names, or ``RUN`` for the last it trained.

    Raises UsageError for what is not a training, has trained nothing, or not that model.
    """
    place, label = split_name(spec)
    run = Run(place)
    names = (stage.stage for stage in run.stages)
    trained = (name.rpartition("/")[0] for name in names if kind_of(name) == "train")
    made = list(dict.fromkeys(label for label in trained if "/" not in label))
    if not made:
        raise UsageError(f"{run.root}: has trained no model yet; give a training that has")
    if label is not None and label not in made:
        raise UsageError(f"{spec}: {run.root} has trained no {label}; it has {', '.join(made)}")
    return run, label or made[-1]


def split_name(spec: str, option: str = "RUN") -> tuple[str, str | None]:
    """Return the directory of ``RUN:MODEL`` and the label behind it, None where there is none."""
    check_path(spec, option)
    root, separator, label = (spec, "", "") if Path(spec).is_dir() else spec.rpartition(":")
    if separator and not label:
        raise UsageError(
            f"{spec}: names no model behind its colon; write RUN:MODEL, or remove the colon"
        )
    return root or spec, label if separator else None


def _measure(spec: str, run: Run, label: str) -> Figures:
    """Return the figures of a model, of several samples those of their vote."""
    measured = run.measure([label], by_vote=True)
    if not measured:
        raise UsageError(f"{spec}: its model holds no conversation; give another")
    return measured[0]


def _check_tasks(runs: Sequence[Run]) -> None:
    """Raise UsageError when the models were evaluated on different tasks: scores do not compare."""
    first = [one.recipe.task for one in runs[0].tasks]
    for run in runs:
        names = [one.recipe.task for one in run.tasks]
        if not set(names).intersection(first):
            raise UsageError(
                f"{run.root}: is scored by {_scored(names)}, {runs[0].root} by {_scored(first)}; "
                "compare runs of one task"
            )
    raise UsageError(f"{runs[0].root}: shares no task with all others; compare runs of one task")


def _scored(tasks: Sequence[str]) -> str:
    return ", ".join(f"{get_task(name).metric} on {name}" for name in tasks)
