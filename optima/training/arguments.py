"""From a recipe to the arguments that both trainers of the library share."""

import math
import os
from pathlib import Path
from typing import Any

from accelerate import PartialState

from optima.recipe.schema import TrainSection
from optima.shares import share_of
from optima.training.jobs import CHECKPOINTS_DIR, TrainJob
from optima.training.parallelism import BatchPlan


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
        "logging_nan_inf_filter": False,  # it would write 0 for a loss that is no number
        "eval_on_start": has_eval,
        "eval_strategy": "no",
        "save_strategy": "epoch" if train.save_steps is None else "steps",
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
