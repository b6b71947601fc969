"""Guarded processes: nothing outlives its owner, and every ending is explained."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from optima.errors import ProcessError
from optima.processes.managed import ManagedProcess, ProcessTimeoutError, explain_status

# Starts a grandchild in a session of its own that starts another one and ignores SIGTERM.
NESTED = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    depth = int(sys.argv[2])
    with open(sys.argv[1], "a") as pids:
        pids.write(f"{os.getpid()}\\n")
    if depth:
        command = [sys.executable, __file__, sys.argv[1], str(depth - 1)]
        subprocess.Popen(command, start_new_session=True)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if depth == 1:
        os._exit(0)  # leaves an orphan
    time.sleep(600)
    """
)
OWNER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from optima.processes.managed import ManagedProcess
    process = ManagedProcess(
        sys.argv[2:], name="child", log_path=Path(sys.argv[1]), scratch_variable="SCRATCH"
    )
    process.start()
    print("started", flush=True)
    time.sleep(600)
    """
)


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def wait_until(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


def nested(tmp_path: Path, pids: Path) -> list[str]:
    script = tmp_path / "nested.py"
    script.write_text(NESTED)
    return [sys.executable, str(script), str(pids), "2"]


def test_nothing_outlives_an_owner_that_was_killed(tmp_path: Path, log: Path) -> None:
    pids = tmp_path / "pids"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log), *nested(tmp_path, pids)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    )
    wait_until(lambda: len(read_pids(pids)) == 3)
    guards = [child.pid for child in psutil.Process(owner.pid).children()]
    assert len(guards) == 1
    owner.kill()
    owner.wait()
    assert owner.stdout is not None
    owner.stdout.close()
    wait_until(lambda: not any(is_running(pid) for pid in [*guards, *read_pids(pids)]))


def test_end_of_a_child_is_noticed_as_soon_as_it_is_there(log: Path) -> None:
    started = time.monotonic()
    with ManagedProcess(["sleep", "0.5"], name="child", log_path=log) as process:
        assert not process.has_ended_within(0.01)
        assert process.has_ended_within(60)
        assert time.monotonic() - started < 30
        assert process.poll() == 0


def test_stop_ends_orphans_in_sessions_of_their_own(tmp_path: Path, log: Path) -> None:
    pids = tmp_path / "pids"
    with ManagedProcess(nested(tmp_path, pids), name="nested", log_path=log):
        wait_until(lambda: len(read_pids(pids)) == 3)
        time.sleep(0.3)  # lets the last one ignore SIGTERM
    assert not any(is_running(pid) for pid in read_pids(pids))


def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path, log: Path) -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        "print(p.pid, flush=True)"
    )
    with ManagedProcess(python(code), name="child", log_path=log) as process:
        assert process.wait(20) == 0
        assert not is_running(int(log.read_text()))


def test_child_dies_when_its_guard_is_killed(log: Path) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with ManagedProcess(python(code), name="child", log_path=log) as process:
        wait_until(lambda: log.exists() and bool(log.read_text().strip()))
        os.kill(process.guard_pid, signal.SIGKILL)
        wait_until(lambda: not is_running(int(log.read_text())))


def _guards(outer: int) -> list[int]:
    """Return the two guards, the outer one first."""
    inner = psutil.Process(outer).children()
    assert len(inner) == 1
    return [outer, inner[0].pid]


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
def test_nothing_outlives_a_guard_that_was_killed(tmp_path: Path, log: Path, which: int) -> None:
    pids = tmp_path / "pids"
    with ManagedProcess(nested(tmp_path, pids), name="nested", log_path=log) as process:
        wait_until(lambda: len(read_pids(pids)) == 3)
        guards = _guards(process.guard_pid)
        os.kill(guards[which], signal.SIGKILL)
        wait_until(lambda: not any(is_running(pid) for pid in [*guards, *read_pids(pids)]))
        assert process.wait(1) == -signal.SIGKILL


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
def test_nothing_outlives_an_owner_killed_together_with_a_guard(
    tmp_path: Path, log: Path, which: int
) -> None:
    pids = tmp_path / "pids"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log), *nested(tmp_path, pids)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    wait_until(lambda: len(read_pids(pids)) == 3)
    guards = _guards(psutil.Process(owner.pid).children()[0].pid)
    owner.kill()
    os.kill(guards[which], signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not any(is_running(pid) for pid in [*guards, *read_pids(pids)]))


def test_child_dies_when_owner_and_both_guards_are_killed_at_once(
    tmp_path: Path, log: Path
) -> None:
    # What the child started itself is left then, as the guards' docstring says: here it is nothing.
    told = tmp_path / "told"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log), *python(code, str(told))],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    wait_until(lambda: told.exists() and bool(told.read_text()))
    processes = [owner.pid, *_guards(psutil.Process(owner.pid).children()[0].pid)]
    for pid in processes:  # stopped first, so that none sees another's death
        os.kill(pid, signal.SIGSTOP)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not any(is_running(pid) for pid in [*processes, int(told.read_text())]))


def test_child_is_asked_once_to_end(tmp_path: Path, log: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "print('ready', flush=True)\nfor _ in range(30): time.sleep(0.1)\nprint('done')"
    )
    with ManagedProcess(python(code), name="child", log_path=log):
        wait_until(lambda: log.exists() and "ready" in log.read_text())
    assert log.read_text().split() == ["ready", "asked", "done"]


def test_stop_works_while_a_forked_process_holds_the_pipe(log: Path) -> None:
    with ManagedProcess(python("import time; time.sleep(600)"), name="child", log_path=log):
        fork = os.fork()
        if fork == 0:
            time.sleep(30)
            os._exit(0)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    os.kill(fork, signal.SIGKILL)
    os.waitpid(fork, 0)


@pytest.mark.parametrize("status", [0, 1, 77])
def test_exit_status_of_the_child_is_passed_on(log: Path, status: int) -> None:
    with ManagedProcess(python(f"raise SystemExit({status})"), name="c", log_path=log) as process:
        assert process.wait(20) == status


def test_signal_that_ended_the_child_is_passed_on_and_explained(log: Path) -> None:
    code = "import os, signal; print('loading'); os.sys.stdout.flush(); os.kill(os.getpid(), 9)"
    with ManagedProcess(python(code), name="trainer", log_path=log) as process:
        with pytest.raises(ProcessError, match="trainer: killed by SIGKILL") as got:
            process.check(20)
    assert "(out of memory?)" in str(got.value)
    assert "  loading" in str(got.value)


def test_full_disk_is_named_where_a_log_could_not_say_it(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ManagedProcess(python("raise SystemExit(1)"), name="c", log_path=log) as process:
        process.wait(20)
        assert "disk is full" not in str(process.failure())
        nearly_full = shutil.disk_usage(log.parent)._replace(free=4096)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
        assert "exited with status 1; the disk is full" in str(process.failure())


def test_error_ends_with_the_last_lines_of_this_start_only(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("a line of an earlier start\n")
    code = "import sys; [print(f'line {i}') for i in range(50)]; sys.exit(3)"
    with ManagedProcess(python(code), name="c", log_path=log) as process:
        with pytest.raises(ProcessError, match="c: exited with status 3") as got:
            process.check(20)
    lines = str(got.value).splitlines()
    assert lines[-1] == "  line 49"
    assert str(log) in lines[0]
    assert len(lines) == 21
    with ManagedProcess(python("raise SystemExit(4)"), name="c", log_path=log) as process:
        with pytest.raises(ProcessError, match="its log is empty"):
            process.check(20)


def test_wait_has_a_deadline(log: Path) -> None:
    with ManagedProcess(python("import time; time.sleep(600)"), name="c", log_path=log) as process:
        with pytest.raises(ProcessTimeoutError, match=r"c: still running after 0\.2 s"):
            process.wait(0.2)
        assert process.poll() is None


# Leaves a socket in its scratch directory and says on standard output where that is.
LEAVES_A_SOCKET = """
import os, socket, sys, time
socket.socket(socket.AF_UNIX).bind(os.environ["SCRATCH"] + "/socket")
open(sys.argv[1], "w").write(os.environ["SCRATCH"])
time.sleep(float(sys.argv[2]))
"""


def test_scratch_directory_goes_when_the_child_has_ended(tmp_path: Path, log: Path) -> None:
    told = tmp_path / "told"
    argv = python(LEAVES_A_SOCKET, str(told), "0")
    with ManagedProcess(argv, name="child", log_path=log, scratch_variable="SCRATCH") as process:
        process.check(20)
    assert told.read_text()
    assert not Path(told.read_text()).exists()


def test_scratch_directory_goes_when_the_owner_was_killed(tmp_path: Path, log: Path) -> None:
    told = tmp_path / "told"
    argv = python(OWNER, str(log), *python(LEAVES_A_SOCKET, str(told), "600"))
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as owner:
        wait_until(lambda: told.exists() and told.read_text() != "")
        scratch = Path(told.read_text())
        assert (scratch / "socket").is_socket()
        owner.kill()
    wait_until(lambda: not scratch.exists())


def test_pipes_carry_bytes_both_ways_and_end_of_file(log: Path) -> None:
    code = "import sys; sys.stdout.write(sys.stdin.read().upper())"
    with ManagedProcess(python(code), name="c", log_path=log, pipes=True) as process:
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read() == b"HELLO"
        assert process.wait(20) == 0


def test_owner_sees_end_of_file_when_a_piped_child_dies(log: Path) -> None:
    with ManagedProcess(python("import os; os._exit(5)"), name="c", log_path=log, pipes=True) as p:
        assert p.stdout.read() == b""
        assert p.wait(20) == 5


def test_no_descriptor_of_the_guard_reaches_the_child(log: Path) -> None:
    code = (
        "import os\nfor fd in range(3, 100):\n try: os.fstat(fd); print(fd)\n except OSError: pass"
    )
    with ManagedProcess(python(code), name="c", log_path=log) as process:
        assert process.wait(20) == 0
    assert log.read_text() == ""


def test_missing_program_is_named_in_the_log(log: Path) -> None:
    with ManagedProcess(["/nowhere/python"], name="c", log_path=log) as process:
        with pytest.raises(ProcessError, match="cannot start /nowhere/python"):
            process.check(20)


def test_statuses_are_explained() -> None:
    assert explain_status(2) == "exited with status 2"
    assert explain_status(-11) == "killed by SIGSEGV (a crash in native code)"
    assert explain_status(-15) == "killed by SIGTERM"


def test_first_error_is_named_when_a_launcher_says_much_after_it(tmp_path: Path) -> None:
    code = (
        "print('[rank1]: FileNotFoundError: cache.arrow')\n"
        "for k in range(40): print('closing process', k)\nraise SystemExit(1)"
    )
    process = ManagedProcess(python(code), name="training", log_path=tmp_path / "log")
    with pytest.raises(ProcessError) as failed, process:
        process.check(20.0)
    lines = str(failed.value).splitlines()
    assert lines[1:3] == ["  [rank1]: FileNotFoundError: cache.arrow", "  ..."]
    assert lines[-1] == "  closing process 39"


@pytest.mark.parametrize("is_alive", [True, False])
def test_child_of_a_guard_that_is_dead_already_does_not_start(
    is_alive: bool, tmp_path: Path
) -> None:
    code = (
        "import ctypes, sys; from optima.processes import guard; "
        "guard._execute(['touch', sys.argv[1]], ctypes.CDLL(None), int(sys.argv[2]))"
    )
    started = tmp_path / "started"
    above = os.getpid() if is_alive else os.getpid() + 1
    subprocess.run([sys.executable, "-c", code, str(started), str(above)], check=True, timeout=60)
    assert started.exists() is is_alive
