"""Baselines (paper section 4): the same model and problems, other ways to answer.

cot       one agent that is told everything, step by step, at the evaluation's temperature
sc        a vote among n such answers (self-consistency)
mad       the agents in natural language, as any model of this project is evaluated
autoform  the agents, each conversation in a concise format drawn from the pool
trained   as cot, after training on its own correct answers (see ``control``)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from optima.pipelines.consistency import group, read_samples, voted
from optima.pipelines.context import Model, RunContext
from optima.pipelines.control import ALONE
from optima.pipelines.infer import InferenceRow, hold, row_of
from optima.pipelines.outline import write_stages
from optima.pipelines.problems import read_test_problems
from optima.pipelines.run import open_run
from optima.plan import Step
from optima.processes.environment import Environment
from optima.prompts.formats import load_formats
from optima.recipe.schema import Recipe
from optima.rundir import Stage
from optima.tasks.loading import told_to_one
from optima.types import Problem

Method = Literal["cot", "sc", "mad", "autoform", "trained"]
METHODS: tuple[Method, ...] = get_args(Method)
UNTRAINED: tuple[Method, ...] = ("cot", "sc", "mad", "autoform")


@dataclass(frozen=True, slots=True)
class Votes:
    """How many answers self-consistency draws, and at which temperature (paper: 8, 0.5)."""

    n: int = 8
    temperature: float = 0.5


def run_baselines(
    recipe: Recipe, model_by_method: dict[Method, Model], output: Path, *, ballot: Votes,
    vllm_env: Environment,
) -> tuple[InferenceRow, ...]:  # fmt: skip
    """Evaluate a model by each method into ``output``; one row per method, in that order."""
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        n = recipe.evaluation.n_samples
        n_samples: dict[str, int] = {
            method: ballot.n if method == "sc" else n for method in model_by_method
        }
        write_stages(output, n_samples, grouped=("sc",))
        problems = read_test_problems(context, model_by_method.values())
        return tuple(
            _row(context, method, replace(model, label=method), problems, ballot)
            for method, model in model_by_method.items()
        )


def _row(
    context: RunContext, method: Method, model: Model, problems: Sequence[Problem], ballot: Votes
) -> InferenceRow:
    if method == "mad":
        return row_of(context, model, hold(context, model, problems))
    if method == "autoform":
        return row_of(context, model, hold(context, model, problems, formats=load_formats()))
    told = tuple(map(told_to_one, problems))
    if method != "sc":
        single = _alone(context)
        return row_of(single, model, hold(single, model, told))
    several = _alone(context, ballot)
    held = hold(several, model, told)
    return _voted(several, row_of(several, model, held), held[0], told)


def _alone(context: RunContext, ballot: Votes | None = None) -> RunContext:
    """Return the context of the same run with one agent, and with several samples if asked for."""
    recipe = context.recipe.model_copy(update={"agents": ALONE})
    if ballot is not None:
        section = recipe.evaluation.model_copy(
            update={"n_samples": ballot.n, "temperature": ballot.temperature}
        )
        recipe = recipe.model_copy(update={"evaluation": section})
    style = replace(context.style, names=ALONE.names)
    return replace(context, recipe=recipe, style=style)


def _voted(
    context: RunContext, row: InferenceRow, talked: Stage, problems: Sequence[Problem]
) -> InferenceRow:
    step = Step(f"{row.label}/groups", row.label)
    grouped = context.do(step, group, problems, talked)
    samples = read_samples(grouped.path.parent)
    return replace(row, summary=voted(row.summary, samples, seed=context.recipe.seed))
