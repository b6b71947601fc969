"""iDPO (paper Alg. 3): grow dialogue trees, pair siblings, train on preferences, and again.

M_0 = the base model after one iteration of SFT, the first of six, or a model given
for t = 0, 1, ...:  trees = 8 rounds x 3 rollouts a problem by M_t
                    D_t   = best and worst siblings, V > theta_filter, gap > theta_diff, top half
                    M_t+1 = DPO + alpha NLL of M_t on D_t, with M_t as the reference
"""

from pathlib import Path

from optima.pipelines import influence, learn, search
from optima.pipelines.context import Model, RunContext
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.outline import begins_with_sft, n_loops
from optima.pipelines.preflight import check_room
from optima.pipelines.problems import Problems, read_problems
from optima.pipelines.run import open_run
from optima.pipelines.sft import cold_start, iterate
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.reporting.tables import EvaluationRow

INITIAL = "initial"


def run_dpo_pipeline(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> tuple[EvaluationRow, ...]:
    """Run or resume a whole iDPO run in ``run_dir`` and return the figures of its models."""
    with open_run(recipe, run_dir, vllm_env=vllm_env, train_env=train_env) as context:
        problems = read_problems(context)
        check_room(context, problems)
        check_pairs(context, problems)
        evaluations = Evaluations(context, problems.test)
        if recipe.evaluation.base:
            evaluations.add(context.base)
        model = context.base
        if recipe.cold_start is not None:
            model = cold_start(context, problems)
            evaluations.add(model)
        if begins_with_sft(recipe):
            model = iterate(context, problems, 0, (model, model), evaluations, INITIAL)
            evaluations.add(model)
        for t in range(n_loops(recipe)):
            model = iterate_pairs(context, problems, t, model, evaluations, f"iter_{t}")
            evaluations.add(model)
        return evaluations.rows()


def check_pairs(context: RunContext, problems: Problems) -> None:
    """Raise what would stop the first selection of pairs, before hours of growing trees."""
    recipe = context.recipe
    assert recipe.pairs is not None
    search.read_imported(context)
    if recipe.pairs.strategy == "influence":
        influence.validation_problems(context, problems, 0)


def iterate_pairs(
    context: RunContext,
    problems: Problems,
    t: int,
    model: Model,
    evaluations: Evaluations,
    name: str,
) -> Model:
    """Grow trees by ``model`` and train it on their pairs: one iteration, called ``name``."""
    recipe = context.recipe
    assert recipe.pairs is not None
    assert recipe.dpo is not None
    chosen = problems.for_trees(t)
    normaliser = search.probe(context, f"{name}/probe", model, problems.train)
    grown = search.grow(context, f"{name}/search", model, chosen, normaliser)
    evaluations.settle()  # while the scorer runs anyway
    pairs = search.pair(context, f"{name}/pairs", chosen, grown, recipe.pairs)
    if recipe.pairs.strategy == "influence":
        validation = influence.validation_problems(context, problems, t)
        pairs = influence.select(context, name, model, pairs, validation)
    return learn.train(context, f"{name}/train", model, pairs, recipe.dpo, name)
