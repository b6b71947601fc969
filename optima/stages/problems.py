"""The problems of a run, read once and stored with it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optima.errors import DataError, OptimaError
from optima.plan import Step
from optima.recipe.schema import DataSection, Recipe
from optima.records import read_records, write_records
from optima.runs.directory import Stage
from optima.runs.files import run_of
from optima.runs.layout import own_starts
from optima.runs.reader import Run
from optima.stages.context import Made, Model, RunContext
from optima.tasks import get_task
from optima.tasks.loading import (
    content_key,
    describe_overlap,
    load_problems,
    load_splits,
    overlap,
    sample_problems,
    take_in_turn,
)
from optima.types import Problem

logger = logging.getLogger(__name__)
TRAIN, TEST = "train.jsonl", "test.jsonl"


@dataclass(frozen=True, slots=True)
class Problems:
    """The train split, the held-out problems, and how many of the former an iteration takes.

    ``n_train`` for SFT, ``n_trees`` for growing trees; None is all.
    """

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    n_train: int | None
    n_trees: int | None
    seed: int
    is_in_turn: bool = False

    def for_iteration(self, t: int) -> tuple[Problem, ...]:
        """Return the problems of iteration ``t``: a seeded sample of its own, or the next ones."""
        return self._take(self.n_train, t, f"iter_{t}")

    def for_trees(self, t: int) -> tuple[Problem, ...]:
        """Return the problems whose trees iteration ``t`` grows, likewise."""
        return self._take(self.n_trees, t, f"iter_{t}/trees", backwards=True)

    def _take(
        self, n: int | None, t: int, stage: str, *, backwards: bool = False
    ) -> tuple[Problem, ...]:
        if self.is_in_turn:
            return take_in_turn(self.train, n, t, seed=self.seed, stage=stage, backwards=backwards)
        return sample_problems(self.train, n, seed=self.seed, stage=stage)


@dataclass(frozen=True, slots=True)
class Part:
    """What is asked in a run, and about which problems: of a mixture, one of its tasks."""

    run: RunContext
    problems: Problems


def read_test_problems(context: RunContext, models: Iterable[Model] = ()) -> tuple[Problem, ...]:
    """Read the test split alone, or the seeded sample of it that ``data.n_test`` asks for.

    Raises DataError when one of ``models`` was trained, by a run whose directory is there, with
    problems among them; ``data.overlap=keep`` allows it.
    """
    recipe = context.recipe

    def split(context: RunContext, out: Stage, task: str, data: DataSection, seed: int) -> Made:
        chosen, n_skipped = load_test_problems(recipe, models)  # raises before the stage is done
        write_records(out.path / TEST, chosen)
        counts = {
            "problems/test": float(len(chosen)),
            "problems/test_skipped": float(n_skipped),
        }
        return Made((TEST,), counts, f"{len(chosen)} of {task} to test on")

    stored = context.do(Step("problems", ""), split, recipe.task, recipe.data, recipe.seed)
    problems = tuple(read_records(stored.path / TEST, Problem))
    check_unseen(recipe, models, problems, with_starts=False)  # an older release checked no more
    logger.info("problems: %d of the test split", len(problems))
    return problems


def load_test_problems(recipe: Recipe, models: Iterable[Model]) -> tuple[tuple[Problem, ...], int]:
    """Return the problems to be asked, and how many rows were skipped.

    Raises DataError for rows that cannot be had, and as ``read_test_problems`` does.
    """
    task, n_agents = get_task(recipe.task), len(recipe.agents.names)
    test = load_problems(task, recipe.data, "test", n_agents=n_agents, seed=recipe.seed)
    chosen = held_out_problems(test.problems, recipe)
    check_unseen(recipe, models, chosen)
    return chosen, len(test.skipped)


def check_unseen(
    recipe: Recipe,
    models: Iterable[Model],
    problems: Sequence[Problem],
    *,
    with_starts: bool = True,
) -> None:
    """Raise DataError when a model was trained on some of the problems, or its start model was.

    Known are the problems of runs whose directories are there.
    """
    if get_task(recipe.task).generate is not None:
        return  # its splits are made apart, whatever the seed
    runs = _runs_behind(models, with_starts)
    for train in sorted(path for run in runs for path in run.glob(f"problems/**/{TRAIN}")):
        if ".superseded-" not in str(train) and (
            seen := overlap(read_records(train, Problem), problems)
        ):
            what = describe_overlap(seen, len(problems), str(train))
            if recipe.data.overlap != "keep":
                raise DataError(
                    f"data.overlap: {what}, which a model was trained on; give another test "
                    "split, or set data.overlap=keep to test on them all the same"
                )
            logger.warning("%s: kept, scores tell little", what)


def _runs_behind(models: Iterable[Model], with_starts: bool) -> set[Path]:
    """Return the runs that trained the models, and those that trained what these started from."""
    places = [place for model in models for place in model.ref.places]
    found: set[Path] = set()
    while places:
        run = run_of(places.pop())
        if run is None or run in found:
            continue
        found.add(run)
        if not with_starts:
            continue
        try:
            recipe = Run(run).recipe
            places.append(recipe.model.path)
            places += (place for ref in own_starts(recipe).values() for place in ref.places)
        except OptimaError as error:
            logger.warning("%s: what its start model was trained on is not known (%s)", run, error)
    return found


def read_parts(context: RunContext) -> tuple[Part, ...]:
    """Read the problems of each task of a mixture, or of the one task of any other run."""
    parts = [Part(one, read_problems(one)) for one in context.members()]
    splits = [Splits(part.run.recipe, part.problems.train, part.problems.test) for part in parts]
    return tuple(
        replace(part, problems=replace(part.problems, train=train))
        for part, train in zip(parts, keep_apart(splits), strict=True)
    )


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of a task, by its recipe."""

    recipe: Recipe
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]


def keep_apart(tasks: Sequence[Splits]) -> list[tuple[Problem, ...]]:
    """Return the train splits of a mixture's tasks, apart from the test problems of the others.

    As ``data.overlap`` of the task says whose test problems they are. Raises DataError.
    """
    trains = [one.train for one in tasks]
    keys_by_task = [[content_key(p) for p in one.train] for one in tasks if len(tasks) > 1]
    for tested in tasks:
        asked = {content_key(problem): problem for problem in tested.test if len(tasks) > 1}
        for i, keys in enumerate(keys_by_task):
            seen = [asked[key] for key in dict.fromkeys(keys) if key in asked]
            if tasks[i] is tested or not seen:
                continue
            place = f"the train split of {tasks[i].recipe.task}"
            what = f"{tested.recipe.task}: {describe_overlap(seen, len(asked), place)}"
            if tested.recipe.data.overlap == "refuse":
                raise DataError(
                    f"data.overlap: {what}; give another test split, or set data.overlap=drop to "
                    "train without them, or data.overlap=keep to train and test on them"
                )
            is_kept = tested.recipe.data.overlap == "keep"
            done = "kept, scores tell little" if is_kept else "left out of the training"
            logger.warning("%s: %s", what, done)
            if not is_kept:
                trains[i] = tuple(p for p in trains[i] if content_key(p) not in asked)
    return trains


def read_problems(context: RunContext) -> Problems:
    """Read both splits of one task, or what an earlier attempt stored of them."""
    recipe = context.recipe
    stored = context.do(Step("problems", ""), split, recipe.task, recipe.data, recipe.seed)
    problems = Problems(
        train=tuple(read_records(stored.path / TRAIN, Problem)),
        test=tuple(read_records(stored.path / TEST, Problem)),
        n_train=recipe.data.n_train,
        n_trees=(recipe.search.n_problems if recipe.search else None) or recipe.data.n_train,
        seed=recipe.seed,
        is_in_turn=recipe.data.draw == "in_turn",
    )
    logger.info(
        "%s: %d to train on, %d held out", stored.name, len(problems.train), len(problems.test)
    )
    return problems


def held_out_problems(problems: Sequence[Problem], recipe: Recipe) -> tuple[Problem, ...]:
    """Return the seeded sample of a test split that ``data.n_test`` asks for."""
    return sample_problems(problems, recipe.data.n_test, seed=recipe.seed, stage="evaluate")


def split(context: RunContext, out: Stage, task: str, data: DataSection, seed: int) -> Made:
    """Write the train split, and the seeded sample of the test split that is asked for."""
    n_agents = len(context.recipe.agents.names)
    train, test = load_splits(context.task, data, n_agents=n_agents, seed=seed)
    held_out = held_out_problems(test.problems, context.recipe)
    check_unseen(context.recipe, (context.base,), held_out)  # not where a run goes on
    write_records(out.path / TRAIN, train.problems)
    write_records(out.path / TEST, held_out)
    counts = {
        "problems/train": float(len(train.problems)),
        "problems/train_skipped": float(len(train.skipped)),
        "problems/test": float(len(held_out)),
        "problems/test_skipped": float(len(test.skipped)),
    }
    return Made((TRAIN, TEST), counts, f"{len(train.problems)} of {task} to train on")
