r"""Answers in text: finding the marked ones, comparing two cheaply, and the text metrics.

Marks are ``<A>answer</A>`` (style ``tag``) and ``\boxed{answer}`` (style ``boxed``); a mark without
content or without its end counts as no mark. Mathematical equivalence is in ``judging``: it can
hang and so never runs here. Paper section 3 (marks), App. A (metrics).
"""

import re
import string
from collections import Counter
from fractions import Fraction
from typing import Literal

from optima.types import AnswerStyle

MAX_DIGITS = 1000  # a model that repeats a digit for ever states no number

_TAG = re.compile(r"<A>((?:(?!<A>).)*?)</A>", re.DOTALL)
_BOX = re.compile(r"\\f?boxed(?![A-Za-z])[ \t]*|\\fbox(?![A-Za-z])[ \t]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DELIMITER_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\s+")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox|textrm)\s*\{([^{}]*)\}")
_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?"
_PLAIN = re.compile(rf"({_NUMBER})(?:\s*/\s*(\d+))?\s*(?:%|°)?\.?")
_WITH_UNIT = re.compile(
    rf"({_NUMBER})(?:\s*/\s*(\d+))?\s*(?:%|°)?((?:\s+|-|[A-Za-z])[A-Za-z .\-]*)"
)
_ASSIGNMENT = re.compile(r"[A-Za-z\\ ]+=([^=]+)")
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?\)?\.?|\(?([A-Z])\s*[).:]\s+\S.*", re.DOTALL)
_MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}


def marked_answers(text: str, style: AnswerStyle) -> list[str]:
    """Return the contents of all complete, non-empty marks in ``text``, in order, stripped."""
    found = _TAG.findall(text) if style == "tag" else _boxes(text)
    return [answer.strip() for answer in found if answer.strip()]


def last_marked_answer(text: str, style: AnswerStyle) -> str | None:
    """Return the last marked answer of ``text``, None when nothing is marked."""
    answers = marked_answers(text, style)
    return answers[-1] if answers else None


def is_same_answer(a: str, b: str, style: AnswerStyle) -> bool:
    """Tell whether two answers are the same as text or as a number; cheap and never hangs.

    ``tag``: equal after ``normalise_text``. ``boxed``: equal numbers, or equal after
    ``normalise_latex``; different spellings of one expression (1/2 and 0.5 are numbers, but
    ``x+1`` and ``1+x`` are not) count as different.
    """
    if style == "tag":
        return normalise_text(a) == normalise_text(b)
    numbers = parse_number(a), parse_number(b)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    return normalise_latex(a) == normalise_latex(b)


def normalise_text(text: str) -> str:
    """Return the SQuAD form: lower case, no punctuation, no articles, single spaces.

    What would leave nothing (the choice "A", the band "The The", a bare "+") keeps its articles,
    and then its punctuation, so that different answers never meet in the empty string.
    """
    lowered = text.lower()
    bare = lowered.translate(_PUNCTUATION)
    for candidate in (_ARTICLES.sub(" ", bare), bare):
        if candidate.split():
            return " ".join(candidate.split())
    return " ".join(lowered.split())


def normalise_latex(text: str) -> str:
    r"""Return ``text`` without what does not change the meaning of a formula.

    Dollar signs, spacing, sizes of delimiters, ``\text`` wrappers, the variants of ``\frac``, and
    a full stop at the end go; ``\le`` stays what it is.
    """
    text = text.strip().removesuffix(".")
    text = text.replace("\\$", "").replace("$", "")
    text = _DELIMITER_SIZE.sub("", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = _LATEX_TEXT.sub(r"\1", text)
    text = text.replace("{,}", ",").replace("\\%", "%").replace("^{\\circ}", "^\\circ")
    return _LATEX_SPACE.sub("", text)


def parse_number(text: str, units: Literal["refuse", "ignore"] = "refuse") -> Fraction | None:
    r"""Return the number that ``text`` states, None when it states none or more than one.

    "$1,234.00", "1{,}234", "50%", "x = 5", "3/4", "\frac{3}{4}" are numbers; with
    ``units="ignore"`` so are "18 dollars" and "2 million". A comma that separates no group of three
    digits makes two numbers of one.
    """
    text = text.replace("\\!", "").replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2", text)
    if units == "ignore":
        text = _LATEX_TEXT.sub(r" \1", text)
    text = re.sub(r"\^\{?\\circ\}?", "", text)
    text = re.sub(r"[$€£]", "", re.sub(r"\\[,;: ]", " ", text)).replace("\u2212", "-").strip()
    if assignment := _ASSIGNMENT.fullmatch(text):
        text = assignment[1].strip()
    if match := _PLAIN.fullmatch(text):
        return _fraction(match[1], match[2])
    if units == "ignore" and (match := _WITH_UNIT.fullmatch(text)):
        words = match[3].lower().split()
        if len(match[3].strip()) == 1 and not match[3].startswith(" "):
            return None  # 5x is a term, not five of something
        value = _fraction(match[1], match[2])
        return value if value is None else value * _MULTIPLIERS.get(words[0] if words else "", 1)
    return None


def choice_letter(text: str) -> str | None:
    """Return the letter in "B", "b", "(B)", "B." or "B. text", in upper case; None without one."""
    match = _LETTER.fullmatch(text.strip())
    return (match[1] or match[2]).upper() if match else None


def f1_score(answer: str, gold: str) -> float:
    """Return the SQuAD F1 of two answers, in [0, 1]: overlap of their normalised words.

    F1 = 2 P R / (P + R),  P = shared / words of answer,  R = shared / words of gold
    """
    answer_words = normalise_text(answer).split()
    gold_words = normalise_text(gold).split()
    n_shared = sum((Counter(answer_words) & Counter(gold_words)).values())
    if n_shared == 0:
        return 0.0
    precision, recall = n_shared / len(answer_words), n_shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def exact_match(answer: str, gold: str) -> bool:
    """Tell whether ``answer`` is ``gold``; the form of the gold says how they are compared.

    One letter: the letters (see ``choice_letter``). A number: the numbers, units of the answer
    ignored. Anything else: the texts, but for case, white space and a full stop at the end; signs
    count, as "x > y" and "x < y" are different answers.
    """
    if re.fullmatch(r"[A-Z]", gold):
        return choice_letter(answer) == gold
    number = parse_number(gold)
    if number is not None:
        return parse_number(answer, units="ignore") == number
    plain = [" ".join(text.lower().split()).removesuffix(".") for text in (answer, gold)]
    return plain[0] == plain[1]


def _fraction(numerator: str, denominator: str | None) -> Fraction | None:
    digits = numerator.replace(",", "").rstrip(".")
    if not re.search(r"\d", digits) or max(len(digits), len(denominator or "")) > MAX_DIGITS:
        return None
    divisor = int(denominator or 1)
    return Fraction(digits) / divisor if divisor else None


def _boxes(text: str) -> list[str]:
    end_by_start = _closing_braces(text)
    found = []
    position = 0
    while match := _BOX.search(text, position):
        start = position = match.end()
        if text[start : start + 1] == "{":
            if start in end_by_start:
                position = end_by_start[start] + 1
                found.append(text[start + 1 : position - 1])
        elif match[0].endswith((" ", "\t")) and (bare := re.match(r"[^\s$\\{}]+", text[start:])):
            found.append(bare[0].rstrip(".,;"))  # "\boxed 2", as some MATH solutions have it
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Return the place of the closing brace for each opening one that has one, in one pass."""
    end_by_start = {}
    opened = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            end_by_start[opened.pop()] = match.start()
    return end_by_start
