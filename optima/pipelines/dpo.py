"""iDPO (paper Alg. 3): grow dialogue trees, pair siblings, train on preferences, and again.

M_0 = the base model after one iteration of SFT, the first of six, or a model given
for t = 0, 1, ...:  trees = 8 rounds x 3 rollouts a problem by M_t
                    D_t   = best and worst siblings, V > theta_filter, gap > theta_diff, top half
                    M_t+1 = DPO + alpha NLL of M_t on D_t, with M_t as the reference
"""

from collections.abc import Mapping

from optima.pipelines import influence, learn, search
from optima.pipelines.context import Model, RunContext
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.problems import Problems
from optima.plan import Iteration


def check_pairs(context: RunContext, problems: Problems) -> None:
    """Raise what would stop the first selection of pairs, before hours of growing trees."""
    recipe = context.recipe
    assert recipe.pairs is not None
    search.read_imported(context)
    if recipe.pairs.strategy == "influence":
        influence.validation_problems(context, problems, 0)


def iterate(
    context: RunContext,
    problems: Problems,
    iteration: Iteration,
    models: Mapping[str, Model],
    evaluations: Evaluations,
) -> Model:
    """Let the iteration's speaker grow trees, and train it on their pairs."""
    name, t, model, recipe = iteration.label, iteration.t, models[iteration.speaker], context.recipe
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
    return learn.train(context, f"{name}/train", models[iteration.start], pairs, recipe.dpo, name)
