"""The three methods as the paper has them: each loop on one screen.

iSFT (Alg. 1, 2):  M_0 = the base model, or after the cold start
                   candidates = N conversations a problem by M_t
                   D_t   = best of N, R > theta, top 70 %
                   M_t+1 = SFT of M_t (information exchange) or M_0 (debate) on D_t
iDPO (Alg. 3, 4):  M_0 = the base model after one iteration of SFT, the first of six, or one given
                   trees = 8 rounds x 3 rollouts a problem by M_t
                   D_t   = best and worst siblings, V > theta_filter, gap > theta_diff, top half
                   M_t+1 = DPO + alpha NLL of M_t on D_t, with M_t as the reference
iSFT-DPO (Alg. 5): an iteration of the one, then one of the other

Which iterations there are, who speaks in them and what is trained says ``optima.plan``; what a
stage does, its module in ``stages/``.
"""

import logging
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
from optima.stages.opening import check_models, check_room, open_run, read_formats
from optima.stages.pair import pair, read_imported
from optima.stages.problems import Problems, read_problems
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
        problems = read_problems(context)
        check_room(context, problems)
        if recipe.pairs is not None:
            check_pairs(context, problems)
        evaluations = Evaluations(context, problems.test)
        models: dict[str, Model] = {BASE: context.base}
        if recipe.evaluation.base:
            evaluations.add(context.base)
        if recipe.cold_start is not None:
            models[COLD_START] = cold_start(context, problems)
            evaluations.add(models[COLD_START])
        iterate = {"sft": iterate_sft, "dpo": iterate_dpo}
        for iteration in iterations(recipe):
            model = iterate[iteration.training](
                context, problems, iteration, evaluations,
                speaker=models[iteration.speaker], start=models[iteration.start],
            )  # fmt: skip
            models[iteration.label] = model
            evaluations.add(model)
        return evaluations.rows()


def iterate_sft(
    run: RunContext,
    problems: Problems,
    iteration: Iteration,
    evaluations: Evaluations,
    *,
    speaker: Model,
    start: Model,
) -> Model:
    """Let the speaker generate, and train ``start`` on the best of it."""
    t, step = iteration.t, iteration.step
    chosen = problems.for_iteration(t)
    team, sampling = run.team(speaker, chosen), candidate_sampling(run.recipe, t)
    candidates = run.do(step("generate"), generate, team, chosen, sampling)
    evaluations.settle()  # while the scorer runs anyway
    losses = score_where_needed(run, step("score"), candidates)
    rewards = run.do(step("rank"), rank, chosen, candidates, losses)
    rows = run.do(step("select"), select, chosen, candidates, rewards, t)
    return train_model(run, step("train"), start, rows, run.recipe.train)


def iterate_dpo(
    run: RunContext,
    problems: Problems,
    iteration: Iteration,
    evaluations: Evaluations,
    *,
    speaker: Model,
    start: Model,
) -> Model:
    """Let the speaker grow trees, and train ``start`` on their pairs."""
    t, step, recipe, section = iteration.t, iteration.step, run.recipe, search_section(run)
    assert recipe.pairs is not None
    assert recipe.dpo is not None
    probed = sample_problems(
        problems.train, section.n_probe, seed=recipe.seed, stage=step("probe").name
    )
    sampling = Sampling(1, recipe.sampling.temperature, recipe.sampling.top_p)
    probe = run.do(step("probe"), generate, run.team(speaker, probed), probed, sampling)
    normaliser, chosen = normaliser_of(probe, section), problems.for_trees(t)
    team = run.team(speaker, chosen)
    trees = run.do(step("search"), grow, team, chosen, normaliser, run.loss)
    evaluations.settle()  # while the scorer runs anyway
    pairs = run.do(step("pairs"), pair, chosen, trees, recipe.pairs, read_imported(run))
    if recipe.pairs.strategy == "influence":
        validation = validation_problems(run, problems, t)
        pairs = select_by_influence(run, iteration, speaker, pairs, validation)
    return train_model(run, step("train"), start, pairs, recipe.dpo)


def cold_start(run: RunContext, problems: Problems) -> Model:
    """Train the base model shortly on conversations scripted from gold evidence."""
    section = run.recipe.cold_start
    assert section is not None
    team = run.team(run.base, problems.train)
    rows = run.do(Step("cold_start/script", BASE), script, team, problems.train, section)
    training = training_section(run.recipe.train, section)
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


def check_pairs(run: RunContext, problems: Problems) -> None:
    """Raise what would stop the first selection of pairs, before hours of growing trees."""
    assert run.recipe.pairs is not None
    read_imported(run)
    if run.recipe.pairs.strategy == "influence":
        validation_problems(run, problems, 0)
