"""Untrained baselines (paper section 4): the same model and problems, other ways to answer.

cot       one agent that is told everything, step by step, at the evaluation's temperature
sc        a vote among n such answers (self-consistency)
mad       the agents in natural language, as any model of this project is evaluated
autoform  the agents, each conversation in a concise format drawn from the pool
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from optima.evaluation.consistency import votes
from optima.evaluation.statistics import estimate_mean, percentile
from optima.evaluation.summary import Summary
from optima.pipelines.consistency import group_stage, read_samples
from optima.pipelines.context import Model, RunContext
from optima.pipelines.infer import InferenceRow, hold, row_of
from optima.pipelines.problems import read_test_problems
from optima.pipelines.run import open_run
from optima.processes.environment import Environment
from optima.prompts.formats import load_formats
from optima.recipe.schema import AgentsSection, Recipe
from optima.rundir import Stage
from optima.tasks.loading import told_to_one

Method = Literal["cot", "sc", "mad", "autoform"]
METHODS: tuple[Method, ...] = get_args(Method)
ALONE = AgentsSection(names=("Solver",))


@dataclass(frozen=True, slots=True)
class Votes:
    """How many answers self-consistency draws, and at which temperature (paper: 8, 0.5)."""

    n: int = 8
    temperature: float = 0.5


def run_baselines(
    recipe: Recipe, model: Model, methods: Sequence[Method], output: Path, *, ballot: Votes,
    vllm_env: Environment,
) -> tuple[InferenceRow, ...]:  # fmt: skip
    """Evaluate ``model`` by every method into ``output``; one row per method, in that order."""
    rows = []
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        problems = read_test_problems(context)
        told = tuple(map(told_to_one, problems))
        single = _alone(context)
        for method in methods:
            named = replace(model, label=method)
            if method == "mad":
                rows.append(row_of(context, named, hold(context, named, problems)))
            elif method == "autoform":
                held = hold(context, named, problems, formats=load_formats())
                rows.append(row_of(context, named, held))
            elif method == "cot":
                rows.append(row_of(single, named, hold(single, named, told)))
            else:
                several = _alone(context, ballot)
                held = hold(several, named, told)
                rows.append(_voted(several, row_of(several, named, held), held))
    return tuple(rows)


def _alone(context: RunContext, ballot: Votes | None = None) -> RunContext:
    """Return the context of the same run with one agent, and with several samples if asked for."""
    recipe = context.recipe.model_copy(update={"agents": ALONE})
    if ballot is not None:
        section = recipe.evaluation.model_copy(
            update={"n_samples": ballot.n, "temperature": ballot.temperature}
        )
        recipe = recipe.model_copy(update={"evaluation": section})
    return replace(context, recipe=recipe)


def _voted(context: RunContext, row: InferenceRow, held: tuple[Stage, Stage]) -> InferenceRow:
    """Return the row of samples as one of votes: a problem costs what all its samples cost."""
    talked, ranked = held
    grouped = group_stage(context, f"{row.label}/groups", talked)
    samples_by_problem = read_samples(talked, ranked, grouped)
    seed = context.recipe.seed
    scores = {key: list(votes(samples))[-1] for key, samples in samples_by_problem.items()}
    tokens = {
        key: float(sum(sample.n_tokens for sample in samples))
        for key, samples in samples_by_problem.items()
    }
    counts = sorted(tokens.values())
    summary: Summary = replace(
        row.summary,
        score=estimate_mean(list(scores.values()), seed=seed),
        tokens=estimate_mean(counts, seed=seed),
        tokens_median=percentile(counts, 50),
        tokens_p95=percentile(counts, 95),
        score_by_problem=scores,
        tokens_by_problem=tokens,
    )
    return replace(row, summary=summary)
