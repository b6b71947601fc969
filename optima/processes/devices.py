"""Which accelerators this host offers and which of them a run takes; imports no torch."""

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from optima.errors import UsageError
from optima.recipe.schema import ServingSection

_SMI_TIMEOUT_S = 60.0
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86-64, and Arm's last


@dataclass(frozen=True, slots=True)
class Devices:
    """The CPU, or GPUs by their position among those this process may see, as torch counts.

    ``visible`` holds what CUDA_VISIBLE_DEVICES said, so that children are given physical names.
    """

    kind: Literal["cpu", "cuda"]
    gpus: tuple[int, ...] = ()
    visible: tuple[str, ...] = ()

    @property
    def has_bfloat16(self) -> bool:
        """Whether products in bfloat16 are computed by the hardware.

        Processors without the instructions take a hundred times as long for them (2026-11-27: 0.9
        against 89 GFLOP/s on two cores), so float32 takes its place there.
        """
        return self.kind == "cuda" or _cpu_has_bfloat16()

    def mask(self, gpus: tuple[int, ...] | None = None) -> str:
        """Return CUDA_VISIBLE_DEVICES for a process that uses ``gpus`` (all without it)."""
        chosen = self.gpus if gpus is None else gpus
        if not self.visible:
            return ",".join(str(gpu) for gpu in chosen)
        return ",".join(self.visible[gpu] for gpu in chosen)


def detect_devices(serving: ServingSection) -> Devices:
    """Return what the run computes on; ``serving.gpus`` index the visible GPUs from 0.

    Raises UsageError when GPUs are asked for and missing, or do not divide into groups.
    """
    if serving.device == "cpu":
        return Devices("cpu")
    visible = _visible_gpus()
    n_gpus = _count_gpus() if visible is None else len(visible)
    if n_gpus == 0:
        if serving.device == "cuda" or serving.gpus:
            why = "CUDA_VISIBLE_DEVICES hides all" if visible == () else "nvidia-smi lists none"
            raise UsageError(
                f"serving.device: a GPU is asked for, but {why}; check the driver or take cpu"
            )
        return Devices("cpu")
    gpus = tuple(range(n_gpus)) if serving.gpus is None else serving.gpus
    unknown = [gpu for gpu in gpus if not 0 <= gpu < n_gpus]
    if unknown or not gpus or len(set(gpus)) != len(gpus):
        raise UsageError(
            f"serving.gpus: {list(gpus)}: must be different numbers from 0 to {n_gpus - 1}"
        )
    if len(gpus) % serving.tensor_parallel:
        raise UsageError(
            f"serving.tensor_parallel: {serving.tensor_parallel}: does not divide {len(gpus)} "
            "GPUs; change it or list the GPUs to use in serving.gpus"
        )
    return Devices("cuda", gpus, visible or ())


@cache
def _cpu_has_bfloat16() -> bool:
    """Tell whether the flags of the processor name such instructions; True where none are told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return True
    flags = {flag for line in lines if line.lower().startswith(("flags", "features"))
             for flag in line.partition(":")[2].split()}  # fmt: skip
    return not flags or bool(flags & BFLOAT16_FLAGS)


def _visible_gpus() -> tuple[str, ...] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, None when it is unset."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names = []
    for name in value.split(","):
        if not name.strip() or name.strip().startswith("-"):
            break  # CUDA ignores everything behind an invalid entry
        names.append(name.strip())
    return tuple(names)


def _count_gpus() -> int:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            check=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(re.findall(r"^GPU \d+:", answer.stdout, flags=re.MULTILINE))
