"""The guards between a run and its child: when the run dies, everything below them dies.

Started as ``python -I -S guard.py FD SCRATCH -- argv...`` and made of the standard library only, as
it is run by file name. ``FD`` is the read end of a pipe whose write end the owner holds: anything
on it, a byte or end-of-file, means stop. The death of the owner is also seen directly, as a process
that it forked may keep the write end open. ``SCRATCH`` is a directory that is removed when all have
ended, or empty. A guard is a subreaper, so descendants that made their own session, or lost their
parent, are still found below it. It ends with the status of its child, or by the signal that ended
the child.

There are two of them, the inner one a fork of the outer one, so that a SIGKILL of either leaves
nothing behind: what the inner one had below it falls to the outer one, and the inner one sees the
outer one's death as that one would see the owner's.

Both guards killed at the same instant leave what the child itself started; the child dies by its
parent-death signal. Nothing that needs no rights closes this gap (looked at 2026-11-27): the signal
is lost at a fork and follows a thread, not a process, so that it cannot be handed down; a subreaper
must be alive; a cgroup is emptied by whoever writes ``cgroup.kill``; a PID namespace, which the
kernel does empty, needs user namespaces and a /proc of its own, which many clusters and containers
refuse, and gives servers other process ids than monitors and nvidia-smi show.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence

GRACE_S = 5.0  # between asking everything below to end and killing it
_KILL_S = 10.0  # longest wait for killed processes to vanish (one may hang in a driver)
_INNER_S = GRACE_S + _KILL_S + 1.0  # what the inner guard is given to end all below it
LONGEST_S = _INNER_S + _KILL_S  # longest that stopping can take
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

End = Callable[[int, int | None, bool], int | None]


def main(argv: list[str]) -> int:
    """Run ``argv`` (owner's pipe, scratch, ``--``, command); return the exit status to end with."""
    owner, scratch = int(argv[0]), argv[1]
    command = argv[argv.index("--") + 1 :]
    os.set_inheritable(owner, False)
    libc = ctypes.CDLL(None, use_errno=True)
    owners = [owner]
    with contextlib.suppress(OSError):  # not in old kernels; the pipe remains
        owners.append(os.pidfd_open(os.getppid()))
    outer_read, outer_write = os.pipe()  # its end of file is the outer guard's death

    def guard_inside() -> None:
        os.close(outer_write)
        os.close(owner)
        os.setsid()  # what is sent to the outer guard's group is not for this one
        inner = os.getpid()
        status = _guard(lambda: _execute(command, libc, inner), [outer_read], libc, _end_all)
        os._exit(_exit_like(status))

    status = _guard(guard_inside, owners, libc, _end_inner)
    if scratch:
        import shutil  # a third of what starting costs, and few need it

        shutil.rmtree(scratch, ignore_errors=True)
    return _exit_like(status)


def _guard(
    run: Callable[[], None], owners: Sequence[int], libc: ctypes.CDLL, end: End
) -> int | None:
    """Do ``run`` in a child until it ends or one of ``owners`` speaks; ``end`` what is left.

    ``end`` takes the child, its wait status if it is dead, and whether an owner spoke; it returns
    the status, as this does.
    """
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watched = select.poll()  # select() refuses descriptors over 1,023, which an owner may hand on
    for fd in owners:
        watched.register(fd, select.POLLIN)
    wake_read, wake_write = os.pipe()  # not inheritable; signals end a wait at once
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    watched.register(wake_read, select.POLLIN)
    asked: list[int] = []
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda got, _: asked.append(got))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = _fork(run)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # the child's own; kept open here they would hide its end of file
        os.dup2(nothing, fd)
    status: int | None = None
    is_left = False
    while status is None and not asked and not is_left:
        ready = {fd for fd, _ in watched.poll()}
        if wake_read in ready:
            os.read(wake_read, 4096)
        status = _reap(child)
        is_left = bool(ready - {wake_read})
    return end(child, status, is_left)


def _fork(run: Callable[[], None]) -> int:
    """Return the id of a child that does ``run`` and ends.

    Stop signals are blocked on both sides: none is lost before a side is ready for them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    child = os.fork()
    if child:
        return child
    try:
        run()
    finally:
        os._exit(127)


def _execute(command: list[str], libc: ctypes.CDLL, guard: int) -> None:
    """Become the command, in a session of its own; die with the guard above, dead or alive."""
    try:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:  # it died before it could be followed
            return
        signal.set_wakeup_fd(-1)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        os.execvp(command[0], command)  # noqa: S606 (no shell is what is wanted)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())


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


def _end_inner(child: int, status: int | None, _: bool) -> int | None:
    """Let the inner guard end what is below it, then kill what it left. Return its status."""
    deadline = time.monotonic() + _INNER_S
    if status is None:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGTERM)
    while status is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        status = _reap(child)
    return _signal_all(child, status, signal.SIGKILL, _KILL_S)


def _end_all(child: int, status: int | None, is_left: bool) -> int | None:
    """End everything below the guard: ask, wait, kill. Return the child's wait status.

    Who is left by the outer guard kills at once: whoever reads that one's status may go on to start
    a successor on the same device.
    """
    if not is_left:
        status = _signal_all(child, status, signal.SIGTERM, GRACE_S)
    return _signal_all(child, status, signal.SIGKILL, _KILL_S)


def _signal_all(child: int, status: int | None, number: int, wait_s: float) -> int | None:
    """Send a signal to everything below and wait until it is gone, or ``wait_s``."""
    deadline = time.monotonic() + wait_s
    signalled: set[int] = set()
    while time.monotonic() < deadline:
        got = _reap(child)
        status = got if got is not None else status
        alive = _descendants()
        if not alive:
            break
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
