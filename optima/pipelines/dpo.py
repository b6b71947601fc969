"""iDPO (paper Alg. 3): grow dialogue trees, pair siblings, train on preferences, and again.

M_0 = the base model after one iteration of SFT, the first of six, or a model given
for t = 0, 1, ...:  trees = 8 rounds x 3 rollouts a problem by M_t
                    D_t   = best and worst siblings, V > theta_filter, gap > theta_diff, top half
                    M_t+1 = DPO + alpha NLL of M_t on D_t, with M_t as the reference
"""

from optima.pipelines.context import Model, RunContext, Sampling
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.influence import select_by_influence, validation_problems
from optima.pipelines.learn import train_model
from optima.pipelines.pair import pair, read_imported
from optima.pipelines.problems import Problems
from optima.pipelines.search import grow, normaliser_of, search_section
from optima.pipelines.talk import generate
from optima.plan import Iteration
from optima.tasks.loading import sample_problems


def check_pairs(run: RunContext, problems: Problems) -> None:
    """Raise what would stop the first selection of pairs, before hours of growing trees."""
    assert run.recipe.pairs is not None
    read_imported(run)
    if run.recipe.pairs.strategy == "influence":
        validation_problems(run, problems, 0)


def iterate(
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
