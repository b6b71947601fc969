"""Pairs of a finished run rebuilt with other thresholds, without generating again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from optima.errors import UsageError
from optima.files import TREES
from optima.pipelines.context import speakers_of
from optima.pipelines.run import model_codec
from optima.plan import plan
from optima.prompts.rendering import PromptStyle
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.records import atomic_writer, disk_errors, read_records
from optima.reporting.tables import Table
from optima.search.exchange import export_lines
from optima.search.pairs import Harvest, harvest_pairs, preference_row
from optima.stages import check_outputs, read_done, read_recipe
from optima.tasks import get_task
from optima.types import DialogueTree, PreferencePair, PreferenceRow, Problem

HEAD = ("iteration", "trees", "pairs", "kept", "problems", "chosen", "rejected")


def rebuild_pairs(
    run_dir: Path, iteration: str | None, overrides: Sequence[str], out: Path | None
) -> str:
    """Return a table of the pairs of every iteration; with ``out`` export them in their order.

    What trainings decide is left out: with strategy ``influence`` all pairs above the thresholds
    count as kept.

    Raises UsageError when the directory holds no such run or iteration, or ``out`` has no folder.
    """
    stored = run_dir / "recipe.yaml"
    if not stored.exists():
        raise UsageError(f"--run {run_dir}: is no run directory (it has no recipe.yaml); name one")
    read_recipe(run_dir)  # says what is wrong with the stored one by itself
    recipe = load_recipe(stored, overrides)
    if recipe.search is None or recipe.pairs is None:
        raise UsageError(
            f"--run {run_dir}: is a run of method {recipe.method}, which has no trees; name one of "
            "optima-dpo or optima-sft-dpo"
        )
    grown = [run_dir / step.name / TREES for step in plan(recipe) if step.kind == "search"]
    paths = [
        path for path in grown if path.exists() and iteration in (None, path.parent.parent.name)
    ]
    if not paths:
        what = f"--iteration {iteration}" if iteration else f"--run {run_dir}"
        grown_in = sorted(path.parent.parent.name for path in grown if path.exists())
        remedy = f"take one of {', '.join(grown_in)}" if grown_in else "let the run grow some first"
        raise UsageError(f"{what}: has no finished trees ({run_dir}/*/search/{TREES}); {remedy}")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: its folder does not exist; make it first")
    rows: list[tuple[str, ...]] = []
    kept: list[PreferencePair] = []
    for folder in (run_dir / "problems", *(path.parent for path in paths)):
        if (done := read_done(folder)) is not None:
            check_outputs(folder, done)
    for path in paths:
        harvest = harvest_pairs(
            read_records(path, DialogueTree), recipe.search, recipe.pairs, seed=recipe.seed
        )
        kept += harvest.chosen
        rows.append(_figures(path.parent.parent.name, harvest))
    if out is not None:
        with disk_errors(out), atomic_writer(out) as file:
            file.writelines(export_lines(_training_rows(run_dir, recipe, kept)))
    return Table(HEAD, tuple(rows)).text()


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
    run_dir: Path, recipe: Recipe, pairs: Sequence[PreferencePair]
) -> Iterator[PreferenceRow]:
    codec = model_codec(recipe, recipe.model.path)
    style = PromptStyle.of(recipe, get_task(recipe.task))
    problems = read_records(run_dir / "problems" / "train.jsonl", Problem)
    problem_by_id = {problem.problem_id: problem for problem in problems}
    for pair in pairs:
        problem = problem_by_id[pair.problem_id]
        yield preference_row(pair, speakers_of(style, codec, problem))
