"""What all commands share: logging, and how errors and signals end a process.

Exit status: 0 done, 1 a run failed, 2 the input is wrong, 130 interrupted (SIGINT), 143 terminated
(SIGTERM), 129 hung up (SIGHUP).
"""

import asyncio
import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable

from optima.errors import OptimaError, UsageError
from optima.processes.interruption import obeying_signals

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
_ENDINGS: dict[int | None, str] = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def run_command(command: Callable[[], int]) -> int:
    """Run a command and turn its errors into one line on stderr and an exit status.

    The first signal decides the status; those that come while it is obeyed change nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal of few letters shows the others by code
            stream.reconfigure(errors="backslashreplace")
    with obeying_signals() as first_signal:
        try:
            status = _run(command)
        except (KeyboardInterrupt, asyncio.CancelledError):
            status = EXIT_INTERRUPTED
            what = _ENDINGS.get(first_signal(), "interrupted")
            complain(f"{what}; the same command goes on from here")
        number = first_signal()
        # A command may end well on Ctrl-C, as `optima view` does.
        is_well = number == signal.SIGINT and status == 0
        return status if number is None or is_well else 128 + number


def _run(command: Callable[[], int]) -> int:
    try:
        status = command()
        sys.stdout.flush()
        return status
    except UsageError as error:
        complain(error)
        return EXIT_USAGE
    except OptimaError as error:
        complain(error)
        return EXIT_FAILED
    except BrokenPipeError:  # the reader of our output went away, as in `optima recipes | head`
        sys.stderr.close()
        return EXIT_FAILED
    except OSError as error:  # of the writers that know no better, and of the output itself
        from optima.records import THEN, explain_disk_error

        said = explain_disk_error(error)  # one that names no file is of the output
        if error.errno == errno.ENAMETOOLONG:
            complain(f"{str(error.filename)[:60]}...: is too long for a name; give a shorter one")
            return EXIT_USAGE
        if said is None and error.filename is None:
            raise
        if isinstance(error, PermissionError) and error.filename is not None:
            complain((said or "").removesuffix(THEN))
            return EXIT_USAGE
        complain(said or f"{error.filename}: {(error.strerror or '').lower()}; give another")
        _forget_output()
        return EXIT_FAILED


def _forget_output() -> None:
    """Keep the interpreter from a second complaint about output that could not be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def set_up_logging(*, is_verbose: bool = False, is_quiet: bool = False) -> None:
    """Log to stderr: one line a stage; ``is_quiet`` leaves warnings and errors."""
    level = logging.DEBUG if is_verbose else logging.WARNING if is_quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("optima")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def complain(message: object) -> None:
    """Print a message on stderr; a terminal that is gone takes none, and no control character."""
    with contextlib.suppress(OSError):
        for line in re.split(r"\r\n?|\n", str(message).rstrip("\r\n")):
            shown = "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
            print(f"optima: {shown}", file=sys.stderr)
