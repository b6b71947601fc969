"""The three methods by their names in recipes."""

from pathlib import Path

from optima.errors import UsageError
from optima.pipelines.dpo import run_dpo_pipeline
from optima.pipelines.sft import run_sft_pipeline
from optima.pipelines.sft_dpo import run_sft_dpo_pipeline
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.reporting.tables import EvaluationRow

PIPELINES = {
    "sft": run_sft_pipeline,
    "dpo": run_dpo_pipeline,
    "sft_dpo": run_sft_dpo_pipeline,
}


def run_method(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> tuple[EvaluationRow, ...]:
    """Run or resume the recipe's method in ``run_dir``; return its models in the order made."""
    check_trainable(recipe)
    return PIPELINES[recipe.method](recipe, run_dir, vllm_env=vllm_env, train_env=train_env)


def check_trainable(recipe: Recipe) -> None:
    """Raise UsageError for fields that evaluations alone understand."""
    if recipe.model.tokenizer is not None:
        raise UsageError(
            f"model.tokenizer: {recipe.model.tokenizer}: a model is trained with the tokenizer in "
            "its own directory; put it there and leave model.tokenizer out"
        )
