"""Mathematical equivalence by math-verify; imported only where it can be killed (``worker``)."""

import re
import unicodedata
from collections.abc import Sequence

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from optima.tasks.texts import bare

MAX_CHARACTERS = 2000  # a longer one is no formula but a text; golds of MATH have up to 100 or so
_FACTOR = re.compile(r"(\d)\s*((?:\\left)?\()(?=\s*\\[dt]?frac)")  # 3(\frac12) is not mixed
_ROOT = re.compile("\u221a\\s*(?:\\(([^()]*)\\)|(\\d+(?:\\.\\d+)?|[A-Za-z]))")
_POWER = re.compile("[\u00b9\u00b2\u00b3\u2070\u2074-\u2079\u207b]+")
_CHARACTERS = str.maketrans({  # which math-verify does not read
    "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b7": r"\cdot ",
})  # fmt: skip
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
    text = bare(expression).replace("$", "").translate(_CHARACTERS)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    text = _POWER.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _FACTOR.sub(r"\1\\cdot\2", text)
    return list(parse(f"\\boxed{{{text}}}", TARGETS, parsing_timeout=None))
