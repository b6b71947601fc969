"""How errors and interruptions end a process."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optima.cli.console import run_command
from optima.errors import RecipeError, StageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RecipeError("r.yaml: seed: wrong"), 2, "optima: r.yaml: seed: wrong\n"),
        (
            RecipeError("a\u2028b\x1b[31m: \u00fc\t1\rb\n"),
            2,
            "optima: a\\u2028b\\x1b[31m: \u00fc\t1\noptima: b\n",
        ),
        (StageError("nothing selected"), 1, "optima: nothing selected\n"),
        (KeyboardInterrupt(), 130, "optima: interrupted; the same command goes on from here\n"),
    ],
)
def test_known_error_is_one_line_and_a_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == status
    assert capsys.readouterr().err == text


def test_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_termination_that_arrives_inside_a_task_of_many_is_one_line_and_its_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # It was wrapped into a group of errors, whose traceback ended the run with status 1.
    async def work(k: int) -> None:
        if k == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    async def hold() -> int:
        async with asyncio.TaskGroup() as group:
            for k in range(3):
                group.create_task(work(k))
        return 0

    assert run_command(lambda: asyncio.run(hold())) == 143
    assert capsys.readouterr().err == "optima: terminated; the same command goes on from here\n"


@pytest.mark.parametrize("is_ignored", [False, True])
def test_termination_ends_a_command_also_where_interrupts_are_ignored(
    is_ignored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    if is_ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run_command(command) == 143
    assert capsys.readouterr().err == "optima: terminated; the same command goes on from here\n"


STOPPING = """
import os, sys, time
from pathlib import Path
from optima.cli.console import run_command
from optima.processes import interruption

async def serve():
    import asyncio
    try:
        print("ready", flush=True)
        await asyncio.sleep(60)
    finally:
        for _ in range(10):
            await asyncio.sleep(0.05)

def wait():
    print("ready", flush=True)
    time.sleep(60)

def command():
    try:
        interruption.run(serve()) if sys.argv[1] == "loop" else wait()
    finally:
        print("stopping", flush=True)
        for _ in range(10):
            time.sleep(0.05)
        Path(sys.argv[2]).write_text("stopped")
    return 0

class Last:  # goes when the interpreter has put off the handlers of signals
    def __del__(self, tell=os.write, sleep=time.sleep):
        tell(1, b"last\\n")
        sleep(0.5)

last = Last()
sys.exit(run_command(command))
"""


@pytest.mark.parametrize("where", ["loop", "plain"])
@pytest.mark.parametrize(
    ("first", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_signals_that_come_while_the_first_is_obeyed_change_nothing(
    first: signal.Signals, status: int, word: str, where: str, tmp_path: Path
) -> None:
    script = tmp_path / "stopping.py"
    script.write_text(STOPPING)
    process = subprocess.Popen(
        [sys.executable, str(script), where, str(tmp_path / "done")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in (first, signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.stdout.readline() == "stopping\n"
    assert process.stdout.readline() == "last\n"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert (tmp_path / "done").read_text() == "stopped"
    assert err == f"optima: {word}; the same command goes on from here\n"
    assert process.returncode == status


def test_hangup_that_was_ignored_at_the_start_stays_so() -> None:
    def command() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        assert run_command(command) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "input/output error"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "file-size limit"),
        (errno.ESTALE, "network file system"),
        (errno.EMFILE, "too many open files"),
        (errno.ENOTDIR, "a file stands where a directory belongs"),
    ],
)
def test_what_a_disk_refuses_is_one_line_whoever_writes(
    number: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(OSError(number, os.strerror(number), "/some/file"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("optima: /some/file: ")
    assert text in line
    assert "run again" in line


@pytest.mark.parametrize(
    ("number", "text"), [(errno.EACCES, "no permission; give it"), (errno.EPERM, "not permitted")]
)
def test_what_this_user_may_not_read_is_wrong_input(
    number: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(OSError(number, os.strerror(number), "/some/file"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"optima: /some/file: {text}")
    assert line.endswith(", or give another directory")


def test_output_that_cannot_be_written_is_one_line() -> None:
    script = "import sys; from optima.cli.main import main; sys.exit(main(['tasks']))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "optima: standard output: the disk is full; free some space, then run again to go on\n"
    )
