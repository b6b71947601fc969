"""iSFT (paper Alg. 1, 2): generate, rank, select, train, and again from the better model.

M_0 = the base model, or after the cold start
for t = 0, 1, ...:  candidates = N conversations a problem by M_t
                    D_t        = best of N, R > theta, top 70 %
                    M_t+1      = SFT of M_t (information exchange) or M_0 (debate) on D_t
"""

from collections.abc import Mapping

from optima.pipelines import judge, learn
from optima.pipelines.context import Model, RunContext
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.problems import Problems
from optima.pipelines.talk import TalkPlan, talk
from optima.plan import COLD_START, Iteration
from optima.prompts.formats import load_formats


def iterate(
    context: RunContext,
    problems: Problems,
    iteration: Iteration,
    models: Mapping[str, Model],
    evaluations: Evaluations,
) -> Model:
    """Let the iteration's speaker generate, and train its start on the best of it."""
    name, t, speaker = iteration.label, iteration.t, models[iteration.speaker]
    train_problems = problems.for_iteration(t)
    candidates = talk(context, f"{name}/generate", speaker, train_problems, talk_plan(context, t))
    evaluations.settle()  # while the scorer runs anyway
    losses = judge.score(context, f"{name}/score", candidates)
    ranked = judge.rank(context, f"{name}/rank", train_problems, (candidates, losses))
    rows = learn.select(context, f"{name}/select", t, train_problems, (candidates, ranked))
    start = models[iteration.start]
    return learn.train(context, f"{name}/train", start, rows, context.recipe.train, name)


def cold_start(context: RunContext, problems: Problems) -> Model:
    """Train the base model shortly on conversations scripted from gold evidence."""
    assert context.recipe.cold_start is not None
    rows = learn.script(context, "cold_start/script", problems.train)
    section = learn.cold_start_section(context.recipe.train, context.recipe.cold_start)
    return learn.train(context, "cold_start/train", context.base, rows, section, COLD_START)


def talk_plan(context: RunContext, t: int) -> TalkPlan:
    """Return how iteration ``t`` samples: iteration 0 has the pool and its own temperature."""
    section = context.recipe.sampling
    return TalkPlan(
        n_samples=section.n_samples,
        temperature=section.first_temperature if t == 0 else section.temperature,
        top_p=section.top_p,
        formats=load_formats(section.format_pool_path) if t == 0 and section.format_pool else (),
    )
