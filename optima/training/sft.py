"""Supervised fine-tuning of one model on the rows of one iteration; runs in the training env.

``accelerate launch -m optima.training.sft --job job.json``. Rows are masked here (see ``masks``)
and given to TRL's SFTTrainer as token ids with labels; nothing is ever cut: rows over
``train.max_length`` are counted and dropped. Refuses an empty set of rows.
"""

import argparse
import inspect
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from optima.conversation.template import ChatTemplate
from optima.errors import OptimaError, StageError
from optima.training.jobs import (
    CHECKPOINT_DIR,
    EVAL_BEFORE_FILE,
    MODEL_DIR,
    PROGRESS_FILE,
    RESULT_FILE,
    SftJob,
    TrainProgress,
    TrainResult,
)
from optima.training.masks import MaskedRow, mask_rows
from optima.training.parallelism import split_batch
from optima.training.weights import DTYPES, load_model, load_tokenizer, save_weights
from optima.types import TrainingRow

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_log = logging.getLogger("optima.training.sft")


@dataclass(frozen=True)
class RowSet:
    """Rows ready to be trained on, and how many were too long."""

    rows: tuple[MaskedRow, ...]
    n_dropped: int

    @property
    def n_tokens(self) -> int:
        """All tokens, prompts included."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def n_loss_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(sum(row.is_trained) for row in self.rows)

    def dataset(self) -> Dataset:
        """Return the rows as TRL takes them."""
        return Dataset.from_list(
            [{"input_ids": list(row.input_ids), "labels": row.labels} for row in self.rows]
        )


def load_rows(path: str, template: ChatTemplate, tokenizer: Any, max_length: int) -> RowSet:
    """Read, mask and filter the rows of a JSON Lines file; blank lines are skipped."""
    with Path(path).open(encoding="utf-8") as lines:
        rows = [TrainingRow.model_validate_json(line) for line in lines if line.strip()]
    masked = tuple(mask_rows(rows, template, tokenizer))
    kept = tuple(row for row in masked if len(row.input_ids) <= max_length)
    return RowSet(kept, len(masked) - len(kept))


class _Progress(TrainerCallback):
    """Writes progress.json, and keeps the trainer from saving a last checkpoint for nothing."""

    def __init__(self, path: Path, tokens_per_step: float) -> None:
        self._path = path
        self._tokens_per_step = tokens_per_step
        self._first_step = 0
        self._started = time.monotonic()
        self.tokens_per_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._first_step = state.global_step
        self._started = time.monotonic()
        if state.is_world_process_zero:
            self._write(state, None)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        seconds = time.monotonic() - self._started
        n_steps = state.global_step - self._first_step
        self.tokens_per_s = n_steps * self._tokens_per_step / max(seconds, 1e-9)
        loss = float(logs["loss"])
        _log.info(
            "step %d/%d: loss %.4f, learning rate %.2e, %.0f tokens/s",
            state.global_step,
            state.max_steps,
            loss,
            float(logs.get("learning_rate", math.nan)),
            self.tokens_per_s,
        )
        self._write(state, loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._skip_last(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._skip_last(state, control)

    @staticmethod
    def _skip_last(state: Any, control: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the model itself is written next

    def _write(self, state: Any, loss: float | None) -> None:
        progress = TrainProgress(
            step=state.global_step,
            n_steps=state.max_steps,
            loss=loss,
            tokens_per_s=round(self.tokens_per_s, 1),
        )
        write_atomically(self._path, progress.model_dump_json())


def train(job: SftJob) -> TrainResult | None:
    """Run the job; return its result on the first process, None on the others."""
    set_seed(job.seed)
    output = Path(job.output_dir)
    tokenizer = load_tokenizer(
        job.model.path, revision=job.revision, trust_remote_code=job.trust_remote_code
    )
    # Rendered as at generation: a prompt that differs by one byte is another prompt.
    template = ChatTemplate.load(job.model.path, revision=job.revision)
    rows = load_rows(job.rows_path, template, tokenizer, job.train.max_length)
    held_out = (
        load_rows(job.eval_rows_path, template, tokenizer, job.train.max_length)
        if job.eval_rows_path is not None
        else RowSet((), 0)
    )
    if not rows.rows:
        raise StageError(
            f"{job.rows_path}: no rows to train on ({rows.n_dropped} are longer than "
            f"train.max_length={job.train.max_length}); raise train.max_length or lower select.theta"
        )
    _log.info(
        "%d rows, %d tokens, %d with loss; %d rows over train.max_length=%d dropped; %d held out",
        *(len(rows.rows), rows.n_tokens, rows.n_loss_tokens, rows.n_dropped),
        *(job.train.max_length, len(held_out.rows)),
    )
    trainer = _make_trainer(job, rows, held_out, tokenizer)
    progress = _Progress(output / PROGRESS_FILE, _tokens_per_step(job, rows, trainer))
    trainer.add_callback(progress)
    checkpoint = last_checkpoint(output / CHECKPOINT_DIR)
    _log.info("starting from %s", checkpoint or "the model")
    before = _eval_loss_before(trainer, held_out, output, is_fresh=checkpoint is None)
    started = time.monotonic()
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - started
    after = _evaluate(trainer, held_out)
    scratch = output / f".{MODEL_DIR}.partial"
    if trainer.is_world_process_zero():
        shutil.rmtree(scratch, ignore_errors=True)
    model = save_weights(trainer, tokenizer, job, scratch)
    if not trainer.is_world_process_zero():
        return None
    result = TrainResult(
        model=model,
        n_rows=len(rows.rows),
        n_eval_rows=len(held_out.rows),
        n_dropped_rows=rows.n_dropped + held_out.n_dropped,
        n_tokens=round(rows.n_tokens * job.train.epochs),
        n_loss_tokens=round(rows.n_loss_tokens * job.train.epochs),
        n_steps=trainer.state.global_step,
        train_loss=_mean_loss(trainer, float(outcome.training_loss)),
        eval_loss=after,
        eval_loss_before=before,
        seconds=round(seconds, 3),
        tokens_per_s=round(progress.tokens_per_s, 1),
    )
    _finish(output, scratch, result)
    return result


def _make_trainer(job: SftJob, rows: RowSet, held_out: RowSet, tokenizer: Any) -> SFTTrainer:
    train_dataset = rows.dataset()
    arguments = SFTConfig(**training_arguments(job, rows))
    return SFTTrainer(
        model=_trainable_model(job),
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=held_out.dataset() if held_out.rows else None,
        processing_class=tokenizer,
    )


def training_arguments(job: SftJob, rows: RowSet) -> dict[str, Any]:
    """Return the arguments of TRL's SFTConfig, spelled as the installed release wants them."""
    section = job.train
    n_devices = int(os.environ.get("WORLD_SIZE", "1"))
    micro, accumulation = split_batch(section, n_devices)
    is_packed = section.batching == "packing"
    if is_packed:  # keep about batch_size rows in a step: a packed sequence holds several
        mean_length = rows.n_tokens / len(rows.rows)
        per_step = max(1, round(section.batch_size * mean_length / section.max_length))
        micro, accumulation = split_batch(
            section.model_copy(update={"batch_size": per_step}), n_devices
        )
    known = inspect.signature(SFTConfig.__init__).parameters
    arguments: dict[str, Any] = {
        "output_dir": str(Path(job.output_dir) / CHECKPOINT_DIR),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": section.epochs,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.scheduler,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "max_length": section.max_length,
        "packing": is_packed,
        # Preparation would only cut rows, which are short enough; packing is part of it.
        "dataset_kwargs": None if is_packed else {"skip_prepare_dataset": True},
        "gradient_checkpointing": section.gradient_checkpointing,
        "bf16": section.dtype == "bfloat16" and section.optimizer_state_dtype == "float32",
        "fp16": False,
        "use_cpu": job.device == "cpu",
        "optim": "adamw_torch" if job.device == "cpu" else "adamw_torch_fused",
        "seed": job.seed % 2**32,  # numpy takes 32 bits
        "data_seed": job.seed % 2**32,
        "logging_steps": section.logging_steps,
        "logging_first_step": True,
        "save_strategy": "steps" if section.save_steps else "epoch",
        "save_total_limit": section.save_total_limit,
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "report_to": list(section.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device == "cuda",
        "ddp_find_unused_parameters": False,
    }
    if section.save_steps:
        arguments["save_steps"] = section.save_steps
    if section.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if "train_sampling_strategy" in known:
        is_grouped = section.batching == "length_grouped"
        arguments["train_sampling_strategy"] = "group_by_length" if is_grouped else "random"
    else:
        arguments["group_by_length"] = section.batching == "length_grouped"
    # transformers 5 takes a share of the steps in warmup_steps and is to drop warmup_ratio
    if known["warmup_steps"].annotation in (float, "float"):
        arguments["warmup_steps"] = min(section.warmup_ratio, 0.9999)
    else:
        arguments["warmup_ratio"] = section.warmup_ratio
    return arguments


def _trainable_model(job: SftJob) -> Any:
    section = job.train
    lora = section.lora
    has_masters = section.optimizer_state_dtype == "float32"
    # Under LoRA only the adapter has an optimiser state; the frozen weights need no masters.
    dtype = DTYPES["float32"] if has_masters and lora is None else DTYPES[section.dtype]
    keep_adapter = lora is not None and lora.serve == "adapter" and job.model.adapter is not None
    start = job.model.model_copy(update={"adapter": None}) if keep_adapter else job.model
    model = load_model(start, dtype, revision=job.revision, trust_remote_code=job.trust_remote_code)
    if section.gradient_checkpointing:
        model.config.use_cache = False
    if lora is None:
        return model
    from peft import LoraConfig, PeftModel, get_peft_model

    if keep_adapter:
        return PeftModel.from_pretrained(
            model, job.model.adapter, is_trainable=True, autocast_adapter_dtype=has_masters
        )
    modules = lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    return get_peft_model(model, config, autocast_adapter_dtype=has_masters)


def _tokens_per_step(job: SftJob, rows: RowSet, trainer: SFTTrainer) -> float:
    arguments = trainer.args
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
    per_step *= arguments.world_size
    n_steps = max(1, math.ceil(len(trainer.train_dataset) / per_step))
    return rows.n_tokens / n_steps


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint; the trainer's state is what is written last."""
    found = []
    for path in directory.glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if match and state.get("global_step") == int(match[1]):
            found.append((int(match[1]), path))
    return max(found)[1] if found else None


def _eval_loss_before(
    trainer: SFTTrainer, held_out: RowSet, output: Path, *, is_fresh: bool
) -> float | None:
    path = output / EVAL_BEFORE_FILE
    if not is_fresh and path.is_file():
        stored = json.loads(path.read_text())
        return None if stored is None else float(stored)
    loss = _evaluate(trainer, held_out) if is_fresh else None
    if trainer.is_world_process_zero():
        write_atomically(path, json.dumps(loss))
    return loss


def _evaluate(trainer: SFTTrainer, held_out: RowSet) -> float | None:
    if not held_out.rows:
        return None
    loss = float(trainer.evaluate()["eval_loss"])
    _log.info("evaluation loss %.4f on %d rows", loss, len(held_out.rows))
    return loss


def _mean_loss(trainer: SFTTrainer, reported: float) -> float:
    """Mean over all logged steps; what ``train()`` reports lacks those before a resume."""
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return sum(losses) / len(losses) if losses else reported


def _finish(output: Path, scratch: Path, result: TrainResult) -> None:
    final = output / MODEL_DIR
    if final.exists():
        shutil.rmtree(final)
    scratch.rename(final)
    write_atomically(output / RESULT_FILE, result.model_dump_json(indent=1) + "\n")
    shutil.rmtree(output / CHECKPOINT_DIR, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file under a temporary name, sync and rename it."""
    scratch = path.with_name(f".{path.name}.partial")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def main() -> int:
    """Run the job named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--job", type=Path, required=True, help="job.json, an SftJob")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        job = SftJob.model_validate_json(options.job.read_bytes())
        result = train(job)
    except OptimaError as error:
        _log.error("%s", error)  # noqa: TRY400  the message is the whole story
        return 1
    if result is not None:
        _log.info(
            "trained %d steps in %.1f s, loss %.4f, %.0f tokens/s",
            *(result.n_steps, result.seconds, result.train_loss, result.tokens_per_s),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
