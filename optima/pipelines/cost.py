"""What the models of a run cost to make, read from its finished stages; nothing is computed again.

A model costs what was spent in the run until it was trained: the stages of the models before it are
in it, evaluations of any model are not.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from optima.rundir import DISCARDED, GENERATED, read_done

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
    the GPUs of the run, or times 1 on a CPU, by what they were spent on: ``generate``, ``score``,
    ``train``, ``other``.
    """

    label: str
    n_generated: int
    n_trained: int
    device_seconds: dict[str, float]

    @property
    def n_tokens(self) -> int:
        """Tokens generated and trained on."""
        return self.n_generated + self.n_trained


def read_costs(root: Path) -> tuple[ModelCost, ...]:
    """Return the costs of the models trained in the run ``root``, in order of training.

    Empty when nothing was trained there.
    """
    found = (read_done(path.parent) for path in root.glob("**/DONE.json"))
    stages = sorted((done for done in found if done is not None), key=lambda d: d.started_unix_s)
    n_devices = _n_devices(root)
    costs = []
    generated = trained = 0.0
    seconds = dict.fromkeys((*dict.fromkeys(KINDS.values()), OTHER), 0.0)
    for done in stages:
        label, _, part = done.stage.partition("/")
        if label in _NOT_MAKING:
            continue
        generated += done.metrics.get(GENERATED, 0.0) + done.metrics.get(DISCARDED, 0.0)
        trained += done.metrics.get("tokens/trained", 0.0)
        seconds[KINDS.get(part.split("/")[-1], OTHER)] += n_devices * done.seconds
        if part == "train":
            costs.append(ModelCost(label, round(generated), round(trained), dict(seconds)))
    return tuple(costs)


def repaid_after(cost: ModelCost, tokens_before: float, tokens: float) -> int | None:
    """Return after how many conversations the tokens saved are those spent; None for never.

    ``tokens_before`` and ``tokens`` are those of a conversation with the base model and with this.
    """
    saved = tokens_before - tokens
    return math.ceil(cost.n_tokens / saved) if saved > 0 else None


def _n_devices(root: Path) -> int:
    path = root / "provenance.json"
    if not path.exists():
        return 1
    attempts = json.loads(path.read_text(encoding="utf-8"))["attempts"]
    return max(1, len(attempts[-1]["devices"]["gpus"]))
