"""Transfer (paper section 4): models trained on some tasks, evaluated on others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optima.pipelines.context import Model
from optima.pipelines.infer import InferenceRow, run_inference
from optima.pipelines.outline import write_members
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe


def run_transfer(
    recipe_by_task: Mapping[str, Recipe],
    models: Sequence[Model],
    output: Path,
    *,
    vllm_env: Environment,
) -> dict[str, tuple[InferenceRow, ...]]:
    """Evaluate every model on every task, an inference each in ``output / task``."""
    write_members(output, tuple(recipe_by_task))
    return {
        task: run_inference(recipe, models, output / task, vllm_env=vllm_env)
        for task, recipe in recipe_by_task.items()
    }
