"""What is looked at on a host before a run loads anything."""

import re
import tempfile
from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.processes.devices import check_sockets, missing_cores


def test_folder_too_long_for_the_sockets_of_a_server_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        # Below it come "/optima-" with 8 characters and a slash with 36: 54 + 53 make 107.
        fits = Path(directory) / ("x" * (53 - len(directory)))
        over = Path(directory) / ("x" * (54 - len(directory)))
        for folder in (fits, over):
            folder.mkdir()
        assert len(str(fits)) == 54
        monkeypatch.setattr(tempfile, "tempdir", str(fits))
        check_sockets()
        assert not any(fits.iterdir())
        monkeypatch.setattr(tempfile, "tempdir", str(over))
        with pytest.raises(UsageError, match=r"^TMPDIR: .*at most 54 bytes"):
            check_sockets()
        assert not any(over.iterdir())


@pytest.mark.parametrize(
    ("environ", "n_usable", "expected"),
    [
        ({}, 1, None),
        ({"SLURM_CPUS_PER_TASK": "64"}, 1, "SLURM_CPUS_PER_TASK=64, but .* use 1 of them"),
        ({"SLURM_CPUS_PER_TASK": "64"}, 64, None),
        ({"SLURM_CPUS_PER_TASK": "64"}, 128, None),  # two threads a core
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_CPUS_PER_NODE": "64"}, 8, None),
        ({"SLURM_JOB_CPUS_PER_NODE": "64(x2),32"}, 2, r"SLURM_JOB_CPUS_PER_NODE=64, .* 2 of"),
        ({"SLURM_JOB_CPUS_PER_NODE": "64", "SLURM_NTASKS": "64"}, 1, None),  # one of 64 tasks
        ({"SLURM_CPUS_PER_TASK": "many"}, 1, None),
    ],
)
def test_fewer_cores_than_slurm_gave_are_told(
    environ: dict[str, str], n_usable: int, expected: str | None
) -> None:
    said = missing_cores(environ, n_usable)
    if expected is None:
        assert said is None
    else:
        assert re.match(expected, said or "")
