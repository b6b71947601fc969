"""What a training process is asked for and what it answers, as files.

A job is written as ``job.json`` into the output directory. The process writes, in this order,
``progress.json`` (replaced at each log), ``checkpoints/``, ``logprobs.json``, ``model/`` (under a
temporary name, then renamed) and last ``result.json``: where that stands, the training is finished.
"""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from optima.recipe.schema import DpoSection, TrainSection
from optima.types import ModelRef, Record

JOB_FILE = "job.json"
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.json"
CHECKPOINTS_DIR = "checkpoints"
LOGPROBS_FILE = "logprobs.json"
MODEL_DIR = "model"
ERROR_MARK = "error: "  # begins the line in a training's log that says why it failed
R = TypeVar("R", bound=Record)


class TrainJob(Record):
    """One training: a model, rows, and how to train.

    With ``dpo`` it is a preference training (paper section 3.2) whose reference is the start model
    and whose rows are ``PreferenceRow``; without it a supervised one (section 3.1) on
    ``TrainingRow``. ``rows_path`` and ``eval_rows_path`` are JSON Lines files; all paths are
    absolute. ``model`` is where training starts; an adapter it names is merged first.
    ``revision`` is the commit of a hub model.
    """

    schema_version: Literal[1] = 1
    model: ModelRef
    revision: str | None = None
    rows_path: str
    eval_rows_path: str | None = None
    output_dir: str
    train: TrainSection
    dpo: DpoSection | None = None
    seed: int
    device: Literal["cpu", "cuda"]
    trust_remote_code: bool = False

    @property
    def kind(self) -> Literal["sft", "dpo"]:
        """The training's module in ``optima.training``."""
        return "sft" if self.dpo is None else "dpo"

    @property
    def result_path(self) -> Path:
        """The file that says that the training is finished."""
        return Path(self.output_dir) / RESULT_FILE


class TrainResult(Record):
    """What a finished training produced and cost.

    ``n_tokens`` counts the tokens of all rows times the epochs, ``n_loss_tokens`` those of them
    that carried loss; losses are means in nats per trained token. ``eval_loss_before`` is the
    start model's loss on the evaluation rows. ``seconds`` are those of the steps that made the
    model, over all attempts; steps that a kill took back are in the stage's seconds only.
    ``figures`` are those of a method of its own: of DPO the implicit rewards of the last logged
    step.
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
    eval_loss: float | None
    eval_loss_before: float | None
    seconds: float
    tokens_per_s: float
    figures: dict[str, float] = Field(default_factory=dict)


class Logprobs(Record):
    """What the written model thinks of a few tokens, by which a server of it can be known.

    ``trained`` and ``start`` are the log-probabilities of every token of ``token_ids`` after the
    first, in nats, under the model in the folder and under the one the training started from.
    """

    schema_version: Literal[1] = 1
    token_ids: tuple[int, ...]
    trained: tuple[float, ...]
    start: tuple[float, ...]


class TrainProgress(Record):
    """The last thing a running training said."""

    step: int
    n_steps: int
    loss: float | None
    tokens_per_s: float


def read_lines(path: str, kind: type[R]) -> list[R]:
    """Return the records of a JSON Lines file.

    A line ends at a line feed and nowhere else: texts may hold other characters that Python takes
    for ends of lines, such as U+2028 and U+0085.
    """
    with Path(path).open("rb") as file:
        return [kind.model_validate_json(line) for line in file if line.strip()]
