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
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d{1,50})\}|(\d))")
_E_NOTATION = re.compile(r"(?<![\w.}])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.{^])")
# arguments of one character, which TeX takes without braces
_BINOMIAL = re.compile(r"\\[dt]?binom\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
_NTH_ROOT = re.compile(r"\\sqrt\s*(\[[^\[\]]*\])\s*(\w)")
_NEGATIVE_POWER = re.compile(r"\^(-(?:\d+|[A-Za-z]))")
_BOTH_SIGNS = re.compile(r"(?<!\\)\{[^{}]*\\pm(?![A-Za-z])")  # within a fraction, or a root
_CHARACTERS = str.maketrans({  # which math-verify does not read
    "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b7": r"\cdot ",
    "\u00b1": r"\pm ", "\u2264": r"\le ", "\u2265": r"\ge ",
})  # fmt: skip
_OR = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*,?\s*or\s*\}|\bor\b|\\(?:lor|vee)(?![A-Za-z])")
_BOUND = re.compile(r"([A-Za-z])\s*(<|>|\\leq?(?![A-Za-z])|\\geq?(?![A-Za-z]))\s*([^<>=]+)")
_PYTHON_POWER = re.compile(r"(?<=[\w)])\s*\*\*\s*(-?\d+|[A-Za-z])(?![\w(])")
_TUPLE = re.compile(r"\s*(?:\\left\s*)?\([^;\[\]]*,[^;\[\]]*\)\s*")
_LIST = re.compile(r"[^()\[\];]*,[^()\[\];]*(?<!\\\})")  # neither a set nor a tuple
TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())


def equivalence(answer: str, gold: str, choices: Sequence[str] = ()) -> float:
    """Return 1 when ``answer`` means the same as ``gold``, else 0; may hang.

    What texts and numbers tell is decided before it (``metrics``). What cannot be parsed as
    mathematics is not equivalent; a failing comparison raises.
    """
    if len(answer) > MAX_CHARACTERS:
        return 0.0
    # A tuple has an order, which "4, 3" has not for math-verify, so it would depend on the gold.
    if _TUPLE.fullmatch(bare(gold)) and _LIST.fullmatch(bare(answer)):
        answer = f"({bare(answer)})"
    elif _TUPLE.fullmatch(bare(answer)) and _LIST.fullmatch(bare(gold)):
        gold = f"({bare(gold)})"
    meant = _parsed(answer)
    # timeout None: the package's own timeouts need the main thread's SIGALRM, ours are the limits
    # an interval and its inequality are the same, whichever of them is the gold
    options = {"allow_set_relation_comp": True, "timeout_seconds": None, "raise_on_error": True}
    return float(bool(meant) and verify(_parsed(gold), meant, **options))


def _parsed(expression: str) -> list[object]:
    text = bare(expression).replace("$", "").translate(_CHARACTERS)
    text = _PYTHON_POWER.sub(r"^{\1}", _united(text))
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    text = _POWER.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _FACTOR.sub(r"\1\\cdot\2", text).replace(r"\varnothing", r"\emptyset")
    text = _E_NOTATION.sub(r"\1\\cdot 10^{\2}", _REPEATING.sub(_fraction, text))
    text = _BINOMIAL.sub(lambda m: rf"\binom{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _NTH_ROOT.sub(r"\\sqrt\1{\2}", _NEGATIVE_POWER.sub(r"^{\1}", text))
    if text.count(r"\pm") == 1 and _BOTH_SIGNS.search(text):
        text = ", ".join(text.replace(r"\pm", sign) for sign in "+-")
    return list(parse(f"\\boxed{{{text}}}", TARGETS, parsing_timeout=None))


def _united(text: str) -> str:
    r"""Return bounds of one variable that "or" joins as a union: (-\infty,2)\cup (3,\infty)."""
    bounds = [_BOUND.fullmatch(part.strip(" ,;\\")) for part in _OR.split(text)]
    if len(bounds) < 2 or len({bound and bound[1] for bound in bounds} - {None}) != 1:
        return text
    sets = []
    for bound in bounds:
        if bound is None:
            return text
        relation, limit = bound[2], bound[3].strip()
        is_above, is_closed = relation[:2] in (">", r"\g"), relation not in "<>"
        sets.append(
            rf"{'[' if is_closed else '('}{limit},\infty)"
            if is_above
            else rf"(-\infty,{limit}{']' if is_closed else ')'}"
        )
    return r"\cup ".join(sets)


def _fraction(decimal: re.Match[str]) -> str:
    r"""Return a repeating decimal as a fraction: 0.1\overline{7} = (17 - 1) / 90."""
    fixed, repeated = decimal[1] + decimal[2], decimal[3] or decimal[4]
    numerator = int(fixed + repeated) - int(fixed or 0)
    return rf"\frac{{{numerator}}}{{{'9' * len(repeated)}{'0' * len(decimal[2])}}}"
