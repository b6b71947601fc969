r"""Mathematical equivalence in a process of its own, because comparing expressions can hang.

``python -m optima.tasks.equivalence`` reads one JSON object a line, {"answer", "golds",
"cpu_limit_s", "wall_limit_s"}, and writes {"score"} or {"error"}. While a line is worked on, the
kernel ends this process at either limit, also when the parent is gone or sympy is deep in C. The
first line written, {"ready": true}, says that the imports are done. Paper section 4 (MATH).
"""

import json
import logging
import resource
import signal
import sys

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from optima.tasks.comparison import same_answer
from optima.tasks.texts import without_lead_in

MEMORY_LIMIT_BYTES = 4 << 30  # towers of powers would otherwise take the whole machine
TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())


def is_equivalent(answer: str, golds: list[str]) -> bool:
    r"""Tell whether ``answer`` means the same as one of ``golds``; may hang.

    Equal text or numbers are equal; anything else is for math-verify. An answer that cannot be
    parsed as mathematics is not equivalent; a failing comparison raises.
    """
    if any(same_answer(answer, gold, metric="math") for gold in golds):
        return True
    parsed = _parsed(answer)
    # timeout None: the package's own timeouts need the main thread's SIGALRM, ours are the limits
    return bool(parsed) and any(
        verify(_parsed(gold), parsed, timeout_seconds=None, raise_on_error=True) for gold in golds
    )


def main() -> None:
    """Serve comparisons until the end of stdin."""
    logging.disable(logging.WARNING)  # math-verify warns about every call without a timeout
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin
    # the default action of both signals ends the process inside the kernel
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _write({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, job["cpu_limit_s"])
        signal.setitimer(signal.ITIMER_REAL, job["wall_limit_s"])
        try:
            result: dict[str, object] = {"score": float(is_equivalent(job["answer"], job["golds"]))}
        except Exception as error:  # noqa: BLE001  whatever sympy raises is this answer's error
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(result)


def _parsed(expression: str) -> list[object]:
    text = without_lead_in(expression).replace("$", "")
    return list(parse(f"\\boxed{{{text}}}", TARGETS, parsing_timeout=None))


def _write(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
