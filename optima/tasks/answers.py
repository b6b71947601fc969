r"""Answers in utterances: the marked ones, placeholders, and what says an answer without a mark.

Marks are ``<A>answer</A>`` (style ``tag``) and ``\boxed{answer}`` (style ``boxed``); a mark without
content, without its end, with a placeholder ("answer", "your answer", "...") or with what stands
between two marks that are only spoken of ("between <A> and </A>") counts as no mark.

An unmarked utterance that says nothing but what the answer is may end a talk as a marked answer
does. So that is a closed grammar and refuses whatever it does not know: a question, a negation,
another number, choice or name, any further word, and an assent that does not name the answer.
Which answers are the same is in ``metrics``. Paper section 3.
"""

import html
import re
from collections.abc import Sequence
from functools import lru_cache

from optima.tasks.task import Metric
from optima.tasks.texts import LATEX_TEXT, N_REMEMBERED, closing_braces, normalise_text, undress
from optima.types import AnswerStyle

MAX_PLACEHOLDER_CHARACTERS = 60

_TAG = re.compile(r"<A>((?:(?!<A>).)*?)</A>", re.DOTALL)
_BOX = re.compile(r"\\f?boxed(?![A-Za-z])(?:[ \t]*\n[ \t]*(?=\{)|[ \t]*)|\\fbox(?![A-Za-z])[ \t]*")
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
MAX_RESTATEMENT_CHARACTERS = 500  # a longer utterance says more than an answer

_SOUND = (
    r"ok|okay|sure|right|exactly|indeed|great|good|correct|confirmed|agreed|we agree|"
    r"i (?:also |fully |completely )?agree(?: with (?:you|that|this|your answer))?|"
    r"i (?:can )?confirm(?: that| it| this)?|"
    r"(?:that|this|it) (?:is|looks|seems) (?:right|correct)|(?:that|it)'s (?:right|correct)|"
    r"(?:you are|you're|your (?:answer|solution) is) (?:right|correct)"
)
_ASSENT = rf"yes|yeah|yep|{_SOUND}"
_NAMING = (
    r"(?:(?:that|and|so) )?(?:the|my|our|your)? ?(?:(?:final|correct|right) )*"
    r"(?:answer|choice|option) (?:is(?: indeed| also)?|remains|must be)|"
    r"(?:final |correct )?answer(?=\s*:)|(?:it is|it's|that is)(?: indeed)?|"
    r"i (?:also )?(?:get|say|answer|got)|so|thus|therefore|hence|then|that"
)
_LEAD = re.compile(rf"(?:{_ASSENT}|{_NAMING})(?![\w'-])", re.IGNORECASE)
_LEAD_TO_NO = re.compile(rf"(?:{_SOUND}|{_NAMING})(?![\w'-])", re.IGNORECASE)
_TRAIL = re.compile(
    rf"(?:(?<=[.,;!] )(?:{_ASSENT})|"
    r"(?<=\s)is (?:(?:indeed )?(?:the )?(?:(?:final|right|correct) )?answer|right|correct))$",
    re.IGNORECASE,
)
_PAUSE_AT_START = re.compile(r"^(?:[,.;:!]+(?=\s|$)|\s+)+")  # not the point of ".5"
_PAUSE_AT_END = re.compile(r"[\s,.;:!]+$")
_BARE_ASSENT = re.compile(
    r"(?:(?:right|correct|agreed|exactly|confirmed|"
    r"i (?:also |fully |completely )?agree(?: with (?:you|that|this|your answer|your solution))?|"
    r"(?:that|this|it) (?:is|looks) (?:right|correct)|(?:that|it)'s (?:right|correct)|"
    r"(?:you are|you're|your (?:answer|solution|result) is) (?:right|correct)|"
    r"(?:all )?(?:the )?steps are (?:right|correct))[\s,.;:!]*)+",
    re.IGNORECASE,
)


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
    return _is_placeholder(answer, style, tuple(choices))


@lru_cache(N_REMEMBERED)
def _is_placeholder(answer: str, style: AnswerStyle, choices: tuple[str, ...]) -> bool:
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


def assents(text: str) -> bool:
    """Tell whether ``text`` is "Right.", "I agree, that is correct." or the like, and nothing else.

    After a marked answer it agrees with it. "Yes" is none, as it may be an answer itself, and "OK"
    and "Great!" say only that something was heard.
    """
    plain = " ".join(text.replace("\u2019", "'").replace("**", "").split())
    return len(plain) <= MAX_RESTATEMENT_CHARACTERS and _BARE_ASSENT.fullmatch(plain) is not None


def restates(text: str, answer: str, *, metric: Metric, choices: Sequence[str] = ()) -> bool:
    """Tell whether ``text`` says that the answer is ``answer``, and nothing else.

    "Yes, the answer is 18." restates "18"; "Agreed.", "It is 18, not 20." and "18?" do not.
    """
    if len(text) > MAX_RESTATEMENT_CHARACTERS or not answer.strip():
        return False
    if text.count("?") > answer.count("?"):
        return False
    # "yes, the answer is no" may mean either
    lead = _LEAD_TO_NO if normalise_text(answer) == "no" else _LEAD
    core = undress(_core(text, lead))
    if not core or core.count("=") > answer.count("="):
        return False  # a calculation has other numbers
    return metric.says_only(core, answer, choices)


def _core(text: str, lead: re.Pattern[str]) -> str:
    """Return what is left of ``text`` between the lead-ins and the words that close it."""
    core = " ".join(text.replace("\u2019", "'").replace("**", "").split())
    while True:
        before = core
        if (match := lead.match(core)) and _PAUSE_AT_END.sub("", core[match.end() :]):
            core = _PAUSE_AT_START.sub("", core[match.end() :])
        core = _PAUSE_AT_END.sub("", core)
        if match := _TRAIL.search(core):
            core = _PAUSE_AT_END.sub("", core[: match.start()])
        if core == before:
            return core
