"""Disks that are full of bytes or of inodes, or read-only: one line, whoever writes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optima.errors import OptimaError, StageError
from optima.reporting.report import Limits, write_report
from optima.runs.directory import RunDir
from optima.runs.files import write_members
from optima.stages.opening import _log_file
from tests.reporting import made
from tests.runs.test_directory import recipe

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a tiny file system in memory; skipped where this user must not."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
            pytest.skip("no permission to mount a file system in memory")
        return place

    yield mounted
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def fill(place: Path) -> None:
    with (place / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def use_inodes(place: Path) -> None:
    for n in range(10_000):
        try:
            (place / f"ballast{n}").touch()
        except OSError:
            return


def begin_run(place: Path) -> None:
    with RunDir(place / "run", recipe()) as run:
        run.stage("iter_0/select", "inputs").finish()
        run.write_metrics()


def begin_sweep(place: Path) -> None:
    write_members(place / "sweep", ["a", "b"])


def report(place: Path) -> None:
    if not (place.parent / "made").exists():
        made.training(place.parent / "made")
    write_report([place.parent / "made"], place / "report", Limits())


WRITERS = (begin_run, begin_sweep, report)


def refused(write: Callable[[Path], None], place: Path) -> str:
    """Return the one line by which ``write`` is refused."""
    with pytest.raises(OptimaError) as said:
        write(place)
    assert "\n" not in str(said.value)
    assert str(place) in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("write", WRITERS)
def test_disk_full_of_bytes(write: Callable[[Path], None], mount: Mount) -> None:
    place = mount("size=256k")
    fill(place)
    assert "the disk is full" in refused(write, place)
    (place / "ballast").unlink()
    if write is not report:  # which needs more than the disk has
        write(place)


@pytest.mark.parametrize("write", WRITERS)
def test_disk_full_of_inodes(write: Callable[[Path], None], mount: Mount) -> None:
    place = mount("size=8m,nr_inodes=16")
    use_inodes(place)
    assert "no inodes left" in refused(write, place)


@pytest.mark.parametrize("write", WRITERS)
def test_disk_that_is_read_only(write: Callable[[Path], None], mount: Mount) -> None:
    place = mount("size=8m")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    assert "read-only" in refused(write, place)


def test_disk_that_fills_while_a_run_writes_loses_nothing_finished(mount: Mount) -> None:
    place = mount("size=256k")
    with RunDir(place / "run", recipe()) as run:
        first = run.stage("iter_0/rank", "inputs")
        (first.path / "rewards.jsonl").write_text("kept\n")
        first.finish([first.path / "rewards.jsonl"])
        fill(place)
        with pytest.raises(StageError, match=r"the disk is full.*run again"):
            run.stage("iter_0/select", "inputs")
    (place / "ballast").unlink()
    with RunDir(place / "run", recipe()) as run:
        assert run.stage("iter_0/rank", "inputs").done
        assert run.stage("iter_0/select", "inputs").done is None


def test_log_on_a_full_disk_prints_no_traceback(
    mount: Mount, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    place = mount("size=64k")
    logger = logging.getLogger("optima")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with _log_file(place / "optima.log"):
            fill(place)
            for _ in range(1000):
                logger.info("x" * 200)
    finally:
        logger.setLevel(level)
    assert "Traceback" not in capsys.readouterr().err
    assert (place / "optima.log").stat().st_size < 65536
