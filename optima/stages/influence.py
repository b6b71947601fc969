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
from optima.plan import Iteration, Step
from optima.recipe.schema import InfluenceSection
from optima.records import read_records, write_records
from optima.runs.directory import Stage
from optima.runs.files import EVAL_ROWS, ROWS
from optima.seeding import rng
from optima.selection import share_of
from optima.stages.context import Made, Model, RunContext
from optima.stages.generate import ask
from optima.stages.problems import Problems
from optima.stages.rank import group_maximum, mark
from optima.stages.train import train_model
from optima.tasks.loading import sample_problems
from optima.training.jobs import MODEL_DIR
from optima.types import PreferenceRow, Problem

logger = logging.getLogger(__name__)


def select_by_influence(
    context: RunContext,
    iteration: Iteration,
    model: Model,
    pairs: Stage,
    validation: Sequence[Problem],
) -> Stage:
    """Return a stage with the rows of the groups whose training helps ``model`` most."""
    recipe, section = context.recipe, influence_section(context)
    assert recipe.pairs is not None
    assert recipe.dpo is not None
    folder = f"{iteration.label}/influence"
    paired = [row.problem_id for row in read_records(pairs.path / ROWS, PreferenceRow)]
    groups = deal_groups(paired, section.n_groups, seed=recipe.seed)
    before = ask(context, f"{folder}/before", model, validation)
    normalisers = group_maximum(before)
    marked = mark(context, f"{folder}/before", validation, before, normalisers)
    influences = []
    for g, group in enumerate(groups):
        part = f"{folder}/group_{g}"
        rows = context.do(Step(f"{part}/rows", model.label), pick_rows, pairs, _sorted(group))
        trial = train_model(context, Step(f"{part}/train", part), model, rows, recipe.dpo)
        talked = ask(context, part, trial, validation)
        changed = mark(context, part, validation, talked, normalisers)
        influences.append(changed.metrics["reward/total"] - marked.metrics["reward/total"])
        # Its rewards are stored, so that nothing asks for the trial's model again.
        shutil.rmtree(context.run.root / part / "train" / MODEL_DIR, ignore_errors=True)
        logger.info("%s: influence %+.4f of %d problems", part, influences[-1], len(group))
    best = best_groups(influences, recipe.pairs.keep_share)
    kept = set().union(*(groups[g] for g in best))
    return context.do(iteration.step("influence/selected"), pick_rows, pairs, _sorted(kept))


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


def pick_rows(context: RunContext, out: Stage, pairs: Stage, problem_ids: tuple[str, ...]) -> Made:
    """Write the rows of some problems, as a stage that can be trained on."""
    picked = set(problem_ids)
    rows = read_records(pairs.path / ROWS, PreferenceRow)
    n_rows = write_records(out.path / ROWS, (row for row in rows if row.problem_id in picked))
    held_out = read_records(pairs.path / EVAL_ROWS, PreferenceRow)
    n_eval = write_records(out.path / EVAL_ROWS, held_out)
    metrics = {"rows/train": float(n_rows), "rows/eval": float(n_eval)}
    return Made((ROWS, EVAL_ROWS), metrics, f"{n_rows} rows of {len(picked)} problems")


def _sorted(problem_ids: set[str]) -> tuple[str, ...]:
    return tuple(sorted(problem_ids))
