"""iSFT (paper Alg. 1, 2): generate, rank, select, train, and again from the better model.

M_0 = the base model, or after the cold start
for t = 0, 1, ...:  candidates = N conversations a problem by M_t
                    D_t        = best of N, R > theta, top 70 %
                    M_t+1      = SFT of M_t (information exchange) or M_0 (debate) on D_t
"""

from optima.pipelines.context import Model, RunContext, Sampling
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.judge import rank, score_where_needed
from optima.pipelines.learn import train_model, training_section
from optima.pipelines.problems import Problems
from optima.pipelines.run import read_formats
from optima.pipelines.script import script
from optima.pipelines.select import select
from optima.pipelines.talk import generate
from optima.plan import BASE, COLD_START, Iteration, Step
from optima.recipe.schema import Recipe


def iterate(
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
