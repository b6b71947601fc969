"""What a training process is asked for and what it answers, as files.

A job is written as ``job.json`` into the output directory. The process writes, in this order,
``progress.json`` (replaced at each log), ``checkpoints/``, ``logprobs.json``, ``model/`` (under a
temporary name, then renamed) and last ``result.json``: where that stands, the training is finished.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from optima.errors import RecipeError
from optima.recipe.sections import DpoSection, TrainSection
from optima.types import ModelRef, Record

JOB_FILE = "job.json"
RESULT_FILE = "result.json"
CHECKPOINTS_DIR = "checkpoints"
LOGPROBS_FILE = "logprobs.json"
MODEL_DIR = "model"
ERROR_MARK = "error: "  # begins the line in a training's log that says why it failed


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
    def makes_adapter(self) -> bool:
        """Whether an adapter is made that is served over its base, not a whole model."""
        return self.train.lora is not None and self.train.lora.serve == "adapter"

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


@dataclass(frozen=True, slots=True)
class Machines:
    """How many machines share a training, the rank of one of them, and the address of the first."""

    n: int
    rank: int
    address: str


class Others(Protocol):
    """Other machines that take part in trainings, each with as many GPUs as this one."""

    @property
    def machines(self) -> Machines:
        """This machine, the first, among them."""

    def start(self, output: Path, kind: str, port: int) -> None:
        """Have them start their part of the job in ``output``; they meet at a port of this one."""

    def failure(self) -> str | None:
        """Return why one of them cannot go on, None while all do."""

    def stop(self) -> None:
        """End what is left of their part."""


# One process, on one GPU or on the CPU.
SINGLE: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "NO",
    "machine_rank": 0,
    "main_training_function": "main",
    "num_machines": 1,
    "num_processes": 1,
}
# Every GPU holds everything and gradients are averaged.
DDP: dict[str, Any] = {
    **SINGLE,
    "distributed_type": "MULTI_GPU",
    "rdzv_backend": "static",
    "same_network": True,
}
# Parameters, gradients and optimiser state are split over the GPUs (ZeRO stage 3).
ZERO3: dict[str, Any] = {
    **DDP,
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {
        "deepspeed_multinode_launcher": "standard",
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": True,
        "zero_stage": 3,
    },
}
# The same split by PyTorch itself, wrapped at the model's own decoder layers.
FSDP: dict[str, Any] = {
    **DDP,
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    },
}
CONFIGS: dict[str, dict[str, Any]] = {"none": SINGLE, "ddp": DDP, "zero3": ZERO3, "fsdp": FSDP}


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Rows per forward on one device, and forwards per optimiser step."""

    micro_batch_size: int
    n_accumulation: int


def resolve_parallelism(train: TrainSection, n_devices: int) -> str:
    """Return the key of CONFIGS that ``train.parallelism`` means on this many devices."""
    if n_devices == 1:
        return "none"
    if train.parallelism == "auto":
        return "zero3"
    return train.parallelism


def n_processes(train: TrainSection, n_devices: int) -> int:
    """Return how many training processes run: one per device, or one."""
    return 1 if resolve_parallelism(train, n_devices) == "none" else n_devices


def accelerate_config(train: TrainSection, n_devices: int, *, kind: str) -> dict[str, Any]:
    """Return the configuration file of ``accelerate launch`` as a dict; ``kind`` is sft or dpo."""
    config = copy.deepcopy(CONFIGS[resolve_parallelism(train, n_devices)])
    if kind == "dpo" and config["distributed_type"] == "FSDP":
        # Otherwise the first process alone reads the weights and hands them out when the policy is
        # split; TRL, which splits the reference, does not: only the first part of it would be real.
        config["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] = False
    config["num_processes"] = n_processes(train, n_devices)
    # Under ZeRO the optimiser keeps float32 masters by itself; elsewhere bf16 means autocast.
    is_mixed = train.dtype == "bfloat16" and (
        train.optimizer_state_dtype == "float32" or config["distributed_type"] == "DEEPSPEED"
    )
    config["mixed_precision"] = "bf16" if is_mixed else "no"
    return config


def plan_batches(
    batch_size: int, micro_batch_size: int, n_processes: int, field: str = "train.batch_size"
) -> BatchPlan:
    """Split ``batch_size`` rows exactly: micro batch * accumulation * processes gives it.

    The micro batch is lowered to the next size that divides. RecipeError, with the batch's
    ``field``, when the processes do not divide the batch, because a step would silently take
    another number of rows.
    """
    per_process, rest = divmod(batch_size, n_processes)
    if rest or not per_process:
        raise RecipeError(
            f"{field}: {batch_size}: the {n_processes} devices do not divide it; take a "
            f"multiple of {n_processes}, or fewer GPUs with serving.gpus"
        )
    micro = max(m for m in range(1, min(micro_batch_size, per_process) + 1) if per_process % m == 0)
    return BatchPlan(micro, per_process // micro)
