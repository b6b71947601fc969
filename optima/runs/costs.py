"""What the models of a run cost to make and to evaluate, counted from its finished stages.

A model costs what was spent in the run until it was trained: the stages of the models before it are
in it, evaluations of any model are not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optima.plan import kind_of
from optima.runs.layout import DISCARDED, GENERATED, STARTED_FORMAT, StageDone

# The last part of a stage's name -> what its seconds are spent on.
KINDS = {
    "generate": "generate", "probe": "generate", "search": "generate", "talk": "generate",
    "score": "score", "train": "train",
}  # fmt: skip
N_GPUS = "train/gpus"  # a metric of trainings side by side
OTHER = "other"  # selecting, ranking, scripting, judging
SPENT_ON = (*dict.fromkeys(KINDS.values()), OTHER)
_NOT_MAKING = ("evaluate", "problems")


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Spent in a run up to the end of a model's training.

    Tokens are those the agents generated, merged utterances of trees and interrupted conversations
    included, and those training went over, in all its epochs. Device-seconds are wall time times
    the GPUs of the attempt, or of a training beside others its own, or times 1 on a CPU, by what
    they were spent on (``SPENT_ON``).
    """

    label: str
    n_generated: int
    n_trained: int
    device_seconds: dict[str, float]

    @property
    def n_tokens(self) -> int:
        """Tokens generated and trained on."""
        return self.n_generated + self.n_trained

    def since(self, before: "ModelCost | None") -> "ModelCost":
        """Return what was spent beyond the model before it."""
        if before is None:
            return self
        return ModelCost(
            label=self.label,
            n_generated=self.n_generated - before.n_generated,
            n_trained=self.n_trained - before.n_trained,
            device_seconds={
                kind: seconds - before.device_seconds[kind]
                for kind, seconds in self.device_seconds.items()
            },
        )


@dataclass(frozen=True, slots=True)
class EvaluationCost:
    """Spent on evaluating a model: tokens it generated, and device-seconds of all stages."""

    n_generated: int
    device_seconds: float


def costs_of_stages(
    stages: Iterable[StageDone], attempts: Sequence[Mapping[str, Any]]
) -> tuple[ModelCost, ...]:
    """Return the costs of the models that a run's stages trained, in order of training."""
    costs: dict[str, ModelCost] = {}
    generated = trained = 0.0
    seconds = dict.fromkeys(SPENT_ON, 0.0)
    for done in stages:
        label, _, part = done.stage.partition("/")
        if label in _NOT_MAKING:
            continue
        generated += done.metrics.get(GENERATED, 0.0) + done.metrics.get(DISCARDED, 0.0)
        trained += done.metrics.get("tokens/trained", 0.0)
        seconds[KINDS.get(kind_of(part), OTHER)] += _n_devices(attempts, done) * done.seconds
        if kind_of(part) == "train" and "/" not in part:  # the last of its policies counts
            costs[label] = ModelCost(label, round(generated), round(trained), dict(seconds))
    return tuple(costs.values())


def evaluation_cost(
    stages: Iterable[StageDone], attempts: Sequence[Mapping[str, Any]]
) -> EvaluationCost:
    """Return what an evaluation took that had these stages."""
    done = tuple(stages)
    return EvaluationCost(
        n_generated=round(sum(stage.metrics.get(GENERATED, 0.0) for stage in done)),
        device_seconds=sum(_n_devices(attempts, stage) * stage.seconds for stage in done),
    )


def repaid_after(cost: ModelCost, tokens_before: float, tokens: float) -> int | None:
    """Return after how many conversations the tokens saved are those spent; None for never.

    ``tokens_before`` and ``tokens`` are those of a conversation with the base model and with this.
    """
    saved = tokens_before - tokens
    return math.ceil(cost.n_tokens / saved) if saved > 0 else None


def _n_devices(attempts: Sequence[Mapping[str, Any]], done: StageDone) -> int:
    """Return the GPUs of the attempt in which a stage began, 1 on a CPU.

    A training beside others says how many it had.
    """
    if N_GPUS in done.metrics:
        return round(done.metrics[N_GPUS])
    begun = [
        attempt
        for attempt in attempts
        if "started" not in attempt or _unix_s(attempt["started"]) <= done.started_unix_s
    ]
    return max(1, len(begun[-1]["devices"]["gpus"])) if begun else 1


def _unix_s(text: str) -> float:
    return datetime.strptime(text, STARTED_FORMAT).replace(tzinfo=UTC).timestamp()
