r"""Which answers are the same: one rule for scores, for agreement in a talk and for votes.

Pure and cheap, so it runs anywhere and never hangs. For ``math`` it says only what texts and
numbers can tell and leaves the rest to ``judging``. Paper section 3 (agreement), App. A (metrics).
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from optima.tasks.choices import choice_letter, named_choice
from optima.tasks.numbers import number_and_unit, parse_number, stated_number
from optima.tasks.texts import f1_score, normalise_latex, plain_text, without_lead_in
from optima.types import Metric

MIN_F1 = 0.9  # above it two texts are the same answer
# math-verify rounds to six digits; nearer numbers, such as 0.333333 and 1/3, are left to it
NEAR = Fraction(1, 10**5)

_BASED = re.compile(r"([0-9A-Fa-f]+)_(?:\{(\d+)\}|(\d+))")  # 110_2, a number in base 2
_ON_THE_HOUR = re.compile(r"0*(\d+):0+")
_LATEX_LETTER = re.compile(r"(?:\\(?:text|mathrm|textbf|mathbf)\{)?\(?([A-Z])\)?\}?")


def same_answer(a: str, b: str, *, metric: Metric, choices: Sequence[str] = ()) -> bool | None:
    """Tell whether two answers are the same by the rule that scores the task.

    Symmetric; every text but the empty one is the same as itself. None, for ``math`` only, means
    that the judge has to compare them.
    """
    if a == b:
        return bool(a)
    if not a.strip() or not b.strip():
        return False
    if metric == "f1":
        return f1_score(a, b) > MIN_F1
    if metric == "exact_match":
        return _key(a, choices) == _key(b, choices)
    return _same_mathematics(without_lead_in(a), without_lead_in(b))


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


def _same_mathematics(a: str, b: str) -> bool | None:
    if normalise_latex(a) == normalise_latex(b) or plain_text(a) == plain_text(b):
        return True
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
