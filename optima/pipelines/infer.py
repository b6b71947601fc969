"""Inference (paper section 4): every model on the test problems, one conversation each.

Models are served in turn and may be of any origin; what they are asked is said by the recipe, of
which everything about training is ignored. Conversations, task scores and figures of each model are
stages of the output directory, so an interrupted inference goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optima.errors import UsageError
from optima.evaluation.summary import Summary, summarise
from optima.pipelines import judge
from optima.pipelines.context import Model, RunContext, Sampling
from optima.pipelines.outline import write_stages
from optima.pipelines.problems import read_test_problems
from optima.pipelines.run import model_codec, open_run
from optima.pipelines.talk import generate
from optima.plan import Step
from optima.processes.environment import Environment
from optima.prompts.formats import Format
from optima.recipe.layers import Layers
from optima.recipe.loading import change_recipe, foreign_fields
from optima.recipe.schema import Recipe
from optima.rundir import Stage
from optima.tasks import get_task
from optima.types import Problem

_TRAINING = (
    *("method", "iterations", "initialise", "select", "train", "search", "pairs", "dpo"),
    "cold_start",
)


@dataclass(frozen=True, slots=True)
class InferenceRow:
    """One model's figures; ``seconds`` is the wall time of its conversations, server start in."""

    label: str
    model: str
    summary: Summary
    seconds: float


def run_inference(
    recipe: Recipe, models: Sequence[Model], output: Path, *, vllm_env: Environment
) -> tuple[InferenceRow, ...]:
    """Evaluate ``models`` by ``recipe`` into ``output``; return their figures in the same order."""
    check_labels(models)
    rows = []
    # No stage needs the training environment: nothing is trained and no loss is computed.
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        write_stages(output, {model.label: recipe.evaluation.n_samples for model in models})
        problems = read_test_problems(context, models)
        for model in models:
            rows.append(row_of(context, model, hold(context, model, problems)))
    return tuple(rows)


def hold(
    context: RunContext, model: Model, problems: Sequence[Problem], formats: tuple[Format, ...] = ()
) -> tuple[Stage, Stage]:
    """Let ``model`` talk about ``problems`` as the recipe's evaluation says; return (talk, rank).

    With ``formats`` each conversation is held in one of them. Prompts are rendered by the model's
    own chat template: models side by side may be of several families.
    """
    context = replace(context, codec=model_codec(context.recipe, model.ref.path))
    section = context.recipe.evaluation
    sampling = Sampling(section.n_samples, section.temperature, formats=formats)
    team, label = context.team(model, problems), model.label
    talked = context.do(Step(f"{label}/talk", label), generate, team, problems, sampling)
    return talked, context.do(Step(f"{label}/rank", label), judge.rank, problems, talked, None)


def row_of(context: RunContext, model: Model, held: tuple[Stage, Stage]) -> InferenceRow:
    """Return the figures of conversations held by ``model``."""
    talked, _ = held
    judged = judge.read_judged(talked.path.parent)
    return InferenceRow(
        label=model.label,
        model=model.ref.adapter or model.ref.path,
        summary=summarise(judged, seed=context.recipe.seed),
        seconds=talked.seconds,
    )


def check_labels(models: Sequence[Model]) -> None:
    """Raise UsageError when two models have the same name."""
    labels = [model.label for model in models]
    if len(set(labels)) < len(labels):
        raise UsageError(f"models have the same name: {', '.join(sorted(labels))}; rename a folder")


def inference_recipe(layers: Layers, *, task: str | None, overrides: Sequence[str]) -> Recipe:
    """Return the recipe in layers without its training, for another task if one is given.

    Another task leaves the data of the recipe's own behind, and what it does not read itself.
    Raises RecipeError.
    """
    kept = {key: value for key, value in layers.tree.items() if key not in _TRAINING}
    kept["method"] = "sft"
    if isinstance(kept.setdefault("reward", {}) or {}, dict):  # else validation says what is wrong
        kept["reward"] = {**(kept["reward"] or {}), "lambda_loss": 0.0}
    if task is not None:
        name = get_task(task).name
        if "task" in kept and name != kept["task"]:
            kept.pop("data", None)
            _forget_foreign(kept, name)
        kept["task"] = name
    return change_recipe(replace(layers, tree=kept), overrides)


def _forget_foreign(tree: dict[str, Any], task: str) -> None:
    """Take the fields out of ``tree`` that a task does not read; its sections stay as they are."""
    for key, _ in foreign_fields(get_task(task)):
        name, _, field = key.partition(".")
        if isinstance(section := tree.get(name), dict):
            tree[name] = {other: value for other, value in section.items() if other != field}
