"""Baselines (paper section 4): the same model and problems, other ways to answer.

cot       one agent that is told everything, step by step, at the evaluation's temperature
sc        a vote among n such answers (self-consistency)
mad       the agents in natural language, as any model of this project is evaluated
autoform  the agents, each conversation in a concise format drawn from the pool
trained   as cot, after training on its own correct answers: the control for what talking adds

The control is one agent that is told everything and learns from its own correct answers, on the
problems and with the budget of a run of agents: the same base model, cold start, problems and
training, and as many sampled answers a problem as the run has conversations. Correct is R_task >
0.5; neither length nor readability counts, as both are the method's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optima.errors import UsageError
from optima.evaluation.figures import Figures
from optima.methods import run_method
from optima.processes.environment import Environment
from optima.prompts.rendering import load_formats
from optima.recipe.schema import AgentsSection, Recipe, SelectSection
from optima.runs.files import RECIPE, write_stages
from optima.runs.reader import BASELINES, Baseline, Run
from optima.stages.context import Model, RunContext
from optima.stages.opening import open_run
from optima.stages.problems import TRAIN, read_test_problems
from optima.studies.infer import hold, last_model, measured
from optima.tasks.loading import told_to_one
from optima.types import Problem

UNTRAINED: tuple[Baseline, ...] = tuple(method for method in BASELINES if method != "trained")

ALONE = AgentsSection(names=("Solver",))
CORRECT = SelectSection(theta=0.5, threshold_on="task", keep_from=0.0, keep_to=1.0)


@dataclass(frozen=True, slots=True)
class Votes:
    """How many answers self-consistency draws, and at which temperature (paper: 8, 0.5)."""

    n: int
    temperature: float


def run_baselines(
    recipe: Recipe, model_by_method: dict[Baseline, Model], output: Path, *, ballot: Votes,
    vllm_env: Environment,
) -> tuple[Figures, ...]:  # fmt: skip
    """Evaluate a model by each method into ``output``; return their figures in that order."""
    models = [replace(model, label=method) for method, model in model_by_method.items()]
    if any(model.members for model in models):
        raise UsageError(
            "--model: is a team, and baselines are asked of one model; name the base model, or the "
            "adapter of one policy"
        )
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        n = recipe.evaluation.n_samples
        n_samples = {model.label: ballot.n if model.label == "sc" else n for model in models}
        write_stages(output, n_samples, grouped=("sc",))
        problems = read_test_problems(context, models)
        for model in models:
            _hold(context, model, problems, ballot)
    return measured(output, models)


def _hold(context: RunContext, model: Model, problems: Sequence[Problem], ballot: Votes) -> None:
    if model.label == "mad":
        hold(context, model, problems)
    elif model.label == "autoform":
        hold(context, model, problems, formats=load_formats())
    else:
        told = tuple(map(told_to_one, problems))
        is_vote = model.label == "sc"
        hold(_alone(context, ballot if is_vote else None), model, told, is_grouped=is_vote)


def _alone(context: RunContext, ballot: Votes | None = None) -> RunContext:
    """Return the context of the same run with one agent, and with several samples if asked for."""
    recipe = context.recipe.model_copy(update={"agents": ALONE, "policies": {}})
    if ballot is not None:
        recipe = recipe.changed(
            evaluation={"n_samples": ballot.n, "temperature": ballot.temperature}
        )
    style = replace(context.style, names=ALONE.names)
    return replace(context, recipe=recipe, style=style)


def train_control(
    run: Path, target: Path, label: str, *, vllm_env: Environment, train_env: Environment
) -> Model:
    """Train, or finish training, the control of ``run`` in ``target``; return its last model."""
    run_method(control_recipe(read_run(run)), target, vllm_env=vllm_env, train_env=train_env)
    return replace(last_model(target), label=label)


def read_run(run: Path) -> Recipe:
    """Return the recipe of a training run; UsageError where there is none."""
    if (run / RECIPE).is_file() and (recipe := Run(run).recipe).tasks:
        raise UsageError(
            f"--run {run}: is a mixture of {', '.join(recipe.members())}, whose budget no single "
            f"task had; name a model by --model, and --task NAME --config {run / RECIPE}"
        )
    if not (run / RECIPE).is_file() or not (run / "problems" / TRAIN).is_file():
        raise UsageError(
            f"--run {run}: is not a training run (it has no {RECIPE} or no problems/{TRAIN}); "
            "name one of optima-sft, optima-dpo or optima-sft-dpo"
        )
    recipe = Run(run).recipe
    if len(recipe.agents.names) == 1:
        raise UsageError(f"--run {run}: has one agent itself, so there is nothing to control for")
    return recipe


def control_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the control of a run by ``recipe``.

    Its candidates are sampled at the temperature of later iterations and without formats from the
    start. In place of trees it samples as many answers as they have rollouts.
    """
    search = recipe.search
    n_samples, n_problems = recipe.sampling.n_samples, recipe.data.n_train
    if search is not None:
        n_rollouts = search.n_rounds * search.n_rollouts
        n_samples = n_rollouts + (n_samples if recipe.method == "sft_dpo" else 0)
    if search is not None and recipe.method == "dpo":
        n_problems = search.n_problems or n_problems
    alone = recipe.changed(
        data={"n_train": n_problems},
        sampling={
            "n_samples": n_samples,
            "first_temperature": recipe.sampling.temperature,
            "format_pool": False,
            "format_pool_path": None,
        },
        reward={"lambda_token": 0.0, "lambda_loss": 0.0},
        evaluation={"base": False},
    )
    one = {"agents": ALONE, "policies": {}}
    others = dict.fromkeys(("initialise", "search", "pairs", "dpo"))
    return alone.model_copy(update={"method": "sft", **one, "select": CORRECT, **others})
