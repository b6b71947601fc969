"""What the orchestrator hands to a training process and what it gets back; both are JSON files.

``result.json`` is written last, so that a directory with it holds a complete model.
"""

from pathlib import Path
from typing import Literal

from optima.recipe.schema import TrainSection
from optima.types import ModelRef, Record

JOB_FILE = "job.json"
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.json"
MODEL_DIR = "model"
CHECKPOINT_DIR = "checkpoints"
EVAL_BEFORE_FILE = "eval_before.json"


class SftJob(Record):
    """One supervised training: rows in, model out. Paths are absolute.

    ``rows_path`` and ``eval_rows_path`` are JSON Lines of ``TrainingRow``. ``model`` is what the
    training starts from; ``output_dir`` gets ``model/``, ``result.json`` and, while training,
    checkpoints.
    """

    schema_version: Literal[1] = 1
    model: ModelRef
    revision: str | None = None
    trust_remote_code: bool = False
    rows_path: str
    eval_rows_path: str | None = None
    output_dir: str
    train: TrainSection
    seed: int
    device: Literal["cpu", "cuda"] = "cpu"


class TrainProgress(Record):
    """Where a running training is; rewritten at each log line."""

    step: int
    n_steps: int
    loss: float | None
    tokens_per_s: float


class TrainResult(Record):
    """What a training did. Losses are means per trained token, in nats.

    ``n_tokens`` counts all tokens of the trained rows times epochs, ``n_loss_tokens`` those of
    them that carry loss. ``seconds`` and ``tokens_per_s`` are of the last attempt where a
    training was resumed; ``n_steps`` is of all attempts together.
    """

    schema_version: Literal[1] = 1
    model: ModelRef
    n_rows: int
    n_eval_rows: int
    n_dropped_rows: int
    n_tokens: int
    n_loss_tokens: int
    n_steps: int
    train_loss: float
    eval_loss: float | None = None
    eval_loss_before: float | None = None
    seconds: float
    tokens_per_s: float


def read_result(output_dir: Path) -> TrainResult | None:
    """Return the result of a finished training in ``output_dir``, None while there is none."""
    path = output_dir / RESULT_FILE
    return TrainResult.model_validate_json(path.read_bytes()) if path.is_file() else None
