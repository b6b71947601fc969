"""What all commands share: logging, and how errors and signals end a process.

Exit status: 0 done, 1 a run failed, 2 the input is wrong, 130 interrupted, 143 terminated.
"""

import io
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

from optima.errors import OptimaError, UsageError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


def run_command(command: Callable[[], int]) -> int:
    """Run a command and turn its errors into one line on stderr and an exit status."""
    is_terminated = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal of few letters shows the others by code
            stream.reconfigure(errors="backslashreplace")

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal is_terminated
        is_terminated = True
        # SIGTERM goes the way of Ctrl-C, for which asyncio cancels what runs. An exception raised
        # wherever the signal arrives may be logged by a transport or wrapped by a group of tasks.
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as in a script's background processes
            raise KeyboardInterrupt
        interrupt(number, frame)

    signal.signal(signal.SIGTERM, terminate)
    try:
        status = command()
        return EXIT_TERMINATED if is_terminated else status
    except UsageError as error:
        _complain(error)
        return EXIT_USAGE
    except OptimaError as error:
        _complain(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        what = "terminated" if is_terminated else "interrupted"
        _complain(f"{what}; the same command goes on from here")
        return EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `optima recipes | head`
        sys.stderr.close()
        return EXIT_FAILED


def set_up_logging(*, is_verbose: bool = False, is_quiet: bool = False) -> None:
    """Log to stderr: one line a stage; ``is_quiet`` leaves warnings and errors."""
    level = logging.DEBUG if is_verbose else logging.WARNING if is_quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("optima")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _complain(message: object) -> None:
    for line in str(message).splitlines() or [""]:
        print(f"optima: {line}", file=sys.stderr)
