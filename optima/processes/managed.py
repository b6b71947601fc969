"""A child process with an owner: started in its own session, logged, waited for with deadlines.

Between owner and child stands a guard (see ``guard``): when the owner ends, by whatever cause,
everything below ends with it. Exit statuses are read and explained, never ignored.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import IO, Self

from optima.errors import ProcessError
from optima.processes import guard
from optima.records import explain_disk_error, has_no_inodes

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = guard.LONGEST_S + 5.0
_FULL_DISK_BYTES = 1 << 20  # below it a process may have died of it without a word in its log
_TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024
_TAIL_WIDTH = 500
# The last line of a traceback, of one of several processes or of the only one.
_ERROR = re.compile(r"(\[rank\d+\]: ?)?[\w.]+(Error|Exception)(: .*)?$")


class ProcessTimeoutError(ProcessError):
    """A child process was still running at its deadline."""


@dataclass(eq=False)
class ManagedProcess:
    """A guarded child process; a context manager that starts it and stops it.

    Standard error, and standard output without ``pipes``, are appended to ``log_path``. With
    ``pipes`` the byte streams ``stdin`` and ``stdout`` talk to the child. The variable named by
    ``scratch_variable`` holds a directory for the child's sockets, which its guard removes.
    """

    argv: Sequence[str]
    _: KW_ONLY
    name: str
    log_path: Path
    env: Mapping[str, str] | None = field(default=None, repr=False)  # it may hold a key
    pipes: bool = False
    scratch_variable: str | None = None
    _guard: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _owner_fd: int | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def stdin(self) -> IO[bytes]:
        """What the child reads; only with ``pipes``."""
        return _pipe(self._running().stdin)

    @property
    def stdout(self) -> IO[bytes]:
        """What the child writes; only with ``pipes``."""
        return _pipe(self._running().stdout)

    @property
    def guard_pid(self) -> int:
        """Process id of the guard; the child is below it."""
        return self._running().pid

    def start(self) -> None:
        """Start the child. Raises ProcessError when even the guard cannot be started."""
        assert self._guard is None, f"{self.name} is started already"
        read_fd, write_fd = os.pipe()  # close-on-exec: no other child inherits the write end
        scratch, env = "", self.env
        python = [sys.executable, "-I", "-S"]  # without installed packages it starts at once
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            if self.scratch_variable is not None:
                scratch = tempfile.mkdtemp(prefix="optima-")
                env = {**(os.environ if env is None else env), self.scratch_variable: scratch}
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self._guard = subprocess.Popen(
                    [*python, guard.__file__, str(read_fd), scratch, "--", *self.argv],
                    stdin=subprocess.PIPE if self.pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if self.pipes else log,
                    stderr=log,
                    env=env,
                    pass_fds=(read_fd,),
                    start_new_session=True,  # Ctrl-C reaches the owner, who stops its children
                )
        except OSError as error:
            os.close(write_fd)
            if scratch:
                Path(scratch).rmdir()
            reason = explain_disk_error(error, self.log_path) or error
            raise ProcessError(f"{self.name}: cannot be started: {reason}") from error
        finally:
            os.close(read_fd)
        self._owner_fd = write_fd
        logger.debug("%s: started, log %s", self.name, self.log_path)

    def poll(self) -> int | None:
        """Return the exit status (negative: signal), None while the child runs."""
        return self._running().poll()

    def has_ended_within(self, timeout_s: float) -> bool:
        """Return whether the child has ended, as soon as it has or ``timeout_s`` are over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running().wait(timeout_s)
        return self.poll() is not None

    def wait(self, timeout_s: float) -> int:
        """Return the exit status. Raises ProcessTimeoutError when it takes over ``timeout_s``."""
        try:
            return self._running().wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ProcessTimeoutError(
                f"{self.name}: still running after {timeout_s:g} s, its deadline; "
                f"{self.log_excerpt()}"
            ) from error

    def check(self, timeout_s: float) -> None:
        """Wait for the child to end well. Raises ProcessError, with the log's end, if it fails."""
        status = self.wait(timeout_s)
        if status != 0:
            raise self.failure()

    def failure(self) -> ProcessError:
        """Return the error that says how the child ended and what it wrote last."""
        status = self.poll()
        ending = "is still running" if status is None else explain_status(status)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.log_path.parent).free
            if free < _FULL_DISK_BYTES or has_no_inodes(self.log_path):
                ending += "; the disk is full (free some space, then run again to go on)"
        return ProcessError(f"{self.name}: {ending}; {self.log_excerpt()}")

    def stop(self) -> None:
        """End the child and everything below it; does nothing when that has happened."""
        with self._lock:
            if self._guard is None:
                return
            self._release()
            try:
                self._guard.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                logger.warning("%s: its guard hangs, killing it", self.name)
                self._guard.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._guard.wait(_STOP_TIMEOUT_S)
            for stream in (self._guard.stdin, self._guard.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # unwritten bytes for a process that is gone
                        stream.close()

    def log_excerpt(self) -> str:
        """Return where the log is and its last lines, of this start only.

        The first error stands before them where it is further up: of several processes that one
        failed first, and the others and their launcher say more after it.
        """
        lines = self._log_lines()
        if not lines:
            return f"its log is empty: {self.log_path}"
        tail = lines[-_TAIL_LINES:]
        first = next((line for line in lines if _ERROR.match(line)), None)
        if first is not None and first not in tail:
            tail = [first, "...", *tail]
        return f"the end of {self.log_path}:\n" + "\n".join(f"  {line}" for line in tail)

    def log_tail(self, n_lines: int = _TAIL_LINES) -> list[str]:
        """Return the last lines that are not blank, of this start only, long ones cut."""
        return self._log_lines()[-n_lines:]

    def _log_lines(self) -> list[str]:
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return []
        lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n")]
        return [line[:_TAIL_WIDTH] for line in lines if line]

    def _release(self) -> None:
        if self._owner_fd is not None:
            with contextlib.suppress(OSError):  # the guard is gone already
                os.write(self._owner_fd, b"x")
            os.close(self._owner_fd)
            self._owner_fd = None

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._guard is not None, f"{self.name} is not started"
        return self._guard


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started without pipes"
    return stream


def explain_status(status: int) -> str:
    """Say in words how a process with this exit status ended."""
    if status >= 0:
        return f"exited with status {status}"
    hints = {
        signal.SIGKILL: " (out of memory?)",
        signal.SIGSEGV: " (a crash in native code)",
        signal.SIGBUS: " (a crash in native code, or /dev/shm is full)",
        signal.SIGILL: " (built for another processor?)",
    }
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"killed by signal {-status}"
    return f"killed by {number.name}{hints.get(number, '')}"
