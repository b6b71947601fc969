r"""Numbers in answers: the one that a text states, exact as a fraction, or none.

Two readings. ``parse_number`` takes what is a number and nothing else (by request with a unit, or
at the end of a calculation); ``stated_number`` also a sentence about one number. A text with two
different numbers, a variable beside a number, or a word that takes it back ("or", "not", "at
least") states none; an ordinal ("the 18th") is a place in an order and no number of things.

``stated_number`` knows notations that differ by country, trade or habit: "1 080", "1'080", "1_080"
and "1,08,000" group digits otherwise than English does; "1.234.567" and "1.080,50" are German;
"1.8e3" and "1.8 \times 10^3" are scientific; "70k" is short. A lone "1.080" stays 1.08 and "18,5"
stays two numbers, as nothing tells which was meant.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from optima.tasks.texts import LATEX_TEXT, N_REMEMBERED, bare, normalise_latex, undress

MAX_DIGITS = 1000  # a model that repeats a digit for ever states no number
MAX_CHARACTERS = 2000  # longer ones are no answer but a text

MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_NUMBER = r"[-+]?\s*(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d*)?"
_PLAIN = re.compile(rf"({_NUMBER})(?:\s*/\s*(\d+))?\s*(?:%|°)?")
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s+(?:and\s+)?(\d+)\s*/\s*(\d+)\s*(?:%|°)?")
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))(?!\s*[A-Za-z(\\^])"
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")  # one half, and so on, in one character
_DOLLARS = re.compile(r"\b(?:US|CAN?|AUS?|NZ|HK|NT|SG|[ACRS])\$(?=\s?\d)")
_LARGE_SUM = re.compile(r"(?<=[$£€])(\d[\d.,]*)\s?([MB])(?![\w^])")  # "$1.2M"; of metres: "1.2M"
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_ASSIGNMENT = re.compile(r"[A-Za-z\\ ]+=([^=]+)")
_NAME = re.compile(r"[A-Za-z ]+")  # the side of an equation that a number is assigned to
_OPERATOR = re.compile(r"[-+*/×÷·]|\d\s*[xX]\s*[\d(]|[\d)]\s*[(^]")
_ARITHMETIC = re.compile(r"[\d.,\s()+\-*/×÷·%°^]|(?<=[\d\s])[xX](?=\s*[\d(])|\b[A-Za-z]{2,}\b")
_POWER = re.compile(  # of a unit: m^2, cm2
    r"\^\s*(?:\{\s*[23]\s*\}|[23])(?!\d)|[²³]|(?<=[\d\scdkm]m|ft|in)[23](?![\w.,])"
)
_UNIT = re.compile(
    r"(?:[\s\-\u2013\u2014/(\[]|(?=[A-Za-z]{2}))[A-Za-z\s.'\u00b7\-\u2013\u2014/()\[\]]*"
)
_TERM = re.compile(r"\s*(?:\b(?:pi|[xyz]+)\b|[-\u2013\u2014]\s*\(?[a-z]\b)")  # "18 pi", "18 - x"
_VARIABLES = frozenset("abcdefijknopqrtuvwxyz")  # lone small letters that are no unit of theirs
_BEFORE = re.compile(r"[A-Za-z\s.,:;'()]*[\s:(]")
_WORD = re.compile(r"[A-Za-z']+")
_PARTS = ("half", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_MULTIPLIERS = {
    "hundred": Fraction(10**2),
    "thousand": Fraction(10**3),
    "lakh": Fraction(10**5),
    **dict.fromkeys(("million", "mn", "mln"), Fraction(10**6)),
    "crore": Fraction(10**7),
    **dict.fromkeys(("billion", "bn"), Fraction(10**9)),
    **dict.fromkeys(("trillion", "tn"), Fraction(10**12)),
    **{f"{part}s": Fraction(1, n) for n, part in enumerate(_PARTS, start=2)},
    "halves": Fraction(1, 2),
    "hundredths": Fraction(1, 100),
    "thousandths": Fraction(1, 1000),
}
_COUNT = r"one|two|three|four|five|six|seven|eight|nine|ten|twelve"
_OPERAND = re.compile(  # before a number, what makes it a part of something, or of a calculation
    r"\b(?:half|third|quarter|tenth|fifth|percent)\s+of\b|"
    r"\b(?:half|log|ln|sin|cos|tan|root|mod|modulo|base|per|estimated(?:\s+(?:at|to\s+be))?|"
    r"(?:root|square|cube|logarithm|factorial|multiples?|divisors?|power|out)\s+of|"
    r"(?<!by\sa\s)factors?\s+of|divisible\s+by|(?:add|subtract)(?:ing)?|"
    r"(?:multipl(?:y|ies|ied|ying)|divid(?:e|es|ed|ing))(?:\s+(?:it|that|this))?(?:\s+by)?|"
    rf"(?:{_COUNT})\s+(?:in|of|out\s+of)|(?:could|may)\s+be|before|since|within|beyond)[^\w:]*$|"
    rf"\bc\.\s*$|\b(?:{MONTH})\s*$|"
    r"^\W*(?:is|are|was|were|does|did|could|would|should)\s+(?:it|that|this|the|there)\b",
    re.IGNORECASE,
)
_TIMES_NUMBER = re.compile(  # "18 times two" is a calculation, "18 times a day" is not
    rf"\btimes\s+(?:zero|{_COUNT})\b", re.IGNORECASE
)
_OPERATION = re.compile(
    r"(?<=[\d%)])\s*(of)\s+(?=[\d$(])|\b(plus|minus|times|divided by|multiplied by)\b",
    re.IGNORECASE,
)
_SAID_EQUAL = re.compile(r"\bequals\b|(?<=\d)([^=\d]*)\b(?:is|makes|gives)\b(?=\s*[-+$£€(]*\d)")
_NOT_EQUAL = re.compile(
    r"\\(?:neq?|not|neg|approx(?:eq)?|sim(?:eq)?|cong|doteq|propto|[lg](?:t|e|eq|eqq|eqslant)|"
    r"lesssim|gtrsim)(?![A-Za-z])|[\u2243\u2245\u2248\u2260\u2264\u2265\u2272\u2273]|<(?!-)|"
    r"(?<![-=])>|\?\s*$"
)
_SIGN_BY_WORD = {"plus": "+", "minus": "-", "divided by": "/"}  # of, times, multiplied by: *
_EXCLAIMED = re.compile(r"(?<=[A-Za-z])!+$")  # "18 eggs!", where 18! is a factorial
_IN_BRACKETS = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]|\{([^{}]*)\}")
_BRACKET_BEHIND = re.compile(r"([^()]*\S)\s+\(([^()]*)\)")
_ORDINAL = re.compile(  # "18th", "18 th", "18^{th}" and "the 21st", not "18 st", which may be stone
    r"(?:the\s+)?[-+]?[\d,]*(?:\d[\s^{-]*th|(?:(?<!1)1[\s^{-]*st|(?<!1)2[\s^{-]*nd|(?<!1)3[\s^{-]*rd))s?"
    r"(?![A-Za-z])",
    re.IGNORECASE,
)
_ENCLOSED = re.compile(  # a number inside of a sentence or before its unit: \(18\) dollars, "18"%
    r"(?<![^\s(\[{:=,;$£€+\-/])(?:"
    r"(?P<mark>[\"'])(?=[-+$£€.]?\d)(?P<plain>[^\"'\n]{1,200})(?P=mark)|"
    r"[\u201c\u2018](?=[-+$£€.]?\d)(?P<curly>[^\u201c-\u201d\u2018-\u2019\n]{1,200})[\u201d\u2019]|"
    r"\\\((?P<latex>[^()]+)\\\)|\\f?boxed\{(?P<boxed>(?:[^{}]|\{[^{}]*\})+)\}|"
    r"(?:^|(?<=[A-Za-z][\s:])|(?<=[:,]\s))\((?P<round>[-+$£€]?\d[\d.,]*\s?%?)\)(?=\s*[A-Za-z%.,;:!]|\s*$)"
    r")(?=[\s.,;:!%°¢)\]}/]|\\%|\\text|-[A-Za-z]|$)"
)
_ENCLOSED_BY = ("plain", "curly", "latex", "boxed", "round")
_GROUPS = (
    re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f'\u2019_]\d{3})+(?!\d|\s*/)"),
    re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])"),
    re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,])"),
)
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,])")
_SCIENTIFIC = re.compile(
    r"(?<![\w.,])(\d+(?:\.\d+)?)(?:[eE]([-+]?\d{1,2})|"
    r"\s*(?:[x*\u00d7\u00b7]|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?\d{1,2})\s*\}?)(?![\w.^!])"
)
_SUPERSCRIPTS = dict(zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b",
                         "0123456789-", strict=True))  # fmt: skip
_POWER_OF_TEN = re.compile(rf"(?<=10)[{''.join(_SUPERSCRIPTS)}]+")
_SHORT_UNIT = re.compile(r"(?<=\d)(?:[kK]|([ghlmsL]))(?![\w^])")
# What takes a number back, or makes it a bound or a part of a calculation.
_HEDGES = frozenset(
    (
        *("or", "and", "but", "not", "either", "neither", "nor", "maybe", "perhaps", "probably"),
        *("possibly", "approximately", "approx", "circa", "roughly", "minus", "plus", "divided"),
        *("below", "ish", "twice", "thrice", "squared", "cubed", "doubled", "tripled", "halved"),
        *("factorial", "point", "if", "hardly", "doubt", "nowhere", "upwards"),
        *("unless", "except", "least", "most", "no", "never", "without", "versus", "vs", "instead"),
        *("wrong", "incorrect", "false", "untrue", "impossible", "cannot", "unknown", "unsure"),
        *("guess", "guessing", "think", "believe", "might", "unlike", "excluding"),
    )
)
_HEDGES_BEFORE = _HEDGES | frozenset(
    (
        *("about", "above", "almost", "around", "between", "from", "less", "more", "nearly"),
        *("negative", "over", "than", "times", "to", "under", "until", "up", "double", "triple"),
        *("ca", "near", "exceeds", "exceeding"),
        *("approaches", "approaching"),
    )
)


@lru_cache(N_REMEMBERED)
def parse_number(text: str, units: Literal["refuse", "ignore"] = "refuse") -> Fraction | None:
    r"""Return the number that ``text`` is, None when it is none or more than one.

    "$1,234.00", "1{,}234", "50%", "x = 5", "3/4", "\frac{3}{4}", "3\frac{1}{2}", "\mathbf{5}" are
    numbers; with ``units="ignore"`` so are "18 dollars", "2 million", "18 m^2" and what stands at
    the end (or the beginning) of a calculation, "9 + 9 = 18". A comma that separates no group of
    three digits makes two numbers of one.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _plain_notation(text, is_unwrapped=units == "ignore")
    if (assignment := _ASSIGNMENT.fullmatch(text)) and not _is_hedged(assignment[0]):
        text = assignment[1].strip()
    value = _value(text)
    if value is None and units == "ignore":
        value = _with_unit(text) if "=" not in text else _equation(text)
    return value


@lru_cache(N_REMEMBERED)
def stated_number(text: str) -> Fraction | None:
    """Return the only number that ``text`` states, units ignored, also in a sentence about it.

    It may be in another notation, emphasised, in brackets, or followed by its calculation in
    brackets.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = _SAID_EQUAL.sub(lambda match: f"{match[1] or ''}=", text)
    text = bare(text)
    if (match := _BRACKET_BEHIND.fullmatch(text)) and _restates(match[2].strip(), match[1]):
        text = match[1]
    text = _ENCLOSED.sub(lambda m: next(filter(None, m.group(*_ENCLOSED_BY))), text)
    text = _EXCLAIMED.sub("", _plain_digits(text))
    if match := _IN_BRACKETS.fullmatch(text):
        text = match[1] or match[2] or match[3] or ""
    value = parse_number(text, units="ignore")
    return _in_sentence(text) if value is None else value


def _restates(inner: str, text: str) -> bool:
    """Tell whether brackets behind a number hold its calculation, or the number again."""
    again = parse_number(inner.removeprefix("=").strip(), units="ignore")
    return _is_sum(inner) or (again is not None and again == parse_number(text, units="ignore"))


@lru_cache(N_REMEMBERED)
def number_and_unit(text: str) -> tuple[Fraction, str] | None:
    """Return the number of ``text`` and its unit, "" without one or behind a calculation."""
    value = parse_number(text, units="ignore")
    if value is None:
        return None
    plain = _plain_notation(text, is_unwrapped=True)
    match = _PLAIN.match(plain)
    if match is None:
        return None
    is_bare = "=" in plain or parse_number(text) is not None
    return value, "" if is_bare else plain[match.end() :].strip().lower()


def is_bound_or_doubt(text: str) -> bool:
    r"""Tell whether ``text`` takes back or only bounds what it states: "at least 5", "\neq 5"."""
    if len(text) > MAX_CHARACTERS:
        return True
    text = _plain_notation(text, is_unwrapped=True)
    stated = text.rpartition("=")[2]  # before it stands what is stated: "no. of ways = 5"
    before = re.split(r"\d", stated)[0]
    is_hedged = _is_hedged(stated) or _is_hedged(before, _HEDGES_BEFORE)
    return is_hedged or _NOT_EQUAL.search(text) is not None


def is_ordinal(text: str) -> bool:
    """Tell whether ``text`` begins with an ordinal, such as "18th" or "the 18th of May"."""
    return any(_ORDINAL.match(form) for form in (text.strip(), normalise_latex(text)))


def _plain_notation(text: str, *, is_unwrapped: bool) -> str:
    """Return ``text`` with LaTeX's and currencies' notation of a number made plain."""
    text = undress(text)
    if is_unwrapped:
        text = undress(LATEX_TEXT.sub(r" \1", text))
    text = re.sub(r"\s*\\!\s*", "", text).replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"(?<=\d)\\[, ](?=\d{3}(?!\d))", ",", text).replace("\\$", "$")
    text = _DOLLARS.sub("$", text)
    text = _VULGAR.sub(lambda m: f" {unicodedata.normalize('NFKC', m[0])} ", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text.replace("\u2044", "/"))
    text = re.sub(r"\\(?:times|cdot|div)(?![A-Za-z])", "*", _DEGREES.sub("°", text))
    text = re.sub(r"\\[,;: ]|(?<=\d)~(?=\s*[A-Za-z\d])", " ", text)
    text = re.sub(r"°\s*[CF]\b", "°", text)
    text = (
        re.sub("[$£¥\u20a0-\u20cf]", "", text.replace("¢", " cents")).replace("\u2212", "-").strip()
    )
    text = re.sub(r"^\u2013(?=\s*[\d.])", "-", text)
    return re.sub(r"^(?:negative|minus)\s+(?=[\d.])", "-", text, flags=re.IGNORECASE)


def _plain_digits(text: str) -> str:
    """Return ``text`` with its grouped, scientific and abbreviated numbers in plain digits.

    One letter of a unit right behind a number ("18h") is set apart from it.
    """
    text = _DECIMAL_COMMA.sub(lambda match: match[1].replace(".", "") + "." + match[2], text)
    for groups in _GROUPS:
        text = groups.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    superscripts = str.maketrans(_SUPERSCRIPTS)
    text = _POWER_OF_TEN.sub(lambda match: "^" + match[0].translate(superscripts), text)
    text = _SCIENTIFIC.sub(lambda m: f"{Decimal(f'{m[1]}e{m[2] or m[3]}'):f}", text)
    text = _LARGE_SUM.sub(lambda m: f"{m[1]} {'million' if m[2] == 'M' else 'billion'}", text)
    return _SHORT_UNIT.sub(lambda match: f" {match[1] or 'thousand'}", text)


def _value(text: str) -> Fraction | None:
    if match := _PLAIN.fullmatch(text):
        return _fraction(match[1], match[2])
    if match := _MIXED.fullmatch(text):
        whole, part = _fraction(match[2], None), _fraction(match[3], match[4])
        if whole is None or part is None or part >= 1:
            return None
        return -(whole + part) if match[1] == "-" else whole + part
    return None


def _with_unit(text: str) -> Fraction | None:
    text = _POWER.sub("", text)
    match = _MIXED.match(text) or _PLAIN.match(text)
    if match is None or not match[0].strip() or _ORDINAL.match(text):
        return None
    unit = text[match.end() :]
    if match[0][-1:].isspace():  # the pattern took the space before the unit
        unit = f" {unit}"
    words = _WORD.findall(unit.lower())
    if words and re.fullmatch(MONTH, words[0]):
        return None  # a date
    if not words or not _UNIT.fullmatch(unit) or _is_hedged(unit) or _TIMES_NUMBER.search(unit):
        return None
    if _TERM.match(unit) or (len(unit.strip()) == 1 and unit.strip() in _VARIABLES):
        return None  # 5 x is a term, not five of something
    value = _value(match[0].strip())
    name = f"{words[0]}s" if words[0] in _PARTS and len(words) == 1 else words[0]  # "1 third"
    return None if value is None else value * _MULTIPLIERS.get(name, 1)


def _equation(text: str) -> Fraction | None:
    """Return the result of a calculation: the same number on every side that is one."""
    text = re.sub("[\u2013\u2014]", "-", text)  # as a sign, whatever its length
    text = _OPERATION.sub(lambda m: f" {_SIGN_BY_WORD.get((m[1] or m[2]).lower(), '*')} ", text)
    sides = [side.strip() for side in text.split("=")]
    plain = [_value(side) for side in sides]
    values = [_with_unit(s) if v is None else v for s, v in zip(sides, plain, strict=True)]
    found = {value for value in values if value is not None}
    if len(found) != 1 or (values[-1] is None and values[0] is None):
        return None
    rest = [side for side, value in zip(sides, values, strict=True) if value is None]
    if all((_NAME.fullmatch(side) and not _is_hedged(side)) or _is_sum(side) for side in rest):
        return found.pop()
    return None


def _is_sum(side: str) -> bool:
    """Tell whether a side of an equation is a calculation with numbers, units allowed."""
    has_parts = re.search(r"\d", side) and _OPERATOR.search(side)
    is_open = side.endswith(("+", "-", "*", "/"))  # "18 /= 18"
    return (
        bool(has_parts) and not is_open and not _ARITHMETIC.sub("", side) and not _is_hedged(side)
    )


def _in_sentence(text: str) -> Fraction | None:
    text = _plain_notation(text, is_unwrapped=True)
    match = re.search(r"[-+]?\.?\d", text)
    if match is None or not _BEFORE.fullmatch(text[: match.start()]):
        return None
    if _is_hedged(text[: match.start()], _HEDGES_BEFORE) or _OPERAND.search(text[: match.start()]):
        return None
    return parse_number(text[match.start() :], units="ignore")


def _is_hedged(text: str, hedges: frozenset[str] = _HEDGES) -> bool:
    """Tell whether one of the words takes a number back, "isn't" and all its kind among them."""
    words = _WORD.findall(text.lower())
    return not hedges.isdisjoint(words) or any(word.endswith("n't") for word in words)


def _fraction(numerator: str, denominator: str | None) -> Fraction | None:
    digits = re.sub(r"[,\s]", "", numerator)
    if not re.search(r"\d", digits) or max(len(digits), len(denominator or "")) > MAX_DIGITS:
        return None
    divisor = int(denominator or 1)
    return Fraction(digits) / divisor if divisor else None
