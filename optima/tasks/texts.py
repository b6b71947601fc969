r"""Texts of answers: what is mere dress, the normal forms, and the F1 of words.

Dress is what changes no meaning: emphasis, quotes, dollar signs and LaTeX wrappers around the whole
answer, a lead-in such as "the answer is". Signs are never dress. Paper App. A (metrics).
"""

import re
import string
import unicodedata
from collections import Counter
from functools import lru_cache

MAX_LAYERS = 10  # of dress around one answer; a model that opens brackets for ever has no answer
N_REMEMBERED = 4096  # texts: the same few answers, golds and choices come again and again
VERDICTS = frozenset(("yes", "no", "noanswer"))  # as in HotpotQA's official evaluation script

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TYPESET = str.maketrans({  # what keyboards write as the plain sign, a dash alone as punctuation
    **dict.fromkeys("\u2018\u2019\u02bc\u00b4\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    "\u2026": "...",
})  # fmt: skip
_DELIMITER_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\s+")
LATEX_FONT = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|it|sf|tt|normal)|mbox|hbox|bm|boldsymbol|"
    r"operatorname|underline|emph|ce)(?![A-Za-z])\s*"
)
LATEX_TEXT = re.compile(LATEX_FONT + r"\{([^{}]*)\}")
_LATEX_WRAPPER = re.compile(rf"(?:{LATEX_FONT}|\\f?boxed(?![A-Za-z])\s*|\\fbox\s*)(?=\{{)")
_SWITCH = re.compile(  # "\\bf 18", and "{\\bf 18}" where its group is closed at the end
    r"(?P<brace>\{\s*)?\\(?:bf|it|rm|sf|tt|em|bfseries|itshape|displaystyle|textstyle|large|Large|"
    r"LARGE|huge|Huge|normalsize|small)(?![A-Za-z])\s*(?P<rest>\S.*)",
    re.DOTALL,
)
_LATEX_SPACE_AT_END = re.compile(r"(?:\\[,;:!]?|(?<=.)~)\Z|\A\\[,;:! ]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
_PAIRS = (
    *(("**", "**"), ("__", "__"), ("*", "*"), ("_", "_"), ("```", "```"), ("`", "`")),
    *(("$$", "$$"), ("$", "$")),
    *(('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb")),
    *((r"\(", r"\)"), (r"\[", r"\]")),
    *((f"<{tag}>", f"</{tag}>") for tag in ("b", "i", "strong", "em", "code")),
)
_EMPHASIS = re.compile(
    r"(?<![^\s(\[{\"'\u201c\u2018\u00ab:=,;$\u20ac\u00a3+\-/*_])"
    r"(?:(?P<mark>\*{2,3}|(?<!\d\s)\*|_{1,3}|`)(?!\s)(?P<plain>[^*_`\n]{1,200})(?<!\s)(?P=mark)|"
    r"<(?P<tag>b|i|strong|em|code|u|mark)>(?P<html>[^<>]+)</(?P=tag)>)!*(?![\w*^{(])"
)
_CHARACTERS = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},  # of full width
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x1D400, 0x1D800)},  # bold
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x24B6, 0x24EA)},  # circled
    # what cannot be seen, and ticks
    **dict.fromkeys((0xAD, *range(0x200B, 0x2010), 0x2060, 0xFE0F, 0xFEFF)),
    **dict.fromkeys((0x2611, 0x2705, 0x2713, 0x2714)),
    0x3002: ".",
}
_HEADING = re.compile(r"#{1,6}\s+(?=\S)")  # "#### 18" closes the solutions of GSM8K
_SUBJECT = r"(?:i|we|let)(?:['\u2019](?:d|ll|s)|\s+(?:would|will|us))?"
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore|hence)\b[,:]?\s*)?(?P<bold>\*\*)?(?:(?:the|my|our)\s+)?"
    r"(?:(?:final|correct|right|best)\s+)*(?:answer|ans\b\.?|choice|option|letter|result|solution)\s*"
    r"(?:(?:is|(?:would|should|must)\s+be)\b\s*(?:(?:therefore|thus|then|hence)\b)?\s*:?|:|=)"
    r"(?(bold)(?:\*\*)?)\s*(?=\S)|"
    r"ans\.\s*(?=\S)|(?:so|thus|therefore|hence)\b[,:]?\s+(?=\S)|"
    r"(?:[-=]>|=|[\u2192\u21d2\u2234\u2022\u25aa\u25ba])\s*(?=\S)|"
    r"(?:(?:it|this|that)(?:['\u2019]s|\s+is|\s+must\s+be)|"
    rf"{_SUBJECT}\s+(?:choose|pick|select|say|go\s+with))\s+(?=\S)",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"(\S|\S.*?\S)\s+is\s+(?:the\s+)?(?:(?:(?:final|correct|right|best)\s+)*(?:answer|choice|option)|"
    r"correct|right)",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache(N_REMEMBERED)
def undress(text: str) -> str:
    r"""Return ``text`` without what wraps the whole of it: ``**B**``, "$18$", ``\boxed{B}``.

    White space at both ends, a full stop or comma at the end and forms of letters (full width,
    bold) go too.
    """
    text = text.translate(_CHARACTERS)
    for _ in range(MAX_LAYERS):
        before = text
        text = _without_wrapper(
            _without_stop(_LATEX_SPACE_AT_END.sub("", text.strip()).strip())
        ).strip()
        if text == before:
            break
    return text


@lru_cache(N_REMEMBERED)
def without_emphasis(text: str) -> str:
    """Return ``text`` without the emphasis of its parts: "it is **18**", "<b>B</b>. iron"."""
    for _ in range(MAX_LAYERS):
        before, text = text, _EMPHASIS.sub(lambda match: match["plain"] or match["html"], text)
        if text == before:
            break
    return text


def without_lead_in(text: str) -> str:
    """Return ``text`` without "the answer is", "I choose" and the like before it, undressed."""
    text = undress(text)
    match = _LEAD_IN.match(text)
    if match is None:
        return text
    rest = undress(text[match.end() :])
    is_open = match["bold"] and rest.count("**") % 2  # "**the answer is B**"
    return undress(rest.removesuffix("**")) if is_open else rest


def bare(text: str) -> str:
    """Return ``text`` without a lead-in, and without the emphasis of its parts."""
    return without_lead_in(without_emphasis(text))


def without_verdict(text: str) -> str:
    """Return ``text`` without a lead-in, and without "is correct", "is the answer" behind it."""
    text = without_lead_in(text)
    match = _VERDICT.fullmatch(text)
    return undress(match[1]) if match else text


@lru_cache(N_REMEMBERED)
def plain_text(text: str) -> str:
    """Return ``text`` undressed, in lower case, with single spaces; all signs are kept."""
    return " ".join(undress(text).lower().split())


@lru_cache(N_REMEMBERED)
def normalise_text(text: str) -> str:
    """Return the SQuAD form: lower case, no punctuation, no articles, single spaces.

    Typeset quotes and dashes are punctuation too, and accents are one character with their letter:
    the official script knows one spelling of each, and a model writes any.
    What would leave nothing (the choice "A", the band "The The", a bare "+") keeps its articles,
    and then its punctuation, so that different answers never meet in the empty string.
    """
    lowered = unicodedata.normalize("NFC", text).lower().translate(_TYPESET)
    bare = lowered.translate(_PUNCTUATION)
    for candidate in (_ARTICLES.sub(" ", bare), bare):
        if candidate.split():
            return " ".join(candidate.split())
    return " ".join(lowered.split())


@lru_cache(N_REMEMBERED)
def normalise_latex(text: str) -> str:
    r"""Return ``text`` without what does not change the meaning of a formula.

    Dollar signs, spacing, sizes of delimiters, ``\text`` and fonts, the variants of ``\frac``, and
    a full stop at the end go; ``\le`` stays what it is.
    """
    text = text.strip().removesuffix(".")
    text = text.replace("\\$", "").replace("$", "")
    text = _DELIMITER_SIZE.sub("", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = LATEX_TEXT.sub(r"\1", text)
    text = text.replace("{,}", ",").replace("\\%", "%").replace("^{\\circ}", "^\\circ")
    return _LATEX_SPACE.sub("", text)


def f1_score(answer: str, gold: str) -> float:
    """Return the F1 of two answers by HotpotQA's official rule, in [0, 1].

    The overlap of their normalised words, as in SQuAD; 0 where one of them is "yes", "no" or
    "noanswer" and the other is not the same.

    F1 = 2 P R / (P + R),  P = shared / words of answer,  R = shared / words of gold
    """
    answer, gold = (undress(without_emphasis(text)) for text in (answer, gold))
    normal = normalise_text(answer), normalise_text(gold)
    if normal[0] != normal[1] and not VERDICTS.isdisjoint(normal):
        return 0.0
    answer_words, gold_words = normal[0].split(), normal[1].split()
    n_shared = sum((Counter(answer_words) & Counter(gold_words)).values())
    if n_shared == 0:
        return 0.0
    precision, recall = n_shared / len(answer_words), n_shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def closing_braces(text: str) -> dict[int, int]:
    """Return the place of the closing brace for each opening one that has one, in one pass."""
    end_by_start = {}
    opened = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            end_by_start[opened.pop()] = match.start()
    return end_by_start


def _without_stop(text: str) -> str:
    text = _HEADING.sub("", text, count=1) if text.startswith("#") else text
    is_stopped = text[-1:] in (".", ",", ";", ":") and len(text) > 1 and not text.endswith("..")
    return text[:-1] if is_stopped else text


def _without_wrapper(text: str) -> str:
    if match := _SWITCH.fullmatch(text):
        rest = match["rest"]
        is_closed = match["brace"] and closing_braces(text).get(0) == len(text) - 1
        return rest[:-1] if is_closed else text if match["brace"] else rest
    if match := _LATEX_WRAPPER.match(text):
        start, end = match.end(), len(text) - 1
        return text[start + 1 : end] if closing_braces(text).get(start) == end else text
    for opening, closing in _PAIRS:
        inner = text[len(opening) : -len(closing)]
        is_wrapped = text.startswith(opening) and text.endswith(closing) and inner.strip()
        if is_wrapped and opening not in inner and closing not in inner:
            return inner
    return text
