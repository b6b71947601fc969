"""Pairs of a finished run rebuilt with other thresholds, without generating again."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from optima.errors import UsageError
from optima.prompts.rendering import PromptStyle
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.records import atomic_writer
from optima.reporting.tables import Table
from optima.runs.files import RECIPE, TREES
from optima.runs.reader import Run
from optima.search.pairs import Harvest, export_lines, harvest_pairs, preference_row
from optima.stages.context import speakers_of
from optima.stages.opening import model_codec
from optima.tasks import get_task
from optima.types import PreferencePair, PreferenceRow, Problem

HEAD = ("iteration", "trees", "pairs", "kept", "problems", "chosen", "rejected")


def rebuild_pairs(
    run_dir: Path, iteration: str | None, overrides: Sequence[str], out: Path | None
) -> Table:
    """Return a table of the pairs of every iteration; with ``out`` export them in their order.

    What trainings decide is left out: with strategy ``influence`` all pairs above the thresholds
    count as kept.

    Raises UsageError when the directory holds no such run or iteration, or ``out`` has no folder.
    """
    run = Run(run_dir)
    _ = run.recipe  # says what is wrong with the stored one by itself
    recipe = load_recipe(run_dir / RECIPE, overrides)
    if recipe.search is None or recipe.pairs is None:
        raise UsageError(
            f"--run {run_dir}: is a run of method {recipe.method}, which has no trees; name one of "
            "optima-dpo or optima-sft-dpo"
        )
    grown = [search.label for search in run.searches if search.is_finished]
    labels = [label for label in grown if iteration in (None, label)]
    if not labels:
        what = f"--iteration {iteration}" if iteration else f"--run {run_dir}"
        remedy = f"take one of {', '.join(grown)}" if grown else "let the run grow some first"
        raise UsageError(f"{what}: has no finished trees ({run_dir}/*/search/{TREES}); {remedy}")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: its folder does not exist; make it first")
    rows: list[tuple[str, ...]] = []
    kept: list[PreferencePair] = []
    problems = run.problems("train")
    for label in labels:
        harvest = harvest_pairs(run.trees(label), recipe.search, recipe.pairs, seed=recipe.seed)
        kept += harvest.chosen
        rows.append(_figures(label, harvest))
    if out is not None:
        with atomic_writer(out) as file:
            file.writelines(export_lines(_training_rows(recipe, problems, kept)))
    return Table(HEAD, tuple(rows))


def _figures(name: str, harvest: Harvest) -> tuple[str, ...]:
    chosen = harvest.chosen
    n = max(1, len(chosen))
    return (
        name, str(harvest.n_trees), str(harvest.n_found), str(len(chosen)),
        str(len({pair.problem_id for pair in chosen})),
        f"{sum(pair.chosen_value for pair in chosen) / n:.3f}" if chosen else "-",
        f"{sum(pair.rejected_value for pair in chosen) / n:.3f}" if chosen else "-",
    )  # fmt: skip


def _training_rows(
    recipe: Recipe, problem_by_id: Mapping[str, Problem], pairs: Sequence[PreferencePair]
) -> Iterator[PreferenceRow]:
    codec = model_codec(recipe, recipe.model.path)
    style = PromptStyle.of(recipe, get_task(recipe.task))
    for pair in pairs:
        yield preference_row(pair, speakers_of(style, codec, problem_by_id[pair.problem_id]))
