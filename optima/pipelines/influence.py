"""Selection of pairs by what they do to a validation reward, in the spirit of DITS (2502.00955).

The pairs of an iteration are dealt by problem into groups. Each group trains the model once, by
itself, and the influence of the group is the mean validation reward afterwards minus that of the
model before: R of the evaluation (its temperature and samples), R_token by the tokens of the model
before. The groups of highest influence are kept, the others' pairs are not trained on.

It costs ``n_groups`` trainings, of all pairs once, and ``n_groups + 1`` evaluations more than the
other strategies. Refuses to measure on problems that have a tree, which training would see.
"""

import logging
import shutil
from collections.abc import Sequence

from optima.errors import UsageError
from optima.files import EVAL_ROWS, ROWS
from optima.pipelines import judge, learn
from optima.pipelines.context import Model, RunContext
from optima.pipelines.evaluate import ask, mark
from optima.pipelines.problems import Problems
from optima.recipe.schema import InfluenceSection
from optima.records import read_records, write_records
from optima.rundir import Stage
from optima.seeding import rng
from optima.shares import share_of
from optima.tasks.loading import sample_problems
from optima.training.jobs import MODEL_DIR
from optima.types import PreferenceRow, Problem

logger = logging.getLogger(__name__)


def select(
    context: RunContext, name: str, model: Model, pairs: Stage, validation: Sequence[Problem]
) -> Stage:
    """Return a stage with the rows of the groups whose training helps ``model`` most."""
    recipe = context.recipe
    assert recipe.pairs is not None
    assert recipe.dpo is not None
    section = influence_section(context)
    rows = tuple(read_records(pairs.path / ROWS, PreferenceRow))
    groups = deal_groups([row.problem_id for row in rows], section.n_groups, seed=recipe.seed)
    before, normalisers = _reward(context, f"{name}/influence/before", model, validation, None)
    influences = []
    for g, group in enumerate(groups):
        part = f"{name}/influence/group_{g}"
        of_group = _write(context, f"{part}/rows", pairs, rows, group)
        trial = learn.train(context, f"{part}/train", model, of_group, recipe.dpo, part)
        after, _ = _reward(context, part, trial, validation, normalisers)
        # Its rewards are stored, so that nothing asks for the trial's model again.
        shutil.rmtree(context.run.root / part / "train" / MODEL_DIR, ignore_errors=True)
        influences.append(after - before)
        logger.info("%s: influence %+.4f of %d problems", part, influences[-1], len(group))
    best = best_groups(influences, recipe.pairs.keep_share)
    kept = {problem_id for g in best for problem_id in groups[g]}
    return _write(context, f"{name}/influence/selected", pairs, rows, kept)


def validation_problems(context: RunContext, problems: Problems, t: int) -> tuple[Problem, ...]:
    """Return the problems that measure influence in iteration ``t``: none of them has a tree.

    Raises UsageError when every problem of the train split has one.
    """
    with_tree = {problem.problem_id for problem in problems.for_trees(t)}
    others = [problem for problem in problems.train if problem.problem_id not in with_tree]
    if not others:
        raise UsageError(
            f"pairs.strategy: influence: all {len(with_tree)} problems of the train split get a "
            "tree, so none is left to measure influence on; lower search.n_problems"
        )
    n_wanted = influence_section(context).n_problems
    return sample_problems(
        others, min(n_wanted, len(others)), seed=context.recipe.seed, stage=f"iter_{t}/influence"
    )


def influence_section(context: RunContext) -> InfluenceSection:
    """Return how influence is measured; only methods with trees have it."""
    assert context.recipe.pairs is not None
    return context.recipe.pairs.influence


def deal_groups(problem_ids: Sequence[str], n_groups: int, *, seed: int) -> list[set[str]]:
    """Return the distinct problems dealt at random into groups of equal size, none empty."""
    distinct = sorted(set(problem_ids))
    rng(seed, "influence").shuffle(distinct)
    groups = [set(distinct[g::n_groups]) for g in range(n_groups)]
    return [group for group in groups if group]


def best_groups(influences: Sequence[float], keep_share: float) -> list[int]:
    """Return the places of the share of groups with the highest influence, at least one."""
    n_kept = max(1, int(share_of(keep_share, len(influences))))
    return sorted(range(len(influences)), key=lambda g: (-influences[g], g))[:n_kept]


def _reward(
    context: RunContext,
    name: str,
    model: Model,
    problems: Sequence[Problem],
    normalisers: dict[str, int] | None,
) -> tuple[float, dict[str, int]]:
    """Return the model's mean reward and the token counts that R_token divided by."""
    talked = ask(context, name, model, problems)
    if normalisers is None:
        normalisers = judge.group_maximum(talked)
    ranked = mark(context, name, problems, talked, normalisers)
    return ranked.metrics["reward/total"], normalisers


def _write(
    context: RunContext,
    name: str,
    pairs: Stage,
    rows: Sequence[PreferenceRow],
    problem_ids: set[str],
) -> Stage:
    """Write the rows of some problems as a stage that can be trained on."""
    stage = context.run.stage(name, pairs.output_digest, *sorted(problem_ids))
    if not stage.done:
        chosen = [row for row in rows if row.problem_id in problem_ids]
        n_rows = write_records(stage.path / ROWS, chosen)
        n_eval = write_records(
            stage.path / EVAL_ROWS,
            read_records(pairs.path / EVAL_ROWS, PreferenceRow),
        )
        outputs = [stage.path / ROWS, stage.path / EVAL_ROWS]
        stage.finish(outputs, {"rows/train": float(n_rows), "rows/eval": float(n_eval)})
        context.run.write_metrics()
    return stage
