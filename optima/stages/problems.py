"""The problems of a run, read once and stored with it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optima.errors import DataError
from optima.plan import Step
from optima.recipe.schema import DataSection
from optima.records import read_records, write_records
from optima.runs.directory import Stage
from optima.runs.reader import run_of
from optima.stages.context import Made, Model, RunContext
from optima.tasks.loading import (
    describe_overlap,
    load_problems,
    load_splits,
    overlap,
    sample_problems,
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

    def for_iteration(self, t: int) -> tuple[Problem, ...]:
        """Return the problems of iteration ``t``, a seeded sample of its own."""
        return sample_problems(self.train, self.n_train, seed=self.seed, stage=f"iter_{t}")

    def for_trees(self, t: int) -> tuple[Problem, ...]:
        """Return the problems whose trees iteration ``t`` grows, a seeded sample of its own."""
        return sample_problems(self.train, self.n_trees, seed=self.seed, stage=f"iter_{t}/trees")


def read_test_problems(context: RunContext, models: Iterable[Model] = ()) -> tuple[Problem, ...]:
    """Read the test split alone, or the seeded sample of it that ``data.n_test`` asks for.

    Raises DataError when one of ``models`` was trained, by a run whose directory is there, with
    problems among them; ``data.overlap=keep`` allows it.
    """
    recipe = context.recipe

    def split(context: RunContext, out: Stage, task: str, data: DataSection, seed: int) -> Made:
        n_agents = len(recipe.agents.names)
        test = load_problems(context.task, data, "test", n_agents=n_agents, seed=seed)
        chosen = sample_problems(test.problems, data.n_test, seed=seed, stage="evaluate")
        _check_unseen(context, models, chosen)  # before the stage is done: it can be given anew
        write_records(out.path / TEST, chosen)
        counts = {
            "problems/test": float(len(chosen)),
            "problems/test_skipped": float(len(test.skipped)),
        }
        return Made((TEST,), counts, f"{len(chosen)} of {task} to test on")

    stored = context.do(Step("problems", ""), split, recipe.task, recipe.data, recipe.seed)
    problems = tuple(read_records(stored.path / TEST, Problem))
    _check_unseen(context, models, problems)
    logger.info("problems: %d of the test split", len(problems))
    return problems


def _check_unseen(
    context: RunContext, models: Iterable[Model], problems: Sequence[Problem]
) -> None:
    """Raise DataError when a model was trained on some of the problems."""
    if context.task.generate is not None:
        return  # its splits are made apart, whatever the seed
    runs = {run_of(model.ref.place) for model in models}
    for train in sorted(run / "problems/train.jsonl" for run in runs if run is not None):
        if train.is_file() and (seen := overlap(read_records(train, Problem), problems)):
            what = describe_overlap(seen, len(problems), str(train))
            if context.recipe.data.overlap != "keep":
                raise DataError(
                    f"data.overlap: {what}, which a model was trained on; give another test "
                    "split, or set data.overlap=keep to test on them all the same"
                )
            logger.warning("%s: kept, scores tell little", what)


def read_problems(context: RunContext) -> Problems:
    """Read both splits, or what an earlier attempt stored of them."""
    recipe = context.recipe
    stored = context.do(Step("problems", ""), split, recipe.task, recipe.data, recipe.seed)
    problems = Problems(
        train=tuple(read_records(stored.path / TRAIN, Problem)),
        test=tuple(read_records(stored.path / TEST, Problem)),
        n_train=recipe.data.n_train,
        n_trees=(recipe.search.n_problems if recipe.search else None) or recipe.data.n_train,
        seed=recipe.seed,
    )
    logger.info("problems: %d to train on, %d held out", len(problems.train), len(problems.test))
    return problems


def split(context: RunContext, out: Stage, task: str, data: DataSection, seed: int) -> Made:
    """Write the train split, and the seeded sample of the test split that is asked for."""
    n_agents = len(context.recipe.agents.names)
    train, test = load_splits(context.task, data, n_agents=n_agents, seed=seed)
    held_out = sample_problems(test.problems, data.n_test, seed=seed, stage="evaluate")
    write_records(out.path / TRAIN, train.problems)
    write_records(out.path / TEST, held_out)
    counts = {
        "problems/train": float(len(train.problems)),
        "problems/train_skipped": float(len(train.skipped)),
        "problems/test": float(len(held_out)),
        "problems/test_skipped": float(len(test.skipped)),
    }
    return Made((TRAIN, TEST), counts, f"{len(train.problems)} of {task} to train on")
