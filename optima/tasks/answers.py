r"""Answers in text: finding the marked ones, and telling a placeholder from an answer.

Marks are ``<A>answer</A>`` (style ``tag``) and ``\boxed{answer}`` (style ``boxed``); a mark without
content, without its end, with a placeholder ("answer", "your answer", "...") or with what stands
between two marks that are only spoken of ("between <A> and </A>") counts as no mark.
Which answers are the same is in ``metrics``. Paper section 3.
"""

import html
import re
from collections.abc import Sequence

from optima.tasks.texts import LATEX_TEXT, closing_braces, undress
from optima.types import AnswerStyle

MAX_PLACEHOLDER_CHARACTERS = 60

_TAG = re.compile(r"<A>((?:(?!<A>).)*?)</A>", re.DOTALL)
_BOX = re.compile(r"\\f?boxed(?![A-Za-z])[ \t]*|\\fbox(?![A-Za-z])[ \t]*")
_BETWEEN = re.compile(  # what precedes a mark that is only spoken of, if "and" follows it
    r"\b(?:between|from|with|tags?|marks?)\W*$", re.IGNORECASE
)
_BOX_TOKEN = re.compile(r"(?=[^\s$\\{}]*\d|\S(?!\w))[^\s$\\{}]+")  # "2" and "x", no word
_BRACKETS = re.compile(r"(?:[\[<{(]+|\$)(.*?)[\]>})]*")
_INVISIBLE = re.compile("[\\s\u00ad\u200b-\u200f\u2060\ufeff]")
# What holds nothing in TeX: fonts and boxes without content, spaces, rules, phantoms.
_NOTHING = re.compile(
    r"\\(?:q?quad|square|Box|Square|_|[hv]space\*?\{[^{}]*\}|[hv]?phantom\{[^{}]*\}|underline|text\w*|"
    r"math\w+|mbox|[ ,;:!]|$)|(?<!\\)[{}]|[\s,;:.&|/*`\"'\u201c\u201d\u2018\u2019_~#]"
)
_WHOSE = r"(?:(?:your|my|our|the|an?|insert|put|write|enter|type|state|give|place|\w+['\u2019]s) )*"
_KIND = (
    r"(?:(?:final|short|concise|exact|correct|right|agreed|same|actual|best|full|sample|example|"
    r"numeric(?:al)?) )*"
)
_NOUNS = r"answers?|choices?|options?|letters?|texts?|numbers?|values?|words?|names?|results?|"
_NOUNS += r"solutions?|responses?|expressions?|formulas?|phrases?|strings?|placeholders?|blanks?"
_PLACE = r"(?: (?:goes )?here| in (?:one |a few )?words?| in (?:its )?simplest form| text|"
_PLACE += r" to the question| only)"
_WORDS = (
    # "answer", "your final answer", "the answer here": no benchmark's answer is this
    re.compile(rf"{_WHOSE}{_KIND}answer(?: ?\d)?{_PLACE}?(?: is)?"),
    # between two marks that are only spoken of: "<A> and </A>", "<A> and the closing tag </A>"
    re.compile(
        r"(?:(?:opening|start(?:ing)?|tags?|marks?) )*(?:and|or|and/or)"
        r"(?: (?:the|an?|it|then|tags?|marks?|clos\w+|end\w*|with|by|before|after|in|between))*"
    ),
    # other nouns only where they are addressed to the reader: "solution" alone may be an answer
    re.compile(rf"(?:insert |put |write |enter )?your {_KIND}(?:{_NOUNS}){_PLACE}?"),
    re.compile(rf"(?:insert |put |write |enter ){_WHOSE}{_KIND}(?:{_NOUNS}){_PLACE}?"),
    re.compile(rf"{_WHOSE}{_KIND}(?:{_NOUNS}) (?:goes )?here"),
    re.compile(r"(?:yes|true) ?[/|] ?(?:no|false)"),
    re.compile(r"x{5,}|_+|[.\u2026\s]*[.\u2026]{2,}|\u2026|\?+|\\(?:[lc]?dots|ldots)"),
)
_NOUN = re.compile(rf"{_WHOSE}{_KIND}(?:{_NOUNS}){_PLACE}?")
_MATHEMATICAL = re.compile(
    rf"{_WHOSE}{_KIND}(?:answer|number|integer|value|result|expression|formula)"
)
_OF_CHOICES = re.compile(
    rf"{_WHOSE}{_KIND}(?:letter|choice|option|text|answer)(?: (?:letter|text|of (?:the|your) \w+))*"
)
_CAPITAL_INSIDE = re.compile(r"(?<=[a-z])(?=[A-Z])")  # "yourAnswer"
_LETTERS = re.compile(r"[a-z](?:\s*(?:[/|,]|,? or )\s*[a-z]){2,}")


def marked_answers(text: str, style: AnswerStyle, choices: Sequence[str] = ()) -> list[str]:
    """Return the contents of all marks in ``text`` that are answers, in order, stripped.

    With the choices of the problem, placeholders of choices ("letter", "X") are none either.
    """
    found = _tags(text) if style == "tag" else _boxes(text)
    answers = [answer.strip() for answer in found if answer.strip()]
    return [answer for answer in answers if not is_placeholder(answer, style, choices)]


def last_marked_answer(text: str, style: AnswerStyle, choices: Sequence[str] = ()) -> str | None:
    """Return the last marked answer of ``text``, None when nothing is marked."""
    answers = marked_answers(text, style, choices)
    return answers[-1] if answers else None


def is_placeholder(answer: str, style: AnswerStyle, choices: Sequence[str] = ()) -> bool:
    """Tell whether a mark's content only stands for an answer: "your answer", "[letter]", "...".

    What is the text of a choice is an answer. "letter" and "X" are placeholders beside choices
    only, "number" in a box only, as each may be the answer of another task.
    """
    if len(answer) > MAX_PLACEHOLDER_CHARACTERS:
        return False
    bare = LATEX_TEXT.sub(r"\1", undress(_INVISIBLE.sub(" ", html.unescape(answer)))).strip()
    if any(choice.strip().lower() in (answer.strip().lower(), bare.lower()) for choice in choices):
        return False
    if not _NOTHING.sub("", bare):
        return True
    match = _BRACKETS.fullmatch(bare)
    inner = undress(match[1] if match else bare).strip(" .:!`\"'*_<>/\u201c\u201d") or bare
    words = " ".join(_CAPITAL_INSIDE.sub(" ", inner).replace("_", " ").lower().split())
    unjoined = words.replace("-", " ")
    if any(
        pattern.fullmatch(form) for pattern in _WORDS for form in (words, unjoined, bare.lower())
    ):
        return True
    if match and _NOUN.fullmatch(words):
        return True
    if choices:
        is_unknown = words == "x" and len(choices) < 24
        return bool(is_unknown or _OF_CHOICES.fullmatch(words) or _LETTERS.fullmatch(words))
    return style == "boxed" and bool(_MATHEMATICAL.fullmatch(words))


def _tags(text: str) -> list[str]:
    matches = _TAG.finditer(text)
    return [m[1] for m in matches if not _is_spoken_of(text[: m.start()][-20:], m[1])]


def _is_spoken_of(before: str, content: str) -> bool:
    """Tell whether two marks are named, not used: "between the tags <A> and the other one </A>"."""
    return bool(re.match(r"\W*(?:and|to)\b", content)) and bool(_BETWEEN.search(before))


def _boxes(text: str) -> list[str]:
    end_by_start = closing_braces(text)
    found = []
    position = 0
    while match := _BOX.search(text, position):
        start = position = match.end()
        if text[start : start + 1] == "{":
            if start in end_by_start:
                position = end_by_start[start] + 1
                found.append(text[start + 1 : position - 1])
        elif match[0].endswith((" ", "\t")) and (bare := _BOX_TOKEN.match(text, start)):
            found.append(bare[0].rstrip(".,;"))  # "\boxed 2", as some MATH solutions have it
    return found
