"""One training as a process: its job, its progress, its checkpoints and its result.

What is left of a training that was killed is complete checkpoints; the next attempt goes on from
the last of them.
"""

import argparse
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
import trl.trainer.utils
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from optima.errors import OptimaError, StageError
from optima.progress import PROGRESS_FILE, Progress
from optima.recipe.sections import TrainSection
from optima.records import read_records, write_text
from optima.selection import share_of
from optima.training.jobs import (
    CHECKPOINTS_DIR,
    ERROR_MARK,
    BatchPlan,
    TrainJob,
    TrainResult,
)
from optima.training.policy import TEMPORARY_MODEL_DIR, DivergenceError, save
from optima.types import Record

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

_COMPLETE = "COMPLETE"
_WATCHED = ("loss", "grad_norm", "eval_loss")
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")  # as torch says it
LEAST_LOSS = 1.0  # nats: a loss near zero may grow many times before anything is lost
# What a killed training loses at most. A checkpoint of a 1.5B model with its optimizer states took
# 20 to 35 s, of trainings of one to three minutes (H200, 2026-11-28).
CHECKPOINT_EVERY_S = 600.0


class Size(NamedTuple):
    """Tokens of a row: of what a model sees at once at most, in all, and those that carry loss."""

    n_longest: int
    n_tokens: int
    n_loss_tokens: int


@dataclass(frozen=True)
class Rows(Generic[R]):
    """The rows of a training that fit, and how many did not; ``size_of`` is the method's."""

    kind: ClassVar[type[Record]]
    noun: ClassVar[str] = "row"
    limit: ClassVar[str] = "train.max_length"  # the field that a row may be too long for
    threshold: ClassVar[str] = "select.theta"  # the field that may leave no row
    rows: tuple[R, ...]
    n_dropped: int

    @classmethod
    def of(cls, job: TrainJob) -> tuple[Self, Self]:
        """Return the rows to train on and those of the evaluation loss; StageError for no row."""
        most = job.train.max_length
        rows, eval_rows = (cls.read(path, most) for path in (job.rows_path, job.eval_rows_path))
        if not rows.rows:
            raise StageError(
                f"{job.rows_path}: no {cls.noun} to train on ({rows.n_dropped} are longer than "
                f"{cls.limit}={most} tokens); lower {cls.threshold} or raise it"
            )
        logger.info(
            "%d %ss (%d too long), %d for evaluation, %d tokens, %d of them with loss",
            *(len(rows.rows), cls.noun, rows.n_dropped, len(eval_rows.rows)),
            *(rows.n_tokens, rows.n_loss_tokens),
        )
        return rows, eval_rows

    @classmethod
    def read(cls, path: str | None, max_length: int) -> Self:
        """Read a file of rows and drop those that are too long."""
        rows: list[Any] = [] if path is None else list(read_records(Path(path), cls.kind))
        kept = tuple(row for row in rows if cls.size_of(row).n_longest <= max_length)
        return cls(kept, len(rows) - len(kept))

    @staticmethod
    def size_of(row: Any) -> Size:
        """Return the size of a row."""
        raise NotImplementedError

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.size_of(row).n_tokens for row in self.rows)

    @property
    def n_loss_tokens(self) -> int:
        """Tokens of all rows that carry loss."""
        return sum(self.size_of(row).n_loss_tokens for row in self.rows)


class Watch(TrainerCallback):
    """Ends a training whose loss or gradient is not finite, or whose loss explodes.

    Every process is told every logged figure, so that all of them end.
    """

    def __init__(self, max_growth: float) -> None:
        self._max_growth = max_growth

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Raise DivergenceError for figures of a lost model, StageError if it came like that."""
        step, figures = state.global_step, logs or {}
        for name in _WATCHED:
            value = float(figures.get(name, 0.0))
            if math.isfinite(value):
                continue
            if step == 0 or (step == 1 and name == "loss"):  # of the weights as they came
                raise StageError(
                    f"training: {name} of step {step} is {value}, before anything was trained: "
                    "check the weights of the model it starts from, or train in "
                    "train.dtype=float32"
                )
            raise DivergenceError(f"training: {name} of step {step} is {value}")
        for name in ("loss", "eval_loss"):
            if name not in figures:
                continue
            start = float(next(entry[name] for entry in state.log_history if name in entry))
            if figures[name] > self._max_growth * max(start, LEAST_LOSS):
                raise DivergenceError(
                    f"training: {name} of step {step} is {figures[name]:.4g} after {start:.4g} at "
                    f"the start, more than train.max_loss_growth={self._max_growth:g} allows"
                )


class Teller(TrainerCallback):
    """Writes progress.json at each log, asks for checkpoints and marks those that are complete.

    Without ``save_steps`` in the recipe a checkpoint is due ``CHECKPOINT_EVERY_S`` after the last.
    """

    def __init__(self, path: Path, n_tokens: int, seconds_before: float, *, by_time: bool) -> None:
        self._path = path
        self._n_tokens = n_tokens
        self._seconds_before = seconds_before
        self._by_time = by_time
        self._first_step = 0
        self._start = self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._first_step, self._start = state.global_step, time.monotonic()
        self._saved = self._start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Replace progress.json."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        n_new, n_left = state.global_step - self._first_step, state.max_steps - state.global_step
        row = Progress(
            n_done=state.global_step,
            n_total=state.max_steps,
            unit="steps",
            tokens_per_s=self._n_tokens * n_new / max(state.max_steps, 1) / seconds,
            loss=float(logs["loss"]),
            seconds_left=n_left * seconds / n_new if n_new else None,
        )
        write_text(self._path, row.model_dump_json())
        logger.info("step %d of %d: loss %s", state.global_step, state.max_steps, logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask all processes for a checkpoint that is due, for none where the model comes next."""
        if self._by_time:
            is_due = time.monotonic() - self._saved >= CHECKPOINT_EVERY_S
            control.should_save = broadcast_object_list([is_due])[0]  # one clock for all
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint: everything in it was written, after so many seconds of training."""
        self._saved = time.monotonic()
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seconds = self._seconds_before + time.monotonic() - self._start
            write_text(path / _COMPLETE, str(seconds))


def n_warmup_steps(train: TrainSection, n_rows: int, plan: BatchPlan, world: int) -> int:
    """Return the warm-up in whole steps, rounded down.

    The trainer rounds a share up, and its first warm-up step has learning rate 0: a training of
    fewer than 1 / warmup_ratio steps would waste one of them, one of a single step all.
    """
    n_batches = math.ceil(n_rows / (plan.micro_batch_size * world))
    n_steps = math.ceil(train.epochs * max(1, math.ceil(n_batches / plan.n_accumulation)))
    return int(share_of(train.warmup_ratio, n_steps))


def trainer_arguments(
    job: TrainJob, plan: BatchPlan, n_rows: int, has_eval: bool
) -> dict[str, Any]:
    """Translate the recipe into the arguments of ``SFTConfig`` and ``DPOConfig`` alike."""
    train = job.train
    options: dict[str, Any] = {
        "output_dir": str(Path(job.output_dir) / CHECKPOINTS_DIR),
        "seed": job.seed % 2**31,
        "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": plan.micro_batch_size,
        "per_device_eval_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.n_accumulation,
        "warmup_steps": n_warmup_steps(train, n_rows, plan, PartialState().num_processes),
        "lr_scheduler_type": train.scheduler,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "max_length": None,
        "optim": "adamw_torch" if job.device == "cpu" else "adamw_torch_fused",
        "prediction_loss_only": True,
        "bf16": train.dtype == "bfloat16" and train.optimizer_state_dtype == "float32",
        "gradient_checkpointing": train.gradient_checkpointing,
        "use_cpu": job.device == "cpu",
        "logging_steps": train.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would write 0 for a loss of NaN
        "eval_on_start": has_eval,
        "eval_strategy": "no",
        "save_strategy": "no" if train.save_steps is None else "steps",
        "save_total_limit": train.save_total_limit,
        "report_to": list(train.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device == "cuda",
    }
    if train.save_steps is not None:
        options["save_steps"] = train.save_steps
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        options["bf16"] = train.dtype == "bfloat16"
    return options


def last_checkpoint(directory: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; remove the others."""
    found = {}
    for path in directory.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            found[int(path.name.rpartition("-")[2])] = path
        elif PartialState().is_main_process:
            shutil.rmtree(path)
    PartialState().wait_for_everyone()
    return str(found[max(found)]) if found else None


def score_trained_positions_only() -> None:
    """Have TRL's output layer compute trained positions only on a CPU, as it does on a GPU.

    Elsewhere than on a GPU it computes all positions for the sake of fixed shapes, which a CPU
    does not need: the same loss at 308 tokens/s instead of 172 (2026-11-23).
    """
    library: Any = trl.trainer.utils
    library._use_triton = lambda _: True  # asked there for nothing else


def avoid_cudnn_attention() -> None:
    """Keep attention off cuDNN, whose backward gives gradients of NaN.

    With a padding mask, where the length is 64 above a multiple of 128, on H100 and H200 since
    torch 2.11 (pytorch issue 196678). Seen on H200 with Qwen2.5-Coder-1.5B: four of six trainings
    were lost; without cuDNN none was, and a training took 21 s instead of 27 (2026-11-27).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def train_and_save(
    trainer: Any,
    job: TrainJob,
    rows: Rows[Any],
    eval_rows: Rows[Any],
    kept: tuple[torch.dtype, dict[str, Any]],
    row: Sequence[int],
) -> TrainResult:
    """Train from the last checkpoint on, write the model and return the result.

    ``kept`` is what ``read_format`` said before the trainer saw the model, ``row`` the ids of a row
    that is trained on.
    """
    output, epochs = Path(job.output_dir), job.train.epochs
    n_tokens = round(rows.n_tokens * epochs)
    checkpoint = last_checkpoint(output / CHECKPOINTS_DIR)
    seconds_before = 0.0
    if checkpoint is not None:
        logger.info("continuing from %s", checkpoint)
        trainer.args.eval_on_start = False
        seconds_before = float((Path(checkpoint) / _COMPLETE).read_text("utf-8") or 0)
    trainer.add_callback(Watch(job.train.max_loss_growth))
    by_time = job.train.save_steps is None
    teller = Teller(output / PROGRESS_FILE, n_tokens, seconds_before, by_time=by_time)
    trainer.add_callback(teller)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = seconds_before + time.monotonic() - start
    eval_loss = trainer.evaluate()["eval_loss"] if eval_rows.rows else None
    history, n_steps = trainer.state.log_history, trainer.state.global_step
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last: dict[str, float] = next((entry for entry in reversed(history) if "loss" in entry), {})
    return TrainResult(
        model=save(trainer, job, kept, row),
        n_rows=len(rows.rows),
        n_eval_rows=len(eval_rows.rows),
        n_dropped_rows=rows.n_dropped + eval_rows.n_dropped,
        n_tokens=n_tokens,
        n_loss_tokens=round(rows.n_loss_tokens * epochs),
        n_steps=n_steps,
        train_loss=sum(losses) / len(losses),
        eval_loss=eval_loss,
        eval_loss_before=next((e["eval_loss"] for e in history if "eval_loss" in e), None),
        seconds=seconds,
        tokens_per_s=n_tokens / max(seconds, 1e-9),
        figures={key: float(last[key]) for key in sorted(last) if key.startswith("rewards/")},
    )


def run_job(run: Callable[[TrainJob], TrainResult], argv: Sequence[str] | None = None) -> int:
    """Be the command line of a training: read its job, run it, write its result."""
    parser = argparse.ArgumentParser(prog=run.__module__)
    parser.add_argument("--job", type=Path, required=True, help="job.json")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s")
    job = TrainJob.model_validate_json(options.job.read_text(encoding="utf-8"))
    PartialState(cpu=job.device == "cpu")
    avoid_cudnn_attention()
    if job.device == "cpu":
        score_trained_positions_only()
    try:
        result = run(job)
    except OptimaError as error:
        is_lost = isinstance(error, DivergenceError)
        if is_lost:  # the next attempt starts over, not from what may be lost already
            for name in (CHECKPOINTS_DIR, TEMPORARY_MODEL_DIR):
                shutil.rmtree(Path(job.output_dir) / name, ignore_errors=True)
        return _fail(f"{error}{_remedy(job) if is_lost else ''}")
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return _fail(_explain_memory(job, error))
    if PartialState().is_main_process:
        shutil.rmtree(Path(job.output_dir) / CHECKPOINTS_DIR, ignore_errors=True)
        write_text(job.result_path, result.model_dump_json(indent=1) + "\n")
    PartialState().wait_for_everyone()
    return 0


def _fail(said: str) -> int:
    sys.stdout.write(f"{ERROR_MARK}{said}\n")
    sys.stdout.flush()
    return 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _explain_memory(job: TrainJob, error: RuntimeError) -> str:
    """Say that memory lacks, what others hold of it, and what makes a step smaller."""
    section, fields = ("train", job.train) if job.dpo is None else ("dpo", job.dpo)
    remedies = ["end what else uses it"]
    if job.train.batching != "packing" and fields.micro_batch_size > 1:
        remedies.append(f"lower {section}.micro_batch_size (it is {fields.micro_batch_size})")
    if not job.train.gradient_checkpointing:
        remedies.append("take train.gradient_checkpointing=true")
    if job.train.lora is None:
        remedies.append("take train.lora={}")
    remedies.append(f"lower train.max_length (it is {job.train.max_length})")
    held = ""
    if torch.cuda.is_available():
        free, there = torch.cuda.mem_get_info()
        others = there - free - torch.cuda.memory_reserved()
        held = f" of {there / 2**30:.1f} GiB, others hold {max(others, 0) / 2**30:.1f}"
    wanted = _WANTED.search(str(error))
    asked = f" (for {wanted[1]})" if wanted else ""
    return f"training: out of memory{asked}{held}; {', or '.join(remedies)}"


def _remedy(job: TrainJob) -> str:
    rate = "dpo" if job.dpo is not None else "train (of a cold start: cold_start)"
    return (
        "; the model would be lost, so nothing was written: lower learning_rate of "
        f"{rate}, raise train.warmup_ratio, or train in train.dtype=float32"
    )
