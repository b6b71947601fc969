"""Inference (paper section 4): every model on the test problems; transfer: on those of other tasks.

Models are served in turn and may be of any origin; what they are asked is said by the recipe, of
which everything about training is ignored. Conversations, task scores and figures of each model are
stages of the output directory, so an interrupted inference goes on where it stopped.

Self-consistency is an inference of several samples a problem, whose equal answers are put into
groups; every k from 1 to that number is then computed from them. Which answers mean the same is a
stage of its own, as comparing mathematical expressions takes time.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from optima.errors import UsageError
from optima.evaluation.figures import Figures
from optima.evaluation.statistics import group_answers
from optima.plan import Step
from optima.processes.environment import Environment
from optima.prompts.rendering import Format
from optima.recipe.layers import Layers
from optima.recipe.loading import change_recipe, foreign_fields
from optima.recipe.schema import Recipe
from optima.records import read_records, write_records
from optima.runs.directory import Stage
from optima.runs.files import CONVERSATIONS, GROUPS, RESULTS, write_members, write_stages
from optima.runs.reader import Run
from optima.stages.context import Made, Model, RunContext
from optima.stages.generate import ask
from optima.stages.opening import model_codec, open_run
from optima.stages.problems import read_test_problems
from optima.stages.rank import mark
from optima.tasks import get_task
from optima.tasks.judging import Judge
from optima.types import AnswerGroups, Conversation, Problem

_TRAINING = (
    *("method", "iterations", "initialise", "select", "train", "search", "pairs", "dpo"),
    "cold_start",
)


def run_inference(
    recipe: Recipe, models: Sequence[Model], output: Path, *, vllm_env: Environment,
    is_grouped: bool = False,
) -> tuple[Figures, ...]:  # fmt: skip
    """Evaluate ``models`` by ``recipe`` into ``output``; return their figures in the same order.

    With ``is_grouped`` equal answers are put into groups, which gives votes for every k.
    """
    check_labels(models)
    # No stage needs the training environment: nothing is trained and no loss is computed.
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        n_samples = {model.label: recipe.evaluation.n_samples for model in models}
        write_stages(output, n_samples, grouped=tuple(n_samples) if is_grouped else ())
        problems = read_test_problems(context, models)
        for model in models:
            hold(context, model, problems, is_grouped=is_grouped)
    return measured(output, models)


def run_transfer(
    recipe_by_task: Mapping[str, Recipe],
    models: Sequence[Model],
    output: Path,
    *,
    vllm_env: Environment,
) -> dict[str, tuple[Figures, ...]]:
    """Evaluate every model on every task, an inference each in ``output / task``."""
    write_members(output, tuple(recipe_by_task))
    return {
        task: run_inference(recipe, models, output / task, vllm_env=vllm_env)
        for task, recipe in recipe_by_task.items()
    }


def hold(
    context: RunContext, model: Model, problems: Sequence[Problem],
    formats: tuple[Format, ...] = (), *, is_grouped: bool = False,
) -> None:  # fmt: skip
    """Evaluate ``model`` in a folder of its label, with ``formats`` each conversation in one.

    Prompts are rendered by the model's own chat template: models side by side may be of several
    families. ``is_grouped`` tells which samples of a problem have the same answer too.
    """
    context = replace(context, codec=model_codec(context.recipe, model.ref.path))
    talked = ask(context, model.label, model, problems, formats)
    mark(context, model.label, problems, talked)
    if is_grouped:
        context.do(Step(f"{model.label}/groups", model.label), group, problems, talked)


def group(context: RunContext, out: Stage, problems: Sequence[Problem], talked: Stage) -> Made:
    """Write which samples of a problem have the same answer."""
    metric = context.task.metric
    choices_by_id = {problem.problem_id: problem.choices for problem in problems}
    conversations = read_records(talked.path / CONVERSATIONS, Conversation)

    def found(judge: Judge) -> Iterator[AnswerGroups]:
        groups = groupby(conversations, key=lambda conversation: conversation.problem_id)
        bar = tqdm(groups, desc="groups", unit="problem", disable=not sys.stderr.isatty())
        for problem_id, samples in bar:
            is_same = partial(judge.are_same, metric, choices=choices_by_id[problem_id])
            numbers = group_answers([sample.answer for sample in samples], is_same)
            yield AnswerGroups(problem_id=problem_id, groups=tuple(numbers))

    with Judge() as judge:
        n = write_records(out.path / GROUPS, found(judge))
    return Made((GROUPS,), {"groups/problems": float(n)}, f"answers of {n} problems")


def measured(output: Path, models: Sequence[Model]) -> tuple[Figures, ...]:
    """Return the figures of models that were evaluated in ``output``, with their places."""
    (output / RESULTS).unlink(missing_ok=True)  # an earlier attempt's: its stages may be others now
    figures = Run(output).measure([model.label for model in models])
    return tuple(
        replace(one, model=model.ref.place) for one, model in zip(figures, models, strict=True)
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
