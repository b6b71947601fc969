"""Which of a problem's choices an answer names: one, or none.

An answer names a choice by its letter, by its letter and text, or by its text alone. Several
letters, a hedge, or a letter beside the text of another choice name none. Signs count: a choice
"x > y" is not "x < y".
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

from rapidfuzz.distance import Indel

from optima.tasks.numbers import number_and_unit
from optima.tasks.texts import (
    LATEX_FONT,
    N_REMEMBERED,
    normalise_latex,
    plain_text,
    undress,
    without_emphasis,
    without_lead_in,
    without_verdict,
)

MAX_CHARACTERS = 5000  # a text longer than any choice of the benchmarks is no answer
MIN_OVERLAP = (
    0.75  # F1 of words in their order, for a text beside a letter that is nearly its choice's
)

_TITLE = r"(?:(?:the\s+)?(?:option|choice|answer|letter)\s*:?\s*)?"
_LETTER_ALONE = re.compile(rf"{_TITLE}[(\[{{]?\s*([A-Za-z])\s*[)\]}}]?\s*[.:)!]?", re.IGNORECASE)
_LETTER_FIRST = re.compile(
    rf"{_TITLE}(?:[(\[]\s*([A-Za-z])[.:]?\s*[)\]]|([A-Za-z])(?:\s*(?:[-=]>|[.):,;=|\u2014\u2192\u21d2])|"
    r"\s+[-\u2013\u2014]|[-\u2013\u2014]\s+|\s+(?=because\b|since\b)|(?=\s*[(\[])))\s*(\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_LETTER_AND_WORDS = re.compile(r"([A-Z])\s+(\S.*)", re.DOTALL)
_LETTER_LAST = re.compile(
    rf"(\S.*?)(?:\s*[(\[](?i:{_TITLE})([A-Za-z])[)\]]|"
    rf"(?:\s*[,:]\s|\s[-\u2013\u2014=]\s|[.!]?\s*\n)\s*(?:which\s+is\s+)?(?i:{_TITLE})([A-Z]))",
    re.DOTALL,
)
_INLINE_LATEX = re.compile(rf"(?:{LATEX_FONT}|\\f?boxed)\{{([^{{}}]*)\}}")
_BULLET = re.compile(r"[-*]\s+(?=[A-Za-z][A-Za-z.)]|\()")
_BRACKETED = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")
_IN_BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_BRACKET = re.compile(r"[()\[\]]")
_A_AT_AN_END = re.compile(r"^A\s|\sA$")
_OTHER_LETTER = re.compile(r"(?<![\w'])(?:[B-Z](?![\w'])|A(?=\s*(?:[).:,]|$)))")

_REASON = re.compile(r"[\s,;(\-]*\b(?:because|since)\b.*", re.DOTALL | re.IGNORECASE)
_SUBSCRIPTS = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_SUBSCRIPT = re.compile(f"[{_SUBSCRIPTS}]")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_SCRIPT = re.compile(r"([_^])\{([\w+-]+)\}")  # what stands in braces below or above the line
_CHARGE = re.compile(r"\^(?=\d?[-+](?!\d))")  # of an ion
_TIMES = re.compile(r"(?<=\d)(?:\\times|\\cdot|[\u00d7\u00b7*X])(?=10\^)")
_NO_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_LOOSE = re.compile(r"[!\"'`\u2018\u2019\u201c\u201d;:]|,(?!\d)|\.(?!\d)")
_SIGN = re.compile(r"[^\w\s()\[\]/.,-]|\d")  # beside a choice's text, it says another thing
_UNIT_NAMES = (  # a sign, and the names of the unit that it stands for
    *(("$", "dollars", "dollar", "usd"), ("%", "percent", "per cent"), ("\u20ac", "euros", "euro")),
    *(("\u00a3", "pounds", "pound"), ("\u00b0", "degrees", "degree")),
)
_DASHES = re.compile(r"[\u2010-\u2015\u2212]")
_ARTICLES = frozenset(("a", "an", "the"))
_HEDGES = frozenset(
    (
        *("or", "not", "either", "neither", "nor", "maybe", "perhaps", "probably", "possibly"),
        *(
            "but",
            "both",
            "unsure",
            "isnt",
            "cannot",
            "cant",
            "wrong",
            "incorrect",
            "false",
            "instead",
        ),
        *("guess", "might", "could", "unless", "although", "no", "dont", "doesnt", "didnt"),
        *("arent", "wasnt", "werent", "wont", "wouldnt", "couldnt", "shouldnt", "hardly", "doubt"),
        *("never", "without", "except", "excluding", "excluded", "eliminated", "ruled", "rather"),
        *("non", "rejected", "unlikely", "disagree", "opposite", "contrary"),
    )
)


def named_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Return the index of the only choice that ``answer`` names; None when it names none.

    A lone letter is a choice's letter, also where another choice's text is that letter; only a
    small letter that is exactly the text of a choice names that choice.
    """
    if not answer.strip() or len(answer) > MAX_CHARACTERS:
        return None
    plain = without_verdict(without_emphasis(_INLINE_LATEX.sub(r"\1", answer)))
    forms = [undress(answer), without_lead_in(answer), without_verdict(answer), plain]
    if match := _BRACKETED.fullmatch(forms[-1]):
        forms.append(undress(match[1] or match[2] or ""))
    forms.append(_BULLET.sub("", plain, count=1))
    for form in dict.fromkeys(forms):
        index = _read(form, choices)
        if index is not None:
            return index
    return None


def choice_letter(text: str) -> str | None:
    """Return the letter in "B", "b", "(B)", "Option B" or "B. text", in upper case, or None.

    For golds that are a letter where the choices are not known; what follows the letter is only
    searched for a hedge and for other letters.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    form = without_verdict(without_emphasis(text))
    if match := _LETTER_ALONE.fullmatch(form):
        return match[1].upper()
    match = _LETTER_FIRST.fullmatch(form)
    if match is None:
        return None
    letter, rest = (match[1] or match[2]).upper(), _REASON.sub("", match[3])
    others = set(_OTHER_LETTER.findall(rest)) - {letter}
    return None if others or _is_hedged(rest) else letter


@lru_cache(N_REMEMBERED)
def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a choice in lower case, without articles; signs are words or in words."""
    words = _NO_HYPHEN.sub(" ", _DASHES.sub("-", plain_text(text))).split()
    kept = [word for word in words if word not in _ARTICLES] or words
    return tuple(_LOOSE.sub("", " ".join(kept)).split())


def _read(form: str, choices: Sequence[str]) -> int | None:
    if match := _LETTER_ALONE.fullmatch(form):
        exact = [i for i, choice in enumerate(choices) if form.islower() and choice.strip() == form]
        index = exact[0] if len(exact) == 1 else _index(match[1], choices)
        return _by_text(form, choices) if index is None else index
    index = _by_text(form, choices)
    if index is None:
        index = _with_reason(form, choices)
    if index is not None:
        return index
    named = {
        _index(letter, choices)
        for letter, rest in _letters_and_rests(form)
        if _agrees(rest, _index(letter, choices), choices)
    }
    return named.pop() if len(named) == 1 else None


def _with_reason(form: str, choices: Sequence[str]) -> int | None:
    """Return the choice whose text stands before a reason, if no other choice begins like that."""
    match = _REASON.search(form)
    if match is None or not match.start():
        return None
    said = words_of(form[: match.start()])
    index = _by_text(form[: match.start()], choices)
    others = [words_of(choice) for other, choice in enumerate(choices) if other != index]
    return None if any(other[: len(said)] == said for other in others) else index


def _letters_and_rests(form: str) -> Iterator[tuple[str, str]]:
    """Yield every reading of ``form`` as a letter with something beside it."""
    if match := _LETTER_FIRST.fullmatch(form):
        yield match[1] or match[2], match[3]
    if match := _LETTER_AND_WORDS.fullmatch(form):
        yield match[1], match[2]
    if match := _LETTER_LAST.fullmatch(form):
        yield match[2] or match[3], match[1]


def _index(letter: str, choices: Sequence[str]) -> int | None:
    index = string.ascii_uppercase.index(letter.upper())
    return index if index < len(choices) else None


def _by_text(text: str, choices: Sequence[str]) -> int | None:
    """Return the choice whose text this is, by the strictest form in which any is equal."""
    forms: list[Callable[[str], object]] = [undress, plain_text, normalise_latex]
    if not _A_AT_AN_END.search(text):  # which may be another's letter
        forms += [words_of, lambda choice: normalise_latex(choice).lower(), _formula]
    for form in forms:
        wanted = form(text)
        found = [index for index, choice in enumerate(choices) if form(choice) == wanted]
        if found:
            return found[0] if len(found) == 1 else None
    return _by_number(text, choices)


@lru_cache(N_REMEMBERED)
def _formula(text: str) -> str:
    r"""Return a formula as it is typed plainly: "h2o" of "$H_2O$", "na+" of "Na^{+}", "10^-3"."""
    text = _SUBSCRIPT.sub(lambda match: str(_SUBSCRIPTS.index(match[0])), text)
    text = _SUPERSCRIPT.sub(lambda match: f"^{unicodedata.normalize('NFKC', match[0])}", text)
    text = _SCRIPT.sub(r"\1\2", normalise_latex(text.replace("\u2212", "-")))
    text = _TIMES.sub("x", normalise_latex(text))
    return _CHARGE.sub("", text.replace("_", "").lower())


def _by_number(text: str, choices: Sequence[str]) -> int | None:
    """Return the only choice of the same number and unit, or of the number where one has none."""
    said = _number_and_unit(text)
    letters = [_index(letter, choices) for letter, _ in _letters_and_rests(text)]
    if said is None or any(index is not None for index in letters):
        return None  # beside a letter the number is to agree with it
    units = {
        index: found[1]
        for index, choice in enumerate(choices)
        if (found := _number_and_unit(choice)) is not None and found[0] == said[0]
    }
    same = [index for index, unit in units.items() if unit == said[1]]
    if not same and len(units) == 1 and "" in (said[1], *units.values()):
        same = list(units)
    return same[0] if len(same) == 1 else None


@lru_cache(N_REMEMBERED)
def _number_and_unit(text: str) -> tuple[Fraction, str] | None:
    """Return a number and its unit, a sign where there is one for it: "5 dollars" are "$5"."""
    found = number_and_unit(text)
    if found is None:
        return None
    number, unit = found
    signs = [
        names[0]
        for names in _UNIT_NAMES
        if unit in names or (not unit and names[0] in undress(text))
    ]
    return number, signs[0] if signs else unit


def _agrees(rest: str, index: int | None, choices: Sequence[str]) -> bool:
    """Tell whether what stands beside the letter of a choice says the same choice, or why."""
    if index is None:
        return False
    rest = undress(rest)
    if match := _IN_BRACKETS.fullmatch(rest):
        rest = undress(match[1])
    named = _by_text(rest, choices)
    if named is not None:
        return named == index
    if (match := _LETTER_ALONE.fullmatch(rest)) and _index(match[1], choices) is not None:
        return _index(match[1], choices) == index
    rest = _REASON.sub("", rest)
    said, own = words_of(rest), words_of(choices[index])
    if said == own[: len(said)]:
        return True  # the whole text, its beginning, or nothing but a reason
    added = " ".join(word for word in said if word not in own)
    letters = {_index(letter, choices) for letter in _OTHER_LETTER.findall(rest)}
    if _is_hedged(added) or "?" in rest or letters - {index, None}:
        return False
    others = [words_of(choice) for other, choice in enumerate(choices) if other != index]
    if _holds(said, own):
        apart = words_of(_BRACKET.sub(" ", rest))
        has_other = any(_holds(apart, other) and not _holds(own, other) for other in others)
        return not has_other and not _SIGN.search(added)
    if not all(word.isalpha() for word in (*said, *own)):
        return False  # signs and numbers are not nearly equal
    overlaps = [Indel.normalized_similarity(said, other) for other in (own, *others)]
    return overlaps[0] >= MIN_OVERLAP and overlaps[0] > max(overlaps[1:], default=0.0)


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    n = len(part)
    return any(tuple(words[k : k + n]) == tuple(part) for k in range(len(words) - n + 1))


def _is_hedged(text: str) -> bool:
    return not _HEDGES.isdisjoint(re.findall(r"[a-z]+", text.lower().replace("'", "")))
