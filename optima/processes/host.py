"""What a run needs of the host it is started on; looked at before anything is loaded."""

import os
import socket
import tempfile
import uuid
from collections.abc import Mapping

from optima.errors import UsageError


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
            f"TMPDIR: {folder}: vLLM can make no socket there ({error}); name another folder of "
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
