"""Self-consistency and coverage of one model after another (paper section 4).

Each model holds ``evaluation.n_samples`` conversations per test problem once; every k from 1 to
that number is then computed from them. Which answers mean the same is a stage of its own, as
comparing mathematical expressions takes time.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from optima.evaluation.consistency import (
    IsSame,
    Point,
    Sample,
    group_answers,
    is_same_by_text,
    scaling_curve,
)
from optima.pipelines import judge
from optima.pipelines.context import Model, RunContext
from optima.pipelines.infer import check_labels, hold
from optima.pipelines.problems import read_test_problems
from optima.pipelines.run import open_run
from optima.pipelines.talk import FILE as CONVERSATIONS
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.rundir import Stage, read_records, write_records
from optima.tasks.judging import Judge, JudgeError
from optima.types import Conversation, Record, RewardParts

logger = logging.getLogger(__name__)
GROUPS = "groups.jsonl"


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
        problems = read_test_problems(context)
        for model in models:
            talked, ranked = hold(context, model, problems)
            grouped = group_stage(context, f"{model.label}/groups", talked)
            points = scaling_curve(read_samples(talked, ranked, grouped), seed=recipe.seed)
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


def group_stage(context: RunContext, name: str, talked: Stage) -> Stage:
    """Write which samples of a problem have the same answer."""
    stage = context.run.stage(name, talked.output_digest)
    if stage.done:
        return stage
    metric = context.task.metric
    conversations = read_records(talked.path / CONVERSATIONS, Conversation)

    def found(is_same: IsSame) -> Iterator[AnswerGroups]:
        groups = groupby(conversations, key=lambda conversation: conversation.problem_id)
        bar = tqdm(groups, desc="groups", unit="problem", disable=not sys.stderr.isatty())
        for problem_id, samples in bar:
            numbers = group_answers([sample.answer for sample in samples], is_same)
            yield AnswerGroups(problem_id=problem_id, groups=tuple(numbers))

    path = stage.path / GROUPS
    if metric == "math":
        with Judge() as judge_:
            n = write_records(path, found(lambda a, b: _is_equivalent(judge_, a, b)))
    else:
        n = write_records(path, found(is_same_by_text(metric)))
    stage.finish([path], {"groups/problems": float(n)})
    context.run.write_metrics()
    return stage


def _is_equivalent(judge_: Judge, answer: str, other: str) -> bool:
    try:
        return judge_.score("math", answer, (other,)) == 1.0
    except JudgeError as error:
        logger.warning("answers counted as different: %s", error)
        return False


def read_samples(talked: Stage, ranked: Stage, grouped: Stage) -> dict[str, list[Sample]]:
    """Return every problem's samples, by id, as votes see them."""
    numbers = (
        number
        for record in read_records(grouped.path / GROUPS, AnswerGroups)
        for number in record.groups
    )
    samples: dict[str, list[Sample]] = defaultdict(list)
    for conversation, parts, number in zip(
        read_records(talked.path / CONVERSATIONS, Conversation),
        read_records(ranked.path / judge.REWARDS, RewardParts),
        numbers,
        strict=True,
    ):
        sample = Sample(number, parts.task, conversation.n_tokens)
        samples[conversation.problem_id].append(sample)
    return dict(samples)
