"""What the models of a run cost to make, read from its finished stages; nothing is computed again.

A model costs what was spent in the run until it was trained: the stages of the models before it are
in it, evaluations of any model are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optima.pipelines.checkpoints import run_of
from optima.rundir import DISCARDED, GENERATED
from optima.stages import (
    STARTED_FORMAT,
    StageDone,
    finished_stages,
    read_attempts,
    read_done,
    read_recipe,
)

# The last part of a stage's name -> what its seconds are spent on.
KINDS = {
    "generate": "generate", "probe": "generate", "search": "generate", "talk": "generate",
    "score": "score", "train": "train",
}  # fmt: skip
OTHER = "other"  # selecting, ranking, scripting, judging
_NOT_MAKING = ("evaluate", "problems")


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Spent in a run up to the end of a model's training.

    Tokens are those the agents generated, merged utterances of trees and interrupted conversations
    included, and those training went over, in all its epochs. Device-seconds are wall time times
    the GPUs of the attempt, or times 1 on a CPU, by what they were spent on: ``generate``,
    ``score``, ``train``, ``other``.
    """

    label: str
    n_generated: int
    n_trained: int
    device_seconds: dict[str, float]

    @property
    def n_tokens(self) -> int:
        """Tokens generated and trained on."""
        return self.n_generated + self.n_trained


@dataclass(frozen=True, slots=True)
class EvaluationCost:
    """Spent on evaluating a model: tokens it generated, and device-seconds of all stages."""

    n_generated: int
    device_seconds: float


def read_costs(root: Path) -> tuple[ModelCost, ...]:
    """Return the costs of the models trained in the run ``root``, in order of training.

    Empty when nothing was trained there.
    """
    stages = finished_stages(root)
    attempts = read_attempts(root)
    costs = []
    generated = trained = 0.0
    seconds = dict.fromkeys((*dict.fromkeys(KINDS.values()), OTHER), 0.0)
    for done in stages:
        label, _, part = done.stage.partition("/")
        if label in _NOT_MAKING:
            continue
        generated += done.metrics.get(GENERATED, 0.0) + done.metrics.get(DISCARDED, 0.0)
        trained += done.metrics.get("tokens/trained", 0.0)
        seconds[KINDS.get(part.split("/")[-1], OTHER)] += _n_devices(attempts, done) * done.seconds
        if part == "train":
            costs.append(ModelCost(label, round(generated), round(trained), dict(seconds)))
    return tuple(costs)


def repaid_after(cost: ModelCost, tokens_before: float, tokens: float) -> int | None:
    """Return after how many conversations the tokens saved are those spent; None for never.

    ``tokens_before`` and ``tokens`` are those of a conversation with the base model and with this.
    """
    saved = tokens_before - tokens
    return math.ceil(cost.n_tokens / saved) if saved > 0 else None


def evaluation_cost(root: Path, *folders: Path) -> EvaluationCost:
    """Return what the evaluation took whose stages are in ``folders`` of ``root``."""
    attempts = read_attempts(root)
    stages = [
        done
        for folder in folders
        for name in ("talk", "score", "rank", "groups")
        if (done := read_done(folder / name)) is not None
    ]
    return EvaluationCost(
        n_generated=round(sum(done.metrics.get("tokens/generated", 0.0) for done in stages)),
        device_seconds=sum(_n_devices(attempts, done) * done.seconds for done in stages),
    )


def cost_of(model: str) -> ModelCost | None:
    """Return what the model in a directory cost, None where no run trained it."""
    run = run_of(model)
    if run is None:
        return None
    label = Path(model).resolve().parents[1].name
    return next((cost for cost in read_costs(run) if cost.label == label), None)


def base_tokens(model: str, task: str) -> tuple[str, float] | None:
    """Return the base model of a trained model's run, and its tokens per conversation there.

    None where no run trained it, its task is another, or it did not evaluate its base model.
    """
    run = run_of(model)
    done = read_done(run / "evaluate" / "base" / "talk") if run is not None else None
    if run is None or done is None or read_recipe(run).task != task:
        return None
    return f"{run}:base", done.metrics["tokens/conversation"]


def _n_devices(attempts: Sequence[Mapping[str, Any]], done: StageDone) -> int:
    """Return the GPUs of the attempt in which a stage began, 1 on a CPU."""
    begun = [
        attempt
        for attempt in attempts
        if "started" not in attempt or _unix_s(attempt["started"]) <= done.started_unix_s
    ]
    return max(1, len(begun[-1]["devices"]["gpus"])) if begun else 1


def _unix_s(text: str) -> float:
    return datetime.strptime(text, STARTED_FORMAT).replace(tzinfo=UTC).timestamp()
