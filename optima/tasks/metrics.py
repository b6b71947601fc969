r"""Metrics: how an answer is scored, and which answers are the same; one rule for both.

Scores, agreement in a talk and votes go by one ``Metric``. What is decided here is cheap and never
hangs; a score that could hang is computed where it can be killed (``judging``).
Paper section 3 (agreement), App. A (metrics); docs/decisions/0003-comparing-answers.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from optima.errors import OptimaError
from optima.plugins import describe_error, is_reference
from optima.tasks.choices import choice_letter, named_choice, words_of
from optima.tasks.numbers import is_ordinal, number_and_unit, parse_number, stated_number
from optima.tasks.texts import (
    f1_score,
    normalise_latex,
    normalise_text,
    plain_text,
    without_lead_in,
)

MIN_F1 = 0.9  # above it two texts are the same answer
# math-verify rounds to six digits; nearer numbers, such as 0.333333 and 1/3, are left to it
NEAR = Fraction(1, 10**5)
UNITS = ("", "dollars", "dollar", "percent")  # what a number may carry where the answer does not

_BASED = re.compile(r"([0-9A-Fa-f]+)_(?:\{(\d+)\}|(\d+))")  # 110_2, a number in base 2
_ON_THE_HOUR = re.compile(r"0*(\d+):0+")
_LATEX_LETTER = re.compile(r"(?:\\(?:text|mathrm|textbf|mathbf)\{)?\(?([A-Z])\)?\}?")


class JudgeError(OptimaError):
    """The score of one answer could not be computed; the message names the answer and the cause."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How an answer is scored against a gold one, and which two answers are the same by it.

    All functions take two texts that are not empty, and the texts of the problem's choices.
    ``score(answer, gold, choices)`` is in [0, 1]. ``is_same(a, b, choices)`` is symmetric and
    agrees with it: what is the same as the gold scores 1. Without it two answers are the same when
    each scores 1 against the other. ``adds_nothing`` tells whether an unmarked text, which is the
    same as an answer, says no more than that; without it the words must be equal.

    A score that may hang, or that needs what is slow to import, is given by its place instead,
    ``"package.module:function"``: processes that can be killed import and call it. Where there is
    ``is_same`` too, its True scores 1 and its False 0; only what it leaves open, None, is asked.
    """

    name: str
    score: Callable[[str, str, Sequence[str]], float] | str
    is_same: Callable[[str, str, Sequence[str]], bool | None] | None = None
    adds_nothing: Callable[[str, str, Sequence[str]], bool] | None = None

    def __post_init__(self) -> None:
        if not callable(self.score) and not is_reference(str(self.score)):
            raise ValueError(
                f"metric {self.name}: score is {self.score!r}; give a function, or the place of "
                "one, package.module:function"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def is_slow(self) -> bool:
        """Whether the score is computed in processes that can be killed."""
        return isinstance(self.score, str)

    def points(self, answer: str, gold: str, choices: Sequence[str] = ()) -> float:
        """Return the score; raises ``JudgeError`` where there is none in [0, 1]."""
        if isinstance(self.score, str):
            raise TypeError(f"metric {self.name}: is slow, so its scores are for the judge")
        try:
            value = self.score(answer, gold, choices)
        except Exception as error:
            raise JudgeError(
                self._failed(answer, gold, f"raised {describe_error(error)}")
            ) from error
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise JudgeError(
                self._failed(answer, gold, f"gave {value!r}, which is not a number from 0 to 1")
            )
        return float(value)

    def same(self, a: str, b: str, choices: Sequence[str] = ()) -> bool | None:
        """Tell whether two answers are the same by the rule that scores the task.

        Symmetric; every text but the empty one is the same as itself. None, of a slow metric only,
        means that the judge has to compare them. Raises ``JudgeError``.
        """
        if a == b:
            return bool(a)
        if not a.strip() or not b.strip():
            return False
        if self.is_same is not None:
            try:
                return self.is_same(a, b, choices)
            except Exception as error:
                raise JudgeError(self._failed(a, b, f"raised {describe_error(error)}")) from error
        if self.is_slow:
            return None
        return self.points(a, b, choices) == 1.0 == self.points(b, a, choices)

    def says_only(self, text: str, answer: str, choices: Sequence[str] = ()) -> bool:
        """Tell whether an unmarked ``text`` means ``answer`` and nothing more."""
        if self.same(text, answer, choices) is not True:
            return False
        if self.adds_nothing is None:
            return normalise_text(text) == normalise_text(answer)
        return self.adds_nothing(text, answer, choices)

    def _failed(self, a: str, b: str, what: str) -> str:
        return f"answer {shown(a)} against {shown(b)}: metric {self.name} {what}"


def shown(text: str) -> str:
    """Return an answer for a message, the beginning of a long one."""
    return repr(text) if len(text) <= 80 else f"{text[:77]!r}..."


def _f1(answer: str, gold: str, choices: Sequence[str]) -> float:
    return f1_score(answer, gold)


def _same_words(a: str, b: str, choices: Sequence[str]) -> bool:
    return f1_score(a, b) > MIN_F1


def exact_match(answer: str, gold: str, choices: Sequence[str] = ()) -> bool:
    """Tell whether ``answer`` is ``gold``; the choices, or the gold's form, say how.

    With choices: the only choice that the answer names. A gold of one letter: the letters (see
    ``choice_letter``). A number: the only number that the answer states, its unit ignored. Anything
    else: the texts, but for case, white space and dress; signs count, as "x > y" and "x < y" are
    different answers.
    """
    if choices and (index := named_choice(gold, choices)) is not None:
        return named_choice(answer, choices) == index
    if re.fullmatch(r"[A-Z]", gold):
        return choice_letter(answer) == gold
    number = parse_number(gold)
    if number is not None:
        return stated_number(answer) == number
    return plain_text(gold) in (plain_text(answer), plain_text(without_lead_in(answer)))


def _same_key(a: str, b: str, choices: Sequence[str]) -> bool:
    return _key(a, choices) == _key(b, choices)


def _key(answer: str, choices: Sequence[str]) -> tuple[str, int | Fraction | str]:
    """Return what exact match goes by: the choice, the number, the letter, or the text."""
    if choices:
        index = named_choice(answer, choices)
        return ("text", plain_text(answer)) if index is None else ("choice", index)
    number = stated_number(answer)
    if number is not None:
        return "number", number
    letter = choice_letter(answer)
    return ("text", plain_text(without_lead_in(answer))) if letter is None else ("letter", letter)


def _same_mathematics(a: str, b: str, choices: Sequence[str]) -> bool | None:
    """Tell what texts and numbers tell; None leaves the rest to math-verify."""
    a, b = without_lead_in(a), without_lead_in(b)
    if normalise_latex(a) == normalise_latex(b) or plain_text(a) == plain_text(b):
        return True
    if is_ordinal(a) or is_ordinal(b):  # the 18th is not 18
        return False
    numbers = parse_number(a), parse_number(b)
    if numbers[0] is not None and numbers[1] is not None:
        is_percentage = "%" in a + b  # 50% is 50, and 0.5 for the judge
        is_near = abs(numbers[0] - numbers[1]) < NEAR
        return True if numbers[0] == numbers[1] else None if is_near or is_percentage else False
    values = number_and_unit(a), number_and_unit(b)
    if values[0] is not None and values[1] is not None and values[0][0] == values[1][0]:
        units = {values[0][1], values[1][1]} - {""}
        return True if len(units) <= 1 else None  # 5 km and 5 m are for the judge
    based = [_BASED.fullmatch(normalise_latex(text)) for text in (a, b)]
    if based[0] and based[1]:  # math-verify does not look at the base
        digits = [(match[1].lower(), match[2] or match[3]) for match in based if match]
        return digits[0] == digits[1]
    clocks = [_ON_THE_HOUR.fullmatch(normalise_latex(text)) for text in (a, b)]
    if clocks[0] or clocks[1]:  # which is no ratio, as it would divide by zero
        return bool(clocks[0] and clocks[1] and clocks[0][1] == clocks[1][1])
    letters = [_LATEX_LETTER.fullmatch(text.strip()) for text in (a, b)]
    if letters[0] and letters[1]:
        return True if letters[0][1] == letters[1][1] else None
    return None


def _adds_no_unit(text: str, answer: str, choices: Sequence[str]) -> bool:
    if choices:
        return _adds_no_word(text, answer, choices)
    numbers = number_and_unit(text), number_and_unit(answer)
    return numbers[0] is None or numbers[1] is None or numbers[0][1] in (*UNITS, numbers[1][1])


def _adds_no_word(text: str, answer: str, choices: Sequence[str]) -> bool:
    if not choices:
        if number_and_unit(text) is None or number_and_unit(answer) is None:
            return normalise_text(text) == normalise_text(answer)
        return _adds_no_unit(text, answer, ())
    index = named_choice(answer, choices)
    if index is None:
        return True  # then both are the same text
    words = set(words_of(re.sub(r"[()\[\]]", " ", text)))
    own = set(words_of(re.sub(r"[()\[\]]", " ", choices[index])))
    return words <= own | {chr(ord("a") + index), "option", "choice"}


F1 = Metric("f1", _f1, _same_words)
EXACT_MATCH = Metric("exact_match", exact_match, _same_key, _adds_no_word)
MATH = Metric("math", "optima.tasks.equivalence:equivalence", _same_mathematics, _adds_no_unit)
