"""iSFT (paper Alg. 1, 2): generate, rank, select, train, and again from the better model.

M_0 = the base model, or after the cold start
for t = 0, 1, ...:  candidates = N conversations a problem by M_t
                    D_t        = best of N, R > theta, top 70 %
                    M_t+1      = SFT of M_t (information exchange) or M_0 (debate) on D_t
"""

from pathlib import Path

from optima.pipelines import judge, learn
from optima.pipelines.context import Model, RunContext
from optima.pipelines.evaluate import Evaluations
from optima.pipelines.preflight import check_room
from optima.pipelines.problems import Problems, read_problems
from optima.pipelines.run import open_run
from optima.pipelines.talk import TalkPlan, talk
from optima.processes.environment import Environment
from optima.prompts.formats import load_formats
from optima.recipe.schema import Recipe
from optima.reporting.tables import EvaluationRow


def run_sft_pipeline(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> tuple[EvaluationRow, ...]:
    """Run or resume a whole iSFT run in ``run_dir`` and return the figures of its models."""
    with open_run(recipe, run_dir, vllm_env=vllm_env, train_env=train_env) as context:
        problems = read_problems(context)
        check_room(context, problems)
        evaluations = Evaluations(context, problems.test)
        if recipe.evaluation.base:
            evaluations.add(context.base)
        initial = context.base
        if recipe.cold_start is not None:
            initial = cold_start(context, problems)
            evaluations.add(initial)
        model = initial
        for t in range(recipe.iterations):
            start = model if starts_from_previous(context) else initial
            model = iterate(context, problems, t, (model, start), evaluations)
            evaluations.add(model)
        return evaluations.rows()


def iterate(
    context: RunContext,
    problems: Problems,
    t: int,
    models: tuple[Model, Model],
    evaluations: Evaluations,
    name: str | None = None,
) -> Model:
    """Let the first of ``models`` generate, and train the second on the best of it.

    One iteration, whose stages and model are called ``name`` (default ``iter_<t>``).
    """
    model, start = models
    name = name or f"iter_{t}"
    train_problems = problems.for_iteration(t)
    candidates = talk(context, f"{name}/generate", model, train_problems, talk_plan(context, t))
    evaluations.settle()  # while the scorer runs anyway
    losses = judge.score(context, f"{name}/score", candidates)
    ranked = judge.rank(context, f"{name}/rank", train_problems, (candidates, losses))
    stages = (candidates, ranked)
    rows = learn.select(context, f"{name}/select", t, train_problems, stages)
    return learn.train(context, f"{name}/train", start, rows, context.recipe.train, name)


def cold_start(context: RunContext, problems: Problems) -> Model:
    """Train the base model shortly on conversations scripted from gold evidence."""
    assert context.recipe.cold_start is not None
    rows = learn.script(context, "cold_start/script", problems.train)
    section = learn.cold_start_section(context.recipe.train, context.recipe.cold_start)
    return learn.train(context, "cold_start/train", context.base, rows, section, "cold_start")


def talk_plan(context: RunContext, t: int) -> TalkPlan:
    """Return how iteration ``t`` samples: iteration 0 has the pool and its own temperature."""
    section = context.recipe.sampling
    extra = Path(section.format_pool_path) if section.format_pool_path else None
    return TalkPlan(
        n_samples=section.n_samples,
        temperature=section.first_temperature if t == 0 else section.temperature,
        top_p=section.top_p,
        formats=load_formats(extra) if t == 0 and section.format_pool else (),
    )


def starts_from_previous(context: RunContext) -> bool:
    """Tell whether iterations build on each other (paper: information exchange only)."""
    start = context.recipe.train.start
    if start == "auto":
        return context.task.setting == "information_exchange"
    return start == "previous"
