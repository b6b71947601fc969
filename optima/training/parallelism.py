"""How one training is spread: rows per step over devices, and what accelerate is told.

The configurations are visible dicts; the one a training used is written beside its job.
"""

import copy
from dataclasses import dataclass
from typing import Any

from optima.errors import RecipeError
from optima.recipe.schema import TrainSection

# Parameters, gradients and optimiser state are split over the GPUs (ZeRO stage 3).
ZERO3: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {
        "deepspeed_multinode_launcher": "standard",
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": True,
        "zero_stage": 3,
    },
    "machine_rank": 0,
    "main_training_function": "main",
    "num_machines": 1,
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": False,
}
# The same split by PyTorch itself, wrapped at the model's own decoder layers.
FSDP: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    },
    "machine_rank": 0,
    "main_training_function": "main",
    "num_machines": 1,
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": False,
}
# Every GPU holds everything and gradients are averaged.
DDP: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "machine_rank": 0,
    "main_training_function": "main",
    "num_machines": 1,
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": False,
}
# One process, on one GPU or on the CPU.
SINGLE: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "NO",
    "machine_rank": 0,
    "main_training_function": "main",
    "num_machines": 1,
    "num_processes": 1,
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
