"""Supervised fine-tuning of one iteration, run inside the training environment (method.md 3).

``accelerate launch … -m optima.training.sft --job job.json``. Rows arrive as messages and leave
as token ids with labels before the trainer sees them, so that no template or mask of the library
takes part. Rows over ``train.max_length`` are counted and dropped, never cut. A training that was
killed continues from its last complete checkpoint.
"""

import argparse
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from optima.conversation.template import ChatTemplate
from optima.errors import OptimaError, StageError
from optima.recipe.schema import TrainSection
from optima.training.jobs import CHECKPOINTS_DIR, MODEL_DIR, PROGRESS_FILE, SftJob, TrainResult
from optima.training.masks import TokenizedRow, tokenize_rows
from optima.training.merge import (
    cast_weights,
    copy_companions,
    load_model,
    save_model_dir,
    set_dtype,
    token_ids,
)
from optima.training.parallelism import BatchPlan, plan_batches
from optima.types import ModelRef, TrainingRow

logger = logging.getLogger(__name__)

_COMPLETE = "COMPLETE"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokenised rows that fit, how many did not, and how many tokens those that fit have."""

    rows: tuple[TokenizedRow, ...]
    n_dropped: int

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def n_loss_tokens(self) -> int:
        """Trained tokens of all rows; a first token has nothing before it and is never one."""
        return sum(sum(row.is_trained[1:]) for row in self.rows)

    def dataset(self) -> Dataset:
        """Return the columns that the trainer takes as they are."""
        return Dataset.from_dict(
            {
                "input_ids": [row.input_ids for row in self.rows],
                "labels": [row.labels for row in self.rows],
            }
        )


class Progress(TrainerCallback):
    """Writes progress.json at each log and marks checkpoints that are complete."""

    def __init__(self, path: Path, n_tokens: int) -> None:
        self._path = path
        self._n_tokens = n_tokens
        self._first_step = 0
        self._start = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._first_step, self._start = state.global_step, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Replace progress.json."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        share = (state.global_step - self._first_step) / max(state.max_steps, 1)
        row = {
            "step": state.global_step,
            "n_steps": state.max_steps,
            "loss": logs["loss"],
            "tokens_per_s": self._n_tokens * share / seconds,
        }
        write_atomically(self._path, json.dumps(row))
        logger.info("step %d of %d: loss %s", state.global_step, state.max_steps, logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the trainer from a last checkpoint: the model itself is written next."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do the same where checkpoints are saved by the epoch."""
        self.on_step_end(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint: everything in it has been written."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(path / _COMPLETE, "")


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_rows(path: str | None, job: SftJob, template: ChatTemplate, tokenizer: Any) -> Rows:
    """Tokenise a file of training rows and drop those that are too long."""
    if path is None:
        return Rows((), 0)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [TrainingRow.model_validate_json(line) for line in lines if line.strip()]
    tokenized = tuple(tokenize_rows(rows, template, tokenizer))
    kept = tuple(row for row in tokenized if len(row.input_ids) <= job.train.max_length)
    return Rows(kept, len(tokenized) - len(kept))


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


def prepare_model(job: SftJob, dtype: torch.dtype) -> Any:
    """Load the start model in its training format, with trainable adapters if asked for."""
    lora, trust = job.train.lora, job.trust_remote_code
    if lora is None:
        return load_model(job.model.path, job.model.adapter, dtype, trust)
    if lora.serve == "adapter" and job.model.adapter is not None:
        # An adapter that is served over its base goes on being trained, so there is only one.
        base = load_model(job.model.path, None, dtype, trust)
        return PeftModel.from_pretrained(base, job.model.adapter, is_trainable=True)
    model = load_model(job.model.path, job.model.adapter, dtype, trust)
    is_named = isinstance(lora.target_modules, tuple)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if is_named else lora.target_modules,
        task_type="CAUSAL_LM",
    )
    # Adapters are float32 over bf16 weights unless everything is to be in one format.
    is_float32 = job.train.optimizer_state_dtype == "float32"
    return get_peft_model(model, config, autocast_adapter_dtype=is_float32)


def training_dtype(train: TrainSection) -> torch.dtype:
    """Return the format of the loaded weights: masters in float32 where they are trained."""
    is_master = train.optimizer_state_dtype == "float32" and train.lora is None
    is_zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"  # keeps its own
    return torch.float32 if is_master and not is_zero else _DTYPES[train.dtype]


def n_warmup_steps(train: TrainSection, n_rows: int, plan: BatchPlan, world: int) -> int:
    """Return the warm-up in whole steps, rounded down.

    The trainer rounds a share up, and its first warm-up step has learning rate 0: a training of
    fewer than 1 / warmup_ratio steps would waste one of them, one of a single step all.
    """
    n_batches = math.ceil(n_rows / (plan.micro_batch_size * world))
    n_steps = math.ceil(train.epochs * max(1, math.ceil(n_batches / plan.n_accumulation)))
    return math.floor(train.warmup_ratio * n_steps)


def trainer_config(job: SftJob, plan: BatchPlan, n_rows: int, has_eval: bool) -> SFTConfig:
    """Translate the recipe into the trainer's arguments."""
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
        "eval_on_start": has_eval,
        "eval_strategy": "no",
        "save_strategy": "epoch" if train.save_steps is None else "steps",
        "save_total_limit": train.save_total_limit,
        "report_to": list(train.report_to) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device == "cuda",
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    if train.save_steps is not None:
        options["save_steps"] = train.save_steps
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        options["bf16"] = train.dtype == "bfloat16"
    fields = SFTConfig.__dataclass_fields__
    if train.batching == "length_grouped":
        if "train_sampling_strategy" in fields:
            options["train_sampling_strategy"] = "group_by_length"
        else:
            options["group_by_length"] = True
    return SFTConfig(**options)


def prepare_data(job: SftJob, rows: Rows) -> tuple[Dataset, BatchPlan]:
    """Return the training set, packed if asked for, and how a step is split.

    ``batch_size`` counts conversations' rows also when rows are packed: a step then takes the
    number of packs that holds as many on average.
    """
    data, train, world = rows.dataset(), job.train, PartialState().num_processes
    batch, micro = train.batch_size, train.micro_batch_size
    if train.batching == "packing":
        packed = pack_dataset(data, train.max_length, "bfd")
        per_pack = len(data) / len(packed)
        batch = max(1, round(batch / per_pack / world)) * world
        micro, data = max(1, round(micro / per_pack)), packed
    return data, plan_batches(batch, micro, world)


def save(trainer: Any, job: SftJob, dtype: torch.dtype, ids: dict[str, Any]) -> ModelRef:
    """Write the trained model under a temporary name, then rename it; on all processes."""
    output = Path(job.output_dir) / MODEL_DIR
    temporary = output.with_name(f".{output.name}.tmp")
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    is_adapter = job.train.lora is not None and job.train.lora.serve == "adapter"
    if PartialState().is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        if job.train.lora is None:
            cast = cast_weights(weights, dtype)
            model.config.dtype = dtype
            for name, value in ids.items():
                setattr(model.config, name, value)
            save_model_dir(model, cast, job.model.path, temporary)
            set_dtype(temporary, dtype)
        else:
            # The adapter is saved by itself and, if wanted, merged into fresh, whole weights.
            model.save_pretrained(temporary, state_dict=weights)
            if not is_adapter:
                merge_saved(job, temporary, dtype)
            else:
                copy_companions(job.model.path, temporary)
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
    PartialState().wait_for_everyone()
    if is_adapter:
        return ModelRef(path=job.model.path, adapter=str(output))
    return ModelRef(path=str(output))


def merge_saved(job: SftJob, directory: Path, dtype: torch.dtype) -> None:
    """Replace an adapter directory by the merged model."""
    base = load_model(job.model.path, job.model.adapter, dtype, job.trust_remote_code)
    merged = PeftModel.from_pretrained(base, str(directory)).merge_and_unload()
    shutil.rmtree(directory)
    save_model_dir(merged, None, job.model.path, directory)


def run(job: SftJob) -> TrainResult:
    """Train and write the model; the result is returned, not written."""
    output = Path(job.output_dir)
    trust = {"trust_remote_code": job.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(job.model.path, **trust)
    template = ChatTemplate.load(job.model.path)
    rows = read_rows(job.rows_path, job, template, tokenizer)
    eval_rows = read_rows(job.eval_rows_path, job, template, tokenizer)
    if not rows.rows:
        raise StageError(
            f"{job.rows_path}: no row to train on ({rows.n_dropped} are longer than "
            f"train.max_length={job.train.max_length} tokens); lower select.theta or raise it"
        )
    logger.info(
        "%d rows (%d too long), %d evaluation rows, %d tokens, %d of them trained",
        *(len(rows.rows), rows.n_dropped, len(eval_rows.rows), rows.n_tokens, rows.n_loss_tokens),
    )
    config = AutoConfig.from_pretrained(job.model.path, **trust)
    ids, saved_dtype = token_ids(config), getattr(config, "dtype", None) or torch.bfloat16
    data, plan = prepare_data(job, rows)
    # Made before the model is loaded: under ZeRO-3 it tells the loader to split the weights.
    arguments = trainer_config(job, plan, len(data), bool(eval_rows.rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    n_tokens = round(rows.n_tokens * job.train.epochs)
    trainer = SFTTrainer(
        model=prepare_model(job, training_dtype(job.train)),
        args=arguments,
        train_dataset=data,
        eval_dataset=eval_rows.dataset() if eval_rows.rows else None,
        processing_class=tokenizer,
        # It pads by length, not by comparing ids, so a pad that equals the stop token is safe.
        data_collator=DataCollatorForLanguageModeling(
            pad_token_id=pad, padding_free=job.train.batching == "packing"
        ),
        callbacks=[Progress(output / PROGRESS_FILE, n_tokens)],
    )
    checkpoint = last_checkpoint(output / CHECKPOINTS_DIR)
    if checkpoint is not None:
        logger.info("continuing from %s", checkpoint)
        trainer.args.eval_on_start = False
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - start
    first = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
    eval_loss = trainer.evaluate()["eval_loss"] if eval_rows.rows else None
    history, n_steps = trainer.state.log_history, trainer.state.global_step
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return TrainResult(
        model=save(trainer, job, saved_dtype, ids),
        n_rows=len(rows.rows),
        n_eval_rows=len(eval_rows.rows),
        n_dropped_rows=rows.n_dropped + eval_rows.n_dropped,
        n_tokens=n_tokens,
        n_loss_tokens=round(rows.n_loss_tokens * job.train.epochs),
        n_steps=n_steps,
        train_loss=sum(losses) / len(losses),
        eval_loss=eval_loss,
        eval_loss_before=next((e["eval_loss"] for e in history if "eval_loss" in e), None),
        seconds=seconds,
        tokens_per_s=n_tokens * (n_steps - first) / n_steps / max(seconds, 1e-9),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="optima.training.sft", description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="job.json")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s")
    job = SftJob.model_validate_json(options.job.read_text(encoding="utf-8"))
    PartialState(cpu=job.device == "cpu")
    try:
        result = run(job)
    except OptimaError as error:
        sys.stdout.write(f"error: {error}\n")
        return 1
    if PartialState().is_main_process:
        shutil.rmtree(Path(job.output_dir) / CHECKPOINTS_DIR, ignore_errors=True)
        write_atomically(job.result_path, result.model_dump_json(indent=1) + "\n")
    PartialState().wait_for_everyone()
    return 0


if __name__ == "__main__":
    sys.exit(main())
