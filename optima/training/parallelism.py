"""How one training is spread over devices: the configuration file that accelerate is given.

Every launch names its own file, so that a default configuration in the user's home directory
changes nothing.
"""

import json
from typing import Any, Literal

from optima.recipe.schema import TrainSection

Parallelism = Literal["none", "ddp", "zero3", "fsdp"]

ZERO3: dict[str, Any] = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {
        "zero_stage": 3,
        "zero3_init_flag": True,
        "zero3_save_16bit_model": True,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "deepspeed_multinode_launcher": "standard",
    },
}
FSDP: dict[str, Any] = {
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_activation_checkpointing": False,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    },
}
CONFIGS: dict[Parallelism, dict[str, Any]] = {
    "none": {"distributed_type": "NO"},
    "ddp": {"distributed_type": "MULTI_GPU"},
    "zero3": ZERO3,
    "fsdp": FSDP,
}


def choose_parallelism(train: TrainSection, n_gpus: int) -> Parallelism:
    """Return what ``train.parallelism`` means on this many GPUs (0: the CPU)."""
    if n_gpus <= 1:
        return "none"
    if train.parallelism == "auto":
        return "zero3"
    if train.parallelism == "none":
        return "ddp"  # several processes without gradient averaging would train several models
    return train.parallelism


def accelerate_config(train: TrainSection, n_gpus: int, port: int) -> str:
    """Return the text of the configuration file (JSON) for ``accelerate launch``."""
    is_mixed = train.dtype == "bfloat16" and train.optimizer_state_dtype == "float32"
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "machine_rank": 0,
        "num_machines": 1,
        "num_processes": max(1, n_gpus),
        "main_process_port": port,
        "main_training_function": "main",
        "mixed_precision": "bf16" if is_mixed else "no",
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": n_gpus == 0,
        "debug": False,
        **CONFIGS[choose_parallelism(train, n_gpus)],
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def split_batch(train: TrainSection, n_devices: int) -> tuple[int, int]:
    """Return rows per forward and accumulation steps, which make ``batch_size`` rows a step.

    With a ``batch_size`` that the devices do not divide, a step has up to n_devices - 1 more rows.
    """
    rows = -(-train.batch_size // n_devices)
    micro = next(n for n in range(min(rows, train.micro_batch_size), 0, -1) if rows % n == 0)
    return micro, rows // micro
