"""A process that computes slow scores, because comparing expressions can hang.

``python -m optima.tasks.worker package.module:function`` reads one JSON object a line, {"answer",
"golds", "choices", "cpu_limit_s", "wall_limit_s"}, and writes {"score"}, the best over the golds,
or {"error"}. While a line is worked on, the kernel ends this process at either limit, also when the
parent is gone or sympy is deep in C. The first line written, {"ready": true} or {"error"}, says
whether the function could be imported. Paper section 4 (MATH).
"""

import importlib
import json
import logging
import resource
import signal
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

from optima.plugins import describe_error

MEMORY_LIMIT_BYTES = 4 << 30  # towers of powers would otherwise take the whole machine


def main(reference: str) -> None:
    """Serve scores of the function that ``reference`` names until the end of stdin."""
    logging.disable(logging.WARNING)  # math-verify warns about every call without a timeout
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin
    # the default action of both signals ends the process inside the kernel
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a function prints is no answer of ours

    def write(message: dict[str, object]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    module, _, path = reference.partition(":")
    try:
        found: object = importlib.import_module(module)
        score = cast(Callable[..., float], reduce(getattr, path.split("."), found))
    except (Exception, SystemExit) as error:  # noqa: BLE001  a module raises what its author calls
        write({"error": describe_error(error)})
        return
    write({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, job["cpu_limit_s"])
        signal.setitimer(signal.ITIMER_REAL, job["wall_limit_s"])
        try:
            result: dict[str, object] = {"score": _best(score, job)}
        except (Exception, SystemExit) as error:  # noqa: BLE001  this answer's error
            result = {"error": describe_error(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write(result)


def _best(score: Callable[..., float], job: dict[str, Any]) -> float:
    """Return the best score over the golds; those after a gold that scores 1 are not looked at."""
    best = 0.0
    for gold in job["golds"]:
        points = float(score(job["answer"], gold, job["choices"]))
        if not 0 <= points <= 1:  # nan is neither
            raise ValueError(f"gave {points!r}, which is not a number from 0 to 1")
        best = max(best, points)
        if best == 1.0:
            break
    return best


if __name__ == "__main__":
    main(sys.argv[1])
