"""The guard between a run and its child: when the run dies, everything below the guard dies.

Started as ``python -I guard.py FD -- argv...`` and made of the standard library only, as it is run
by file name. ``FD`` is the read end of a pipe whose write end the owner holds: anything on it, a
byte or end-of-file, means stop. The death of the owner is also seen directly, as a process that
it forked may keep the write end open. The guard is a subreaper, so descendants that
made their own session, or lost their parent, are still found below it. It ends with the status of
its child, or by the signal that ended the child.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

GRACE_S = 5.0  # between asking everything below to end and killing it
_KILL_S = 10.0  # longest wait for killed processes to vanish (one may hang in a driver)
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Run ``argv`` (owner's pipe, ``--``, command) and return the exit status to end with."""
    owner = int(argv[0])
    command = argv[argv.index("--") + 1 :]
    watched = select.poll()  # select() refuses descriptors over 1,023, which an owner may hand on
    watched.register(owner, select.POLLIN)
    with contextlib.suppress(OSError):  # not in old kernels; the pipe remains
        watched.register(os.pidfd_open(os.getppid()), select.POLLIN)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.set_inheritable(owner, False)
    wake_read, wake_write = os.pipe()  # not inheritable; signals end a wait at once
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    watched.register(wake_read, select.POLLIN)
    asked: list[int] = []
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda got, _: asked.append(got))
    signal.signal(signal.SIGCHLD, lambda *_: None)

    child = _start(command, libc)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # the child's own; kept open here they would hide its end of file
        os.dup2(nothing, fd)
    status: int | None = None
    while status is None and not asked:
        ready = {fd for fd, _ in watched.poll()}
        if wake_read in ready:
            os.read(wake_read, 4096)
        status = _reap(child)
        if ready - {wake_read}:
            break
    status = _end_all(child, status)
    return _exit_like(status)


def _start(command: list[str], libc: ctypes.CDLL) -> int:
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:  # the guard died before the line above
            os._exit(127)
        signal.set_wakeup_fd(-1)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 (no shell is what is wanted)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _reap(child: int) -> int | None:
    """Collect every dead process below; return the wait status of ``child`` once it is dead."""
    status = None
    while True:
        try:
            pid, got = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = got


def _end_all(child: int, status: int | None) -> int | None:
    """End everything below the guard: ask, wait, kill. Return the child's wait status."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, _KILL_S)):
        deadline = time.monotonic() + wait_s
        signalled: set[int] = set()
        while time.monotonic() < deadline:
            got = _reap(child)
            status = got if got is not None else status
            alive = _descendants()
            if not alive:
                return status
            for pid in alive:
                # Killed again and again: what forks meanwhile is met in the next round.
                if pid not in signalled or number == signal.SIGKILL:
                    signalled.add(pid)
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)
            time.sleep(_POLL_S)
    return status


def _descendants() -> list[int]:
    """Return the living processes below this one, whatever their session (zombies do not count)."""
    children: dict[int, list[int]] = {}
    dead: set[int] = set()
    for name in os.listdir("/proc"):  # noqa: PTH208 (a pathlib loop is slower on a busy host)
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                # pid, name in parentheses (it may hold anything), state, parent, and more
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        children.setdefault(int(parent), []).append(int(name))
        if state in (b"Z", b"X"):
            dead.add(int(name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        queue.extend(below)
        found.extend(pid for pid in below if pid not in dead)
    return found


def _exit_like(status: int | None) -> int:
    if status is None:
        return 128 + signal.SIGKILL
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
        return 128 + number
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
