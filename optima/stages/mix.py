"""The stage that puts together what the tasks of a mixture have selected, for one training.

Without weights all of it is trained on. With weights the shares of the tasks, counted in
conversations or pairs, are those of the weights: as much is kept as the scarcest task allows, of
every task its best by reward or by the chosen one's value. Nothing is trained on twice to fill a
share. Rows are shuffled, so that a batch holds several tasks whatever the trainer does.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from optima.plan import Step, trained_agents
from optima.recipe.schema import Recipe
from optima.records import parse_record
from optima.runs.directory import Stage
from optima.runs.files import EVAL_ROWS, PAIRS, ROWS, SELECTED, parsed, raw_lines
from optima.seeding import rng
from optima.selection import shares_kept
from optima.stages.context import Made, RunContext
from optima.stages.train import write_rows
from optima.types import PreferenceRow, TrainingRow


class Place(NamedTuple):
    """Where a row stands: its file, and the byte it begins at."""

    path: Path
    offset: int


def mixed(
    run: RunContext, step: Step, selected: Sequence[Stage], weights: tuple[float, ...] = ()
) -> Stage:
    """Return the stage with all rows of an iteration: the only one, or what ``mix`` makes."""
    if not run.recipe.tasks:
        (rows,) = selected
        return rows
    return run.do(step, mix, tuple(selected), weights)


def weights_of(recipe: Recipe) -> tuple[float, ...]:
    """Return the weight of each task of a mixture, 1 where it has none; nothing where none has."""
    weights = [entry.weight for entry in recipe.tasks]
    if all(weight is None for weight in weights):
        return ()
    return tuple(1.0 if weight is None else weight for weight in weights)


def mix(
    context: RunContext, out: Stage, selected: tuple[Stage, ...], weights: tuple[float, ...]
) -> Made:
    """Write the rows of all tasks, of each as many of the best as keep the shares of ``weights``.

    No weights keep everything.
    """
    learners = trained_agents(context.recipe)
    units = [_units(stage, learners) for stage in selected]
    counts = [len(of_task) for of_task in units]
    kept = shares_kept(counts, weights) if weights else counts
    places = [
        place for of_task, n in zip(units, kept, strict=True) for unit in of_task[:n]
        for place in unit
    ]  # fmt: skip
    rng(context.recipe.seed, out.name).shuffle(places)
    kind = PreferenceRow if (selected[0].path / PAIRS).is_file() else TrainingRow
    figures = write_rows(context, out.path, _rows(places, kind))
    for stage, of_task, n in zip(selected, units, kept, strict=True):
        task = stage.name.split("/")[-2]
        figures[f"mix/{task}/kept"] = float(n)
        figures[f"mix/{task}/left_out"] = float(len(of_task) - n)
    names = [stage.name.split("/")[-2] for stage in selected]
    line = ", ".join(
        f"{n} of {there} of {task}"
        for task, n, there in zip(names, kept, counts, strict=True)
    )  # fmt: skip
    return Made((ROWS, EVAL_ROWS), figures, line)


def _units(stage: Stage, learners: Collection[int]) -> list[list[Place]]:
    """Return the rows of each conversation, or the row of each pair, of a task, the best first.

    Pairs of other agents than ``learners`` have no row.
    Scripts, of which none is better, come as they are written.
    """
    found: dict[tuple[str, int | None], list[Place]] = defaultdict(list)
    for path in (stage.path / ROWS, stage.path / EVAL_ROWS):
        for offset, line in raw_lines(path):
            row = parsed(line, path)
            found[row["problem_id"], row.get("n")].append(Place(path, offset))
    if (path := stage.path / SELECTED).is_file():
        records = (parsed(line, path) for _, line in raw_lines(path))
        return [found[record["problem_id"], record["n"]] for record in records]
    if (path := stage.path / PAIRS).is_file():
        every = (parsed(line, path) for _, line in raw_lines(path))
        pairs = [pair for pair in every if pair["chosen"]["agent"] in learners]
        rows = {key: iter(of_problem) for (key, _), of_problem in found.items()}
        # The rows of a problem stand in the order of its pairs, in one of the two files.
        valued = [(-pair["chosen_value"], next(rows[pair["problem_id"]])) for pair in pairs]
        return [[place] for _, place in sorted(valued, key=lambda one: one[0])]
    return list(found.values())


def _rows(
    places: Sequence[Place], kind: type[PreferenceRow | TrainingRow]
) -> Iterator[PreferenceRow | TrainingRow]:
    """Yield the rows that stand at some places, in their order."""
    files = {path: path.open("rb") for path in dict.fromkeys(place.path for place in places)}
    try:
        for path, offset in places:
            files[path].seek(offset)
            yield parse_record(files[path].readline(), kind, str(path))
    finally:
        for file in files.values():
            file.close()
