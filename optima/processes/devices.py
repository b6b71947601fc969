"""What this host offers a run, looked at before anything is loaded: GPUs, cores, room for sockets.

Imports no torch.
"""

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from optima.errors import UsageError
from optima.recipe.sections import ServingSection

_SMI_TIMEOUT_S = 60.0
_LOST = "Unable to determine the device handle"  # of a GPU that fell off the bus
_NO_GPU = ("", "NoDevFiles", "none", "void")  # written by Slurm and by container tools
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

    def __str__(self) -> str:
        return "the CPU" if self.kind == "cpu" else f"GPUs {', '.join(map(str, self.gpus))}"

    def mask(self, gpus: tuple[int, ...] | None = None) -> str:
        """Return CUDA_VISIBLE_DEVICES for a process that uses ``gpus`` (all without it)."""
        chosen = self.gpus if gpus is None else gpus
        if not self.visible:
            return ",".join(str(gpu) for gpu in chosen)
        return ",".join(self.visible[gpu] for gpu in chosen)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as nvidia-smi lists it: its UUID and those of the MIG devices it is split into."""

    uuid: str
    parts: tuple[str, ...]


def detect_devices(serving: ServingSection, dev: Path = Path("/dev")) -> Devices:
    """Return what the run computes on; ``serving.gpus`` index the visible GPUs from 0.

    ``dev`` holds the device files. Raises UsageError when GPUs are asked for and missing, when a
    driver is there and fails, when CUDA would take other GPUs than CUDA_VISIBLE_DEVICES names, or
    when the GPUs do not divide into groups.
    """
    if serving.device == "cpu":
        return Devices("cpu")
    visible = _visible_gpus()
    cards = _listed_cards(dev) if visible != () else ()
    if visible:
        _check_visible(visible, cards)
    elif any(card.parts for card in cards):
        raise UsageError(f"CUDA_VISIBLE_DEVICES: is not set, and {_name_a_part(cards)}")
    n_gpus = len(cards) if visible is None else len(visible)
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


def gpu_memory(devices: Devices) -> int | None:
    """Return the bytes of the largest GPU that nvidia-smi lists, None where it does not say.

    The largest, because CUDA may count GPUs in another order; of a MIG device nothing is said.
    """
    if devices.kind == "cpu" or any(name.startswith("MIG") for name in devices.visible):
        return None
    try:
        answer = _ask_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (line.strip() for line in answer.stdout.decode(errors="replace").splitlines())
    return max((int(line) for line in lines if line.isdecimal()), default=0) * 2**20 or None


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this host, or this job's share of it, has left.

    Files that the kernel keeps in memory count as free. None where the host does not say.
    """
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8")
        free = 1024 * int(_entries(text)["MemAvailable:"])
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_left_to_groups(root)])


def _left_to_groups(root: Path) -> Iterator[int]:
    """Yield what limits on groups of processes leave to the groups that this process is in."""
    kinds = (
        ("0::", "", "memory.max", "memory.current", "inactive_file"),
        ("memory:", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
         "total_inactive_file"),
    )  # fmt: skip
    with contextlib.suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        for mark, mount, limit, used, cached in kinds:
            base = root / "sys/fs/cgroup" / mount
            named = [line.partition(mark)[2].lstrip("/") for line in groups if mark in line]
            places = {place for name in named for place in (base / name, *(base / name).parents)}
            for place in places:
                # a container may see its own group where the host's name would lead nowhere
                with contextlib.suppress(OSError, ValueError):
                    most = int((place / limit).read_text(encoding="utf-8"))  # or "max"
                    files = _entries((place / "memory.stat").read_text(encoding="utf-8"))
                    taken = int((place / used).read_text(encoding="utf-8"))
                    yield most - taken + int(files.get(cached, 0))


def _entries(text: str) -> dict[str, str]:
    lines = (line.split() for line in text.splitlines())
    return {words[0]: words[1] for words in lines if len(words) > 1}


@cache
def _cpu_has_bfloat16() -> bool:
    try:
        return lists_bfloat16(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return True


def lists_bfloat16(cpuinfo: str) -> bool:
    """Tell whether the flags of the processor name such instructions; True where none are told."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    told = [flags for name, _, flags in lines if name.strip().lower() in ("flags", "features")]
    flags = {flag for text in told for flag in text.split()}
    return not flags or bool(flags & BFLOAT16_FLAGS)


def _visible_gpus() -> tuple[str, ...] | None:
    """Return the entries of CUDA_VISIBLE_DEVICES, None when it is unset."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names = [name.strip() for name in value.strip().strip(",").split(",")]
    if names[0] in _NO_GPU or names[0].startswith("-"):
        return ()
    for place, name in enumerate(names):
        if not name or name.startswith("-") or name in names[:place]:
            raise UsageError(
                f"CUDA_VISIBLE_DEVICES: {value!r}: CUDA takes no GPU from entry {place + 1} on "
                f"({name!r} is empty, negative or there twice); name each GPU once"
            )
    return tuple(names)


def _check_visible(names: Sequence[str], cards: Sequence[Card]) -> None:
    """Raise UsageError unless each of ``names`` is one GPU or one MIG device that is there."""
    place = f"CUDA_VISIBLE_DEVICES: {','.join(names)!r}"
    if not cards:
        raise UsageError(
            f"{place}: this host shows no GPU (nvidia-smi lists none); unset it, or take "
            "serving.device=cpu"
        )
    uuids = [uuid for card in cards for uuid in (card.uuid, *card.parts)]
    for name in names:
        if name.isdecimal():
            if int(name) >= len(cards):
                raise UsageError(
                    f"{place}: there is no GPU {name}, so CUDA would drop it and all behind it; "
                    f"nvidia-smi lists GPUs 0 to {len(cards) - 1}"
                )
            if cards[int(name)].parts:
                raise UsageError(f"{place}: {_name_a_part([cards[int(name)]])}")
        elif sum(uuid.startswith(name) for uuid in uuids) != 1:
            raise UsageError(
                f"{place}: {name!r} is not the number or UUID of one GPU that nvidia-smi -L lists"
            )
    if len(names) > 1 and any(name.startswith("MIG") for name in names):
        raise UsageError(f"{place}: a process can use one MIG device only; name one")


def _name_a_part(cards: Sequence[Card]) -> str:
    part = next(part for card in cards for part in card.parts)
    return f"a GPU is split by MIG: name the one of its devices to use, such as {part}"


def _listed_cards(dev: Path) -> tuple[Card, ...]:
    """Return the GPUs that nvidia-smi lists; UsageError where a driver is there and fails."""
    nodes = sorted(path.name for path in dev.glob("nvidia[0-9]*"))
    try:
        answer = _ask_smi("-L")
    except FileNotFoundError:
        reason, is_absent = "nvidia-smi is not on PATH", True
    except subprocess.TimeoutExpired:
        reason, is_absent = f"nvidia-smi -L gave no answer in {_SMI_TIMEOUT_S:.0f} s", False
    except OSError as error:
        reason, is_absent = f"nvidia-smi cannot be started ({error.strerror})", False
    else:
        text = (answer.stdout + answer.stderr).decode(errors="replace")
        cards = _parse_cards(text)
        is_absent = not cards and "no devices" in text.lower()
        if cards and answer.returncode == 0 and _LOST not in text:
            return cards
        said = next((line for line in text.splitlines() if _LOST in line), text)
        short = " ".join(said.split())[:200] or f"status {answer.returncode}"
        reason = f"nvidia-smi -L: {short}"
    if is_absent and not nodes:
        return ()
    there = f", though /dev/{nodes[0]} is there" if nodes else ""
    raise UsageError(
        f"serving.device: {reason}{there}; mend the driver (or what hides the GPUs from this "
        "process), or take serving.device=cpu to compute without GPUs"
    )


def _ask_smi(*options: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        ["nvidia-smi", *options], capture_output=True, check=False, stdin=subprocess.DEVNULL,
        timeout=_SMI_TIMEOUT_S,
    )  # fmt: skip


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of an address of this host that the kernel says is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _parse_cards(text: str) -> tuple[Card, ...]:
    """Return the GPUs of the output of ``nvidia-smi -L``, MIG devices below their GPU."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        uuid = line.rpartition("(UUID: ")[2].rstrip(") ")
        if re.match(r"GPU \d+:", line):
            found.append((uuid, []))
        elif re.match(r"\s+MIG ", line) and found:
            found[-1][1].append(uuid)
    return tuple(Card(uuid, tuple(parts)) for uuid, parts in found)


def check_sockets() -> None:
    """Raise UsageError where a server's processes could not make the sockets they speak over.

    They lie in a folder of the server's own below the temporary one (``managed``). The whole path
    of a socket is held to 107 bytes, and some file systems have none.
    """
    folder = tempfile.gettempdir()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="optima-") as scratch,
            socket.socket(socket.AF_UNIX) as probe,
        ):
            probe.bind(f"{scratch}/{uuid.uuid4()}")  # as long as a server's own
    except OSError as error:
        raise UsageError(
            f"TMPDIR: {folder}: vLLM cannot make a socket there ({error}); name another folder of "
            "this host, with a path of at most 54 bytes, such as /tmp"
        ) from error


def missing_cores(environ: Mapping[str, str], n_usable: int) -> str | None:
    """Say it when this process may use fewer CPUs than Slurm gave the job; None otherwise."""
    name = "SLURM_CPUS_PER_TASK"
    if name not in environ and environ.get("SLURM_NTASKS", "1") == "1":
        name = "SLURM_JOB_CPUS_PER_NODE"  # such as 64, or 64(x2),32 of several nodes
    given = environ.get(name, "").partition(",")[0].partition("(")[0]
    if not given.isdecimal() or n_usable >= int(given):
        return None
    return (
        f"{name}={given}, but this process may use {n_usable} of them, and so may servers and "
        f"training; start it with srun --cpus-per-task={given}, which srun does not take over "
        "from sbatch"
    )


def core_warning() -> str | None:
    """Return ``missing_cores`` of this process."""
    return missing_cores(os.environ, len(os.sched_getaffinity(0)))
