r"""Metrics: how an answer is scored, and which answers are the same; one rule for both.

Scores, agreement in a talk and votes go by one ``Metric``. What is decided here is cheap and never
hangs; a score that could hang is computed where it can be killed (``judging``).
Paper section 3 (agreement), App. A (metrics); docs/decisions/0003-comparing-answers.md.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from optima.tasks.choices import choice_letter, named_choice, words_of
from optima.tasks.numbers import (
    MONTH,
    is_bound_or_doubt,
    is_ordinal,
    number_and_unit,
    parse_number,
    stated_number,
)
from optima.tasks.task import Metric
from optima.tasks.texts import (
    LATEX_TEXT,
    bare,
    f1_score,
    normalise_latex,
    normalise_text,
    plain_text,
    undress,
)

MIN_F1 = 0.9  # above it two texts are the same answer
# math-verify rounds to six digits; nearer numbers, such as 0.333333 and 1/3, are left to it
NEAR = Fraction(1, 10**5)
UNITS = ("", "dollars", "dollar", "percent")  # what a number may carry where the answer does not

_BASED = re.compile(r"([0-9A-Fa-f]+)_(?:\{(\d+)\}|(\d+))")  # 110_2, a number in base 2
_TIME = re.compile(r"(\d{1,2})(?::(\d\d?)(?:([ap])\.?m\.?)?|([ap])\.?m\.?)", re.IGNORECASE)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATE = re.compile(rf"({MONTH})\s*{_DAY}|(?:the\s+)?{_DAY}\s*(?:of\s+)?({MONTH})", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:the)?(\d+)[-^{]*(?:st|nd|rd|th)\}?")
_SET = re.compile(r"(?:[A-Za-z](?:=|\\in))?\\\{[^()\[\]]*\\\}")
_POINT = re.compile(r"(?:[A-Za-z](?:=|\\in))?[(\[](?=[^()\[\]]*,)[^()\[\]]*[)\]]")
_PARTS = re.compile(r"[-+]?\d[\d.,]*[A-Za-z][A-Za-z.,]*\d[\d.,]*[A-Za-z.]+")  # 4 hours 30 minutes
_LATEX_LETTER = re.compile(
    r"(?:\\(?:text|mathrm|textbf|mathbf)\{)?(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?([A-Z])\)?\}?"
)


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
    return plain_text(gold) in (plain_text(answer), plain_text(bare(answer)))


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
    return ("text", plain_text(bare(answer))) if letter is None else ("letter", letter)


def _same_mathematics(a: str, b: str, choices: Sequence[str]) -> bool | None:
    """Tell what texts and numbers tell; None leaves the rest to math-verify."""
    a, b = bare(a), bare(b)
    if normalise_latex(a) == normalise_latex(b) or plain_text(a) == plain_text(b):
        return True
    if (told := _same_date(a, b)) is not None:
        return told
    if is_ordinal(a) or is_ordinal(b):  # the 18th is not 18
        places = [_ORDINAL.fullmatch(normalise_latex(text).lower()) for text in (a, b)]
        return bool(places[0] and places[1] and places[0][1] == places[1][1])
    if _is_set_and_point(a, b) or _is_set_and_point(b, a):
        return False
    numbers = parse_number(a), parse_number(b)
    if numbers[0] is not None and numbers[1] is not None:
        is_percentage = "%" in a + b  # 50% is 50, and 0.5 for the judge
        is_near = abs(numbers[0] - numbers[1]) < NEAR
        return True if numbers[0] == numbers[1] else None if is_near or is_percentage else False
    for text, other in ((a, b), (b, a)):
        if (told := _is_number(text, other)) is not None:
            return told
    if (told := _same_time(a, b)) is not None:
        return told
    values = number_and_unit(a), number_and_unit(b)
    if values[0] is not None and values[1] is not None and values[0][0] == values[1][0]:
        return True if values[0][1] == values[1][1] else None  # 5 km and 5 m are for the judge
    based = [_BASED.fullmatch(normalise_latex(text)) for text in (a, b)]
    if based[0] and based[1]:  # math-verify does not look at the base
        digits = [(match[1].lower(), match[2] or match[3]) for match in based if match]
        return digits[0] == digits[1]
    letters = [_LATEX_LETTER.fullmatch(text.strip()) for text in (a, b)]
    if letters[0] and letters[1]:
        return True if letters[0][1] == letters[1][1] else None
    return None


def _is_set_and_point(a: str, b: str) -> bool:
    r"""Tell whether ``a`` is a set and ``b`` a point or an interval: \{0,1\} is not (0,1)."""
    return bool(_SET.fullmatch(normalise_latex(a)) and _POINT.fullmatch(normalise_latex(b)))


def _same_date(a: str, b: str) -> bool | None:
    """Tell whether two days of the year are the same; None where neither is one."""
    found = [_DATE.fullmatch(undress(LATEX_TEXT.sub(r" \1 ", text))) for text in (a, b)]
    dates = [((m[1] or m[4]).lower()[:3], int(m[2] or m[3])) for m in found if m]
    return dates[0] == dates[-1] and len(dates) == len(found) if dates else None


def _same_time(a: str, b: str) -> bool | None:
    """Tell whether two times of day are the same; None where neither is surely one.

    "2:05" alone may be a ratio; "2:00" is none, as it would divide by zero.
    """
    found = [_TIME.fullmatch(normalise_latex(text)) for text in (a, b)]
    times = [(int(m[1]), int(m[2] or 0), (m[3] or m[4] or "").lower()) for m in found if m]
    if all(minutes and not half for _, minutes, half in times):
        return None
    if len(times) < len(found):
        return False
    halves = {half for _, _, half in times} - {""}
    return times[0][:2] == times[1][:2] and len(halves) <= 1


def _is_number(text: str, other: str) -> bool | None:
    """Tell whether ``text`` states the number that ``other`` is; None if either is more."""
    number = number_and_unit(other)
    if number is None:
        return None
    if _PARTS.fullmatch(normalise_latex(text)):
        return False
    if is_bound_or_doubt(text) or _equates_other(text, number[0]):
        return False
    if number[1]:
        return None
    if stated_number(text) == number[0]:
        return True
    found = number_and_unit(text)
    is_other = found is not None and found[1] and "percent" not in found[1]
    return False if is_other and found and abs(found[0] - number[0]) >= NEAR else None


def _equates_other(text: str, number: Fraction) -> bool:
    """Tell whether a side of an equation is another whole number: "19 = 18" does not state 18."""
    sides = [parse_number(side) for side in text.split("=") if "%" not in side]
    whole = {side for side in (*sides, number) if side is not None and side.denominator == 1}
    return "=" in text and number in whole and len(whole) > 1


def _adds_no_unit(text: str, answer: str, choices: Sequence[str]) -> bool:
    if choices:
        return _adds_no_word(text, answer, choices)
    said, meant = number_and_unit(text), number_and_unit(answer)
    if said is None:
        return meant is None  # a sentence about a number has other words: "Bob has 18"
    return meant is None or said[1] in (*UNITS, meant[1])


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
