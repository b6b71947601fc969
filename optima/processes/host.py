"""What a run needs of the host it is started on; looked at before anything is loaded."""

import os
import socket
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from optima.errors import UsageError


def check_sockets() -> None:
    """Raise UsageError where a server's processes could not make the sockets they speak over.

    vLLM makes them in VLLM_RPC_BASE_PATH or the temporary folder. The whole path of one is held
    to 107 bytes, and some file systems have none.
    """
    name = "VLLM_RPC_BASE_PATH" if os.environ.get("VLLM_RPC_BASE_PATH") else "TMPDIR"
    folder = Path(os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir())
    path = folder / str(uuid.uuid4())  # as long as a server's own
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
    except OSError as error:
        raise UsageError(
            f"{name}: {folder}: vLLM can make no socket there ({error}); name another folder of "
            "this host, with a path of at most 70 bytes, such as /tmp"
        ) from error
    finally:
        with suppress(OSError):
            path.unlink()


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
