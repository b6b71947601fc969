"""What is looked at on a host before a run loads anything."""

import re
import tempfile
from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.processes.host import check_sockets, missing_cores


@pytest.mark.parametrize("name", ["TMPDIR", "VLLM_RPC_BASE_PATH"])
def test_folder_too_long_for_the_sockets_of_a_server_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        # A socket's name is a slash and 36 characters: 70 bytes before it make 107, the limit.
        fits = Path(directory) / ("x" * (69 - len(directory)))
        over = Path(directory) / ("x" * (70 - len(directory)))
        for folder in (fits, over):
            folder.mkdir()
        assert len(str(fits)) == 70
        monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", None)  # else what was read before counts
        monkeypatch.setenv(name, str(fits))
        check_sockets()
        assert not any(fits.iterdir())
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv(name, str(over))
        with pytest.raises(UsageError, match=rf"^{name}: .*at most 70 bytes"):
            check_sockets()


def test_folder_of_sockets_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"VLLM_RPC_BASE_PATH: .*No such file"):
        check_sockets()


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
