"""The stage that reads preference pairs from dialogue trees (paper Alg. 5)."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from optima.errors import StageError
from optima.plan import trained_agents
from optima.recipe.schema import PairSection
from optima.records import read_records, write_records
from optima.runs.directory import Stage
from optima.runs.files import EVAL_ROWS, PAIRS, ROWS, TREES
from optima.search.pairs import Harvest, preference_row, read_conversational
from optima.selection import share_of
from optima.stages.context import Made, RunContext, speakers_of
from optima.stages.train import write_rows
from optima.types import DialogueTree, PreferencePair, PreferenceRow, Problem


def pair(
    context: RunContext,
    out: Stage,
    problems: Sequence[Problem],
    trees: Stage,
    section: PairSection,
    imported: tuple[PreferenceRow, ...],
) -> Made:
    """Write the selected pairs, and their training rows with those of ``imported`` preferences.

    Pairs of agents who are not trained have no row.
    Raises StageError when there are too few, and says how far the best one was.
    """
    assert context.recipe.search is not None
    harvest, records = Harvest(), read_records(trees.path / TREES, DialogueTree)
    write_records(
        out.path / PAIRS,
        harvest.gather(records, context.recipe.search, section, seed=context.recipe.seed),
    )
    if not imported and (reason := _too_few(harvest, len(problems), section)):
        raise StageError(f"stage {out.name}: {reason}")
    problem_by_id = {problem.problem_id: problem for problem in problems}
    learners = trained_agents(context.recipe)
    rows = (
        preference_row(p, speakers_of(context.style, context.codecs, problem_by_id[p.problem_id]))
        for p in read_records(out.path / PAIRS, PreferencePair)
        if p.chosen.agent in learners
    )
    counts = write_rows(context, out.path, chain(rows, imported))
    n = max(1, harvest.n_chosen)
    metrics = {
        "pairs": float(harvest.n_chosen),
        "pairs/imported": float(len(imported)),
        "pairs/candidates": float(harvest.n_found),
        "pairs/problems": float(harvest.n_paired),
        "pairs/chosen_value": harvest.chosen_value / n,
        "pairs/rejected_value": harvest.rejected_value / n,
        **counts,
    }
    line = (
        f"{harvest.n_chosen} of {harvest.n_found} pairs kept, values "
        f"{metrics['pairs/chosen_value']:.3f} against {metrics['pairs/rejected_value']:.3f}"
    )
    return Made((PAIRS, ROWS, EVAL_ROWS), metrics, line)


def pair_section(context: RunContext) -> PairSection:
    """Return how pairs are read; only methods with trees have it."""
    assert context.recipe.pairs is not None
    return context.recipe.pairs


def _too_few(harvest: Harvest, n_problems: int, section: PairSection) -> str | None:
    """Say that there are no or too few pairs, and which fields to change; None if enough."""
    if not harvest.n_chosen:
        return (
            f"no pair to train on: {harvest.best()}, pairs.theta_filter is "
            f"{section.theta_filter} and pairs.theta_diff {section.theta_diff}; lower them, or "
            "raise search.n_rounds"
        )
    if harvest.n_paired >= share_of(section.min_share, n_problems):
        return None
    return (
        f"{harvest.n_chosen} pairs from {harvest.n_paired} of {n_problems} "
        f"problems, pairs.min_share is {section.min_share}: too few to learn from; raise "
        "search.n_rounds, lower pairs.theta_filter or pairs.theta_diff (`optima pairs` counts "
        "without generating), or, to train on so little, run again with a lower "
        "pairs.min_share"
    )


def read_imported(context: RunContext) -> tuple[PreferenceRow, ...]:
    """Return the preferences of ``pairs.path``; DataError names the first line that is none."""
    section = context.recipe.pairs
    if section is None or section.path is None:
        return ()
    return read_conversational(Path(section.path), context.codecs[0])
