"""The option spellings of the original project's README, so that its commands can be pasted.

Options that have a counterpart are translated to it; the others are refused with what to do.
"""

import argparse
from pathlib import Path

from optima.errors import UsageError

# original option -> option of this command
TO_OPTION = {
    "train_config_path": "config",
    "vllm_env": "vllm_env",
    "alignment_env": "train_env",
    "output_path": "run_dir",
    "output_root_path": "run_dir",
}
# original option -> recipe field
TO_FIELD = {
    "model_path": "model.path",
    "dataset_type": "task",
    "device": "serving.device",
    "num_thread": "serving.concurrency",
    "temperature": "sampling.temperature",
}
# original option -> what to do instead
REFUSED = {
    "model_root_path": "it belongs to inference; for training give --model_path or model.path=DIR",
    "tokenizer_path": "the tokenizer is read from model.path; remove the option",
    "port": "ports are taken free from the kernel; remove the option, or name servers that run "
    "already in serving.endpoints=[URL]",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the original spellings, hidden from --help."""
    for name in (*TO_OPTION, *TO_FIELD, *REFUSED):
        parser.add_argument(f"--{name}", dest=f"original_{name}", help=argparse.SUPPRESS)


def translate(options: argparse.Namespace) -> None:
    """Move the original spellings to their counterparts; UsageError for those without one."""
    for name, remedy in REFUSED.items():
        if getattr(options, f"original_{name}") is not None:
            raise UsageError(f"--{name}: is no option here: {remedy}")
    for name, target in TO_OPTION.items():
        value = getattr(options, f"original_{name}")
        if value is None:
            continue
        if getattr(options, target) is not None:
            raise UsageError(f"--{name}: says the same as --{target.replace('_', '-')}; give one")
        is_path = target in ("config", "run_dir")
        setattr(options, target, Path(value) if is_path else value)
    for name, field in TO_FIELD.items():
        value = getattr(options, f"original_{name}")
        if value is not None:
            options.overrides += _devices(value) if name == "device" else [f"{field}={value}"]


def _devices(value: str) -> list[str]:
    """Return the overrides for ``cpu``, ``cuda``, ``cuda:1`` or a list of indices ``0,1``."""
    if value in ("auto", "cpu", "cuda"):
        return [f"serving.device={value}"]
    indices = value.removeprefix("cuda:").split(",")
    if not all(index.strip().isdecimal() for index in indices):
        raise UsageError(f"--device: {value!r}: must be cpu, cuda, cuda:N or N,M,...")
    return ["serving.device=cuda", f"serving.gpus=[{','.join(indices)}]"]
