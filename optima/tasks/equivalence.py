"""Mathematical equivalence by math-verify; imported only where it can be killed (``worker``)."""

import re
from collections.abc import Sequence

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from optima.tasks.texts import bare

MAX_CHARACTERS = 2000  # a longer one is no formula but a text; golds of MATH have up to 100 or so
_FACTOR = re.compile(r"(\d)\s*((?:\\left)?\()(?=\s*\\[dt]?frac)")  # 3(\frac12) is not mixed
TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())


def equivalence(answer: str, gold: str, choices: Sequence[str] = ()) -> float:
    """Return 1 when ``answer`` means the same as ``gold``, else 0; may hang.

    What texts and numbers tell is decided before it (``metrics``). What cannot be parsed as
    mathematics is not equivalent; a failing comparison raises.
    """
    meant = _parsed(answer) if len(answer) <= MAX_CHARACTERS else []
    # timeout None: the package's own timeouts need the main thread's SIGALRM, ours are the limits
    return float(
        bool(meant) and verify(_parsed(gold), meant, timeout_seconds=None, raise_on_error=True)
    )


def _parsed(expression: str) -> list[object]:
    text = _FACTOR.sub(r"\1\\cdot\2", bare(expression).replace("$", ""))
    return list(parse(f"\\boxed{{{text}}}", TARGETS, parsing_timeout=None))
