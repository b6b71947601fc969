"""Signals that end a command: the first is obeyed, later ones change nothing.

SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once, or cancel what ``run`` runs. While that is
obeyed (servers stopped, records closed) further ones are ignored, so that nothing is left half
stopped and the exit status stays that of the first. Every wait of stopping has a deadline.
"""

import asyncio
import atexit
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_S = 0.2
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Obeyed:
    """The first signal that came, and how to cancel what runs in an event loop."""

    first: int | None = None
    cancel: Callable[[], object] | None = None


@contextlib.contextmanager
def obeying_signals() -> Iterator[Callable[[], int | None]]:
    """Obey the first signal within the context; the value tells which came, None for none.

    A signal that is ignored at the start (``nohup``, a script's background processes) stays so,
    SIGTERM aside. Once one came, the handlers stay for the rest of the process, which is ending.
    """
    before = {number: signal.getsignal(number) for number in NUMBERS}
    _Obeyed.first = _Obeyed.cancel = None
    for number, handler in before.items():
        if handler is not signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, _obey)
    try:
        yield _first
    finally:
        if _first() is None:
            for number, handler in before.items():
                signal.signal(number, handler)
        else:
            atexit.register(_ignore)


def _first() -> int | None:
    return _Obeyed.first


def _ignore() -> None:
    """Ignore signals to the end: the interpreter would die of one once it puts our handlers off."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Do what ``asyncio.run`` does; a signal cancels ``main``, and is raised when it has ended.

    In a notebook, where this thread has a loop already, another thread runs ``main`` meanwhile.
    """
    if asyncio._get_running_loop() is not None:
        return _run_beside(main)
    try:
        result = asyncio.run(_cancellable(main))
    except asyncio.CancelledError:
        if _Obeyed.first is not None:
            raise KeyboardInterrupt from None
        raise
    if _Obeyed.first is not None:  # it came when all was done, or was swallowed below
        raise KeyboardInterrupt
    return result


def _run_beside(main: Coroutine[Any, Any, T]) -> T:
    is_waited_for, begin = False, threading.Event()

    def work() -> T:
        begin.wait()
        if not is_waited_for:  # the interrupt came while this thread was started
            main.close()
            raise asyncio.CancelledError
        return asyncio.run(_cancellable(main))

    with ThreadPoolExecutor(1, "optima") as pool:
        try:
            running = pool.submit(work)
            is_waited_for = True
            begin.set()
            while not wait([running], _POLL_S).done:  # a wait without an end hears of no signal
                pass
        except KeyboardInterrupt:
            begin.set()
            while is_waited_for and not wait([running], _POLL_S).done:
                if (cancel := _Obeyed.cancel) is not None:  # once: what is closing is not disturbed
                    _Obeyed.cancel = None
                    cancel()
            raise
        return running.result()


async def _cancellable(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    _Obeyed.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        return await main
    finally:
        _Obeyed.cancel = None


def _obey(number: int, _: FrameType | None) -> None:
    if _Obeyed.first is not None:
        return
    _Obeyed.first = number
    if _Obeyed.cancel is not None:
        _Obeyed.cancel()
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise KeyboardInterrupt from None
    for task in asyncio.all_tasks(loop):  # an event loop that ``run`` did not start
        loop.call_soon_threadsafe(task.cancel)
