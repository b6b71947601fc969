"""The three methods as the paper has them: each loop on one screen.

iSFT (Alg. 1, 2):  M_0 = the base model, or after the cold start
                   candidates = N conversations a problem by M_t
                   D_t   = best of N, R > theta, top 70 %
                   M_t+1 = SFT of M_t (information exchange) or M_0 (debate) on D_t
iDPO (Alg. 3-5):   M_0 = the base model after one iteration of SFT, the first of six, or one given
                   trees = 8 rounds x 3 rollouts a problem by M_t
                   D_t   = best and worst siblings, V > theta_filter, gap > theta_diff, top half
                   M_t+1 = DPO + alpha NLL of M_t on D_t, with M_t as the reference
iSFT-DPO:          an iteration of the one, then one of the other

A run has one part, its task with its problems; a mixture has one for each of its tasks (not in the
paper): each gives its own candidates or trees, all train one model.

Which iterations there are, who speaks in them and what is trained says ``optima.plan``; what a
stage does, its module in ``stages/``.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from optima.evaluation.figures import Figures
from optima.plan import BASE, COLD_START, Iteration, Step, check_trainable, iterations
from optima.processes.devices import detect_devices
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.stages.context import Model, RunContext, Sampling
from optima.stages.evaluate import Evaluations
from optima.stages.generate import generate
from optima.stages.influence import select_by_influence, validation_problems
from optima.stages.mix import mixed, weights_of
from optima.stages.opening import check_models, check_room, open_run, read_formats
from optima.stages.pair import pair, pair_section, read_imported
from optima.stages.problems import Part, read_parts
from optima.stages.rank import rank, score_where_needed
from optima.stages.room import check_fit, is_trained
from optima.stages.script import script
from optima.stages.search import grow, normaliser_of, search_section
from optima.stages.select import select
from optima.stages.train import train_model, training_section
from optima.tasks.loading import sample_problems

logger = logging.getLogger(__name__)


def run_method(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> tuple[Figures, ...]:
    """Run or resume the recipe's method in ``run_dir``; return its models in the order made.

    Raises UsageError, before there is a directory, for models that cannot be loaded and
    trainings that do not fit the devices.
    """
    check_trainable(recipe)
    if not is_trained(recipe, run_dir):
        check_models(recipe)
        for line in check_fit(recipe, detect_devices(recipe.serving), train_env):
            logger.info("%s", line)
    with open_run(recipe, run_dir, vllm_env=vllm_env, train_env=train_env) as context:
        parts = read_parts(context)
        check_room(context, parts)
        if recipe.pairs is not None:
            check_pairs(parts)
        evaluations = Evaluations(context, parts)
        models: dict[str, Model] = {BASE: context.base}
        if recipe.evaluation.base:
            evaluations.add(context.base)
        if recipe.cold_start is not None:
            models[COLD_START] = cold_start(context, parts)
            evaluations.add(models[COLD_START])
        iterate = {"sft": iterate_sft, "dpo": iterate_dpo}
        for iteration in iterations(recipe):
            model = iterate[iteration.training](
                context, parts, iteration, evaluations,
                speaker=models[iteration.speaker], start=models[iteration.start],
            )  # fmt: skip
            models[iteration.label] = model
            evaluations.add(model)
        return evaluations.rows()


def iterate_sft(
    run: RunContext,
    parts: Sequence[Part],
    iteration: Iteration,
    evaluations: Evaluations,
    *,
    speaker: Model,
    start: Model,
) -> Model:
    """Let the speaker generate, and train ``start`` on the best of it."""
    t, step = iteration.t, iteration.step
    drawn, selected = [], []
    for part in parts:
        chosen = part.problems.for_iteration(t)
        team, sampling = part.run.team(speaker, chosen), candidate_sampling(part.run.recipe, t)
        candidates = part.run.do(step("generate"), generate, team, chosen, sampling)
        drawn.append((part.run, chosen, candidates))
    evaluations.settle()  # while the scorer runs anyway
    for own, chosen, candidates in drawn:
        losses = score_where_needed(own, step("score"), candidates)
        rewards = own.do(step("rank"), rank, chosen, candidates, losses)
        selected.append(own.do(step("select"), select, chosen, candidates, rewards, t))
    rows = mixed(run, step("mix"), selected, weights_of(run.recipe))
    return train_model(run, step("train"), start, rows, run.recipe.train)


def iterate_dpo(
    run: RunContext,
    parts: Sequence[Part],
    iteration: Iteration,
    evaluations: Evaluations,
    *,
    speaker: Model,
    start: Model,
) -> Model:
    """Let the speaker grow trees, and train ``start`` on their pairs."""
    t, step = iteration.t, iteration.step
    grown, paired = [], []
    for part in parts:
        own, recipe, section = part.run, part.run.recipe, search_section(part.run)
        probed = sample_problems(
            part.problems.train, section.n_probe, seed=recipe.seed, stage=step("probe").name
        )
        sampling = Sampling(1, recipe.sampling.temperature, recipe.sampling.top_p)
        probe = own.do(step("probe"), generate, own.team(speaker, probed), probed, sampling)
        normaliser, chosen = normaliser_of(probe, section), part.problems.for_trees(t)
        team = own.team(speaker, chosen)
        trees = own.do(step("search"), grow, team, chosen, normaliser, run.loss)
        grown.append((part, chosen, trees))
    evaluations.settle()  # while the scorer runs anyway
    for part, chosen, trees in grown:
        rules, imported = pair_section(part.run), read_imported(part.run)
        pairs = part.run.do(step("pairs"), pair, chosen, trees, rules, imported)
        if rules.strategy == "influence":
            validation = validation_problems(part.run, part.problems, t)
            pairs = select_by_influence(part.run, iteration, speaker, pairs, validation)
        paired.append(pairs)
    assert run.recipe.dpo is not None
    rows = mixed(run, step("mix"), paired, weights_of(run.recipe))
    return train_model(run, step("train"), start, rows, run.recipe.dpo)


def cold_start(run: RunContext, parts: Sequence[Part]) -> Model:
    """Train the base model shortly on conversations scripted from gold evidence."""
    scripts = []
    for part in parts:
        if (own := part.run.recipe.cold_start) is not None:
            train, team = part.problems.train, part.run.team(run.base, part.problems.train)
            step = Step("cold_start/script", BASE)
            scripts.append(part.run.do(step, script, team, train, own))
    assert run.recipe.cold_start is not None
    rows = mixed(run, Step("cold_start/mix", COLD_START), scripts)
    training = training_section(run.recipe.train, run.recipe.cold_start)
    return train_model(run, Step("cold_start/train", COLD_START), run.base, rows, training)


def candidate_sampling(recipe: Recipe, t: int) -> Sampling:
    """Return how iteration ``t`` samples: iteration 0 has the pool and its own temperature."""
    section = recipe.sampling
    return Sampling(
        n_samples=section.n_samples,
        temperature=section.first_temperature if t == 0 else section.temperature,
        top_p=section.top_p,
        formats=read_formats(recipe) if t == 0 else (),
    )


def check_pairs(parts: Sequence[Part]) -> None:
    """Raise what would stop the first selection of pairs, before hours of growing trees."""
    for part in parts:
        read_imported(part.run)
        if pair_section(part.run).strategy == "influence":
            validation_problems(part.run, part.problems, 0)
