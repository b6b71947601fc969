"""The trained single agent: the control for what talking adds.

One agent that is told everything learns from its own correct answers, on the problems and with the
budget of a run of agents: the same base model, cold start, problems and training, and as many
sampled answers a problem as the run has conversations. Correct is R_task > 0.5; neither length nor
readability counts, as both are the method's own.
"""

from dataclasses import replace
from pathlib import Path

from optima.errors import UsageError
from optima.pipelines.checkpoints import find_models
from optima.pipelines.context import Model
from optima.pipelines.methods import run_method
from optima.processes.environment import Environment
from optima.recipe.schema import AgentsSection, Recipe, SelectSection
from optima.stages import read_recipe

ALONE = AgentsSection(names=("Solver",))
CORRECT = SelectSection(theta=0.5, threshold_on="task", keep_from=0.0, keep_to=1.0)


def train_control(
    run: Path, target: Path, label: str, *, vllm_env: Environment, train_env: Environment
) -> Model:
    """Train, or finish training, the control of ``run`` in ``target``; return its last model."""
    run_method(control_recipe(read_run(run)), target, vllm_env=vllm_env, train_env=train_env)
    return replace(find_models(target)[-1], label=label)


def read_run(run: Path) -> Recipe:
    """Return the recipe of a training run; UsageError where there is none."""
    stored = run / "recipe.yaml"
    if not stored.is_file() or not (run / "problems" / "train.jsonl").is_file():
        raise UsageError(
            f"--run {run}: is no training run (it has no recipe.yaml or no problems/train.jsonl); "
            "name one of optima-sft, optima-dpo or optima-sft-dpo"
        )
    recipe = read_recipe(run)
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
    temperature = recipe.sampling.temperature
    return recipe.model_copy(
        update={
            "method": "sft",
            "agents": ALONE,
            "data": recipe.data.model_copy(update={"n_train": n_problems}),
            "sampling": recipe.sampling.model_copy(
                update={
                    "n_samples": n_samples,
                    "first_temperature": temperature,
                    "format_pool": False,
                    "format_pool_path": None,
                }
            ),
            "reward": recipe.reward.model_copy(update={"lambda_token": 0.0, "lambda_loss": 0.0}),
            "select": CORRECT,
            "evaluation": recipe.evaluation.model_copy(update={"base": False}),
            **dict.fromkeys(("initialise", "search", "pairs", "dpo")),
        }
    )
