"""Self-consistency and coverage of one model after another (paper section 4).

Each model holds ``evaluation.n_samples`` conversations per test problem once; every k from 1 to
that number is then computed from them. Which answers mean the same is a stage of its own, as
comparing mathematical expressions takes time.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from optima.errors import StageError
from optima.evaluation.consistency import (
    Point,
    Sample,
    group_answers,
    scaling_curve,
    vote_of_all,
)
from optima.evaluation.statistics import estimate_mean, percentile
from optima.evaluation.summary import Summary
from optima.files import CONVERSATIONS, GROUPS
from optima.pipelines import judge
from optima.pipelines.context import Model, RunContext
from optima.pipelines.infer import check_labels, hold
from optima.pipelines.outline import write_stages
from optima.pipelines.problems import read_test_problems
from optima.pipelines.run import open_run
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.records import read_records, write_records
from optima.rundir import Stage
from optima.tasks.judging import Judge
from optima.types import Conversation, Problem, Record

logger = logging.getLogger(__name__)


class AnswerGroups(Record):
    """The group of each sample's answer in the order of samples; None where there is none."""

    schema_version: Literal[1] = 1
    problem_id: str
    groups: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One model's points for k = 1, 2, ...; ``seconds`` is the wall time of its conversations."""

    label: str
    model: str
    points: tuple[Point, ...]
    n_tokens: int
    seconds: float


def run_consistency(
    recipe: Recipe, models: Sequence[Model], output: Path, *, vllm_env: Environment
) -> tuple[Curve, ...]:
    """Sample, group and score ``models`` by ``recipe`` into ``output``; one curve per model."""
    check_labels(models)
    curves = []
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        n_samples = {model.label: recipe.evaluation.n_samples for model in models}
        write_stages(output, n_samples, grouped=tuple(n_samples))
        problems = read_test_problems(context, models)
        for model in models:
            talked, _ = hold(context, model, problems)
            grouped = group_stage(context, f"{model.label}/groups", talked, problems)
            samples = read_samples(grouped.path.parent)
            points = scaling_curve(samples, seed=recipe.seed)
            curves.append(
                Curve(
                    label=model.label,
                    model=model.ref.adapter or model.ref.path,
                    points=tuple(points),
                    n_tokens=int(talked.metrics["tokens/generated"]),
                    seconds=talked.done.seconds if talked.done else 0.0,
                )
            )
    return tuple(curves)


def group_stage(
    context: RunContext, name: str, talked: Stage, problems: Sequence[Problem]
) -> Stage:
    """Write which samples of a problem have the same answer."""
    stage = context.run.stage(name, talked.output_digest, *context.task.versions)
    if stage.done:
        return stage
    metric = context.task.metric
    choices_by_id = {problem.problem_id: problem.choices for problem in problems}
    conversations = read_records(talked.path / CONVERSATIONS, Conversation)

    def found(judge_: Judge) -> Iterator[AnswerGroups]:
        groups = groupby(conversations, key=lambda conversation: conversation.problem_id)
        bar = tqdm(groups, desc="groups", unit="problem", disable=not sys.stderr.isatty())
        for problem_id, samples in bar:
            is_same = partial(judge_.are_same, metric, choices=choices_by_id[problem_id])
            numbers = group_answers([sample.answer for sample in samples], is_same)
            yield AnswerGroups(problem_id=problem_id, groups=tuple(numbers))

    path = stage.path / GROUPS
    with Judge() as judge_:
        n = write_records(path, found(judge_))
    stage.finish([path], {"groups/problems": float(n)})
    context.run.write_metrics()
    return stage


def voted(
    summary: Summary, samples_by_problem: Mapping[str, Sequence[Sample]], *, seed: int
) -> Summary:
    """Return the summary of samples as one of votes: a problem costs what all its samples cost.

    Turns and failures stay those of the samples; a vote is answered when one of its samples is.
    """
    scores = vote_of_all(samples_by_problem, seed=seed)
    tokens = {
        key: float(sum(sample.n_tokens for sample in samples))
        for key, samples in samples_by_problem.items()
    }
    n_answered = sum(
        any(sample.group is not None for sample in samples)
        for samples in samples_by_problem.values()
    )
    counts = sorted(tokens.values())
    return replace(
        summary,
        score=estimate_mean(list(scores.values()), seed=seed),
        tokens=estimate_mean(list(tokens.values()), seed=seed),
        tokens_median=percentile(counts, 50),
        tokens_p95=percentile(counts, 95),
        answered=n_answered / len(samples_by_problem),
        score_by_problem=scores,
        tokens_by_problem=tokens,
    )


def read_samples(folder: Path) -> dict[str, list[Sample]]:
    """Return every problem's samples, by id, as votes see them.

    Raises StageError when there is not one group for each conversation.
    """
    path = folder / "groups" / GROUPS
    numbers = (number for record in read_records(path, AnswerGroups) for number in record.groups)
    samples: dict[str, list[Sample]] = defaultdict(list)
    judged = judge.read_judged(folder)
    try:
        for (conversation, parts), number in zip(judged, numbers, strict=True):
            sample = Sample(number, parts.task, conversation.n_tokens)
            samples[conversation.problem_id].append(sample)
    except ValueError as error:
        raise StageError(
            f"{path}: has not one group for each conversation; remove {path.parent}, then run again"
        ) from error
    return dict(samples)
