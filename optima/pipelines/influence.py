"""Selection of pairs by what they do to a validation reward, in the spirit of DITS (2502.00955).

The pairs of an iteration are dealt by problem into groups. Each group trains the model once, by
itself, and the influence of the group is the mean validation reward afterwards minus that of the
model before. The groups of highest influence are kept. Refuses nothing that training would take;
it costs ``n_groups`` trainings and evaluations more than the other strategies.
"""

import logging
from collections.abc import Sequence

from optima.pipelines import judge, learn
from optima.pipelines.context import Model, RunContext
from optima.pipelines.problems import Problems
from optima.pipelines.talk import TalkPlan, talk
from optima.recipe.schema import InfluenceSection
from optima.rundir import Stage, read_records, write_records
from optima.seeding import rng
from optima.tasks.loading import sample_problems
from optima.types import PreferenceRow, Problem

logger = logging.getLogger(__name__)


def select(context: RunContext, name: str, model: Model, pairs: Stage, problems: Problems) -> Stage:
    """Return a stage with the rows of the groups whose training helps ``model`` most."""
    recipe = context.recipe
    assert recipe.pairs is not None
    assert recipe.dpo is not None
    section = recipe.pairs.influence or InfluenceSection()
    rows = tuple(read_records(pairs.path / learn.ROWS, PreferenceRow))
    groups = deal_groups([row.problem_id for row in rows], section.n_groups, seed=recipe.seed)
    trained_on = {problem_id for group in groups for problem_id in group}
    others = [problem for problem in problems.train if problem.problem_id not in trained_on]
    validation = sample_problems(
        others or problems.train, section.n_problems, seed=recipe.seed, stage=f"{name}/influence"
    )
    before, normalisers = _reward(context, f"{name}/influence/before", model, validation, None)
    influences = []
    for g, group in enumerate(groups):
        part = f"{name}/influence/group_{g}"
        of_group = _write(context, f"{part}/rows", pairs, rows, group)
        trial = learn.train(context, f"{part}/train", model, of_group, recipe.dpo, part)
        after, _ = _reward(context, part, trial, validation, normalisers)
        influences.append(after - before)
        logger.info("%s: influence %+.4f of %d problems", part, influences[-1], len(group))
    n_kept = max(1, int(recipe.pairs.keep_share * len(groups)))
    best = sorted(range(len(groups)), key=lambda g: (-influences[g], g))[:n_kept]
    kept = {problem_id for g in best for problem_id in groups[g]}
    return _write(context, f"{name}/influence/selected", pairs, rows, kept)


def deal_groups(problem_ids: Sequence[str], n_groups: int, *, seed: int) -> list[set[str]]:
    """Return the distinct problems dealt at random into groups of equal size, none empty."""
    distinct = sorted(set(problem_ids))
    rng(seed, "influence").shuffle(distinct)
    groups = [set(distinct[g::n_groups]) for g in range(n_groups)]
    return [group for group in groups if group]


def _reward(
    context: RunContext,
    name: str,
    model: Model,
    problems: Sequence[Problem],
    normalisers: dict[str, int] | None,
) -> tuple[float, dict[str, int]]:
    """Return the model's mean reward and the token counts that R_token divided by."""
    section = context.recipe.evaluation
    plan = TalkPlan(n_samples=section.n_samples, temperature=section.temperature)
    talked = talk(context, f"{name}/talk", model, problems, plan)
    if normalisers is None:
        normalisers = judge.group_maximum(talked)
    scored = judge.score(context, f"{name}/score", talked)
    ranked = judge.rank(context, f"{name}/rank", problems, (talked, scored), normalisers)
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
        n_rows = write_records(stage.path / learn.ROWS, chosen)
        n_eval = write_records(
            stage.path / learn.EVAL_ROWS,
            read_records(pairs.path / learn.EVAL_ROWS, PreferenceRow),
        )
        outputs = [stage.path / learn.ROWS, stage.path / learn.EVAL_ROWS]
        stage.finish(outputs, {"rows/train": float(n_rows), "rows/eval": float(n_eval)})
        context.run.write_metrics()
    return stage
