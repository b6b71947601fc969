"""Utterances without a mark that say nothing but what the answer is.

Such an utterance may end a talk as a marked answer does, so this is a closed grammar and refuses
whatever it does not know: a question, a negation, another number, choice or name, any further
word, and an assent that does not name the answer.
"""

import re
from collections.abc import Sequence

from optima.tasks.task import Metric
from optima.tasks.texts import normalise_text, undress

MAX_CHARACTERS = 500  # a longer utterance says more than an answer

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


def assents(text: str) -> bool:
    """Tell whether ``text`` is "Right.", "I agree, that is correct." or the like, and nothing else.

    After a marked answer it agrees with it. "Yes" is none, as it may be an answer itself, and "OK"
    and "Great!" say only that something was heard.
    """
    plain = " ".join(text.replace("\u2019", "'").replace("**", "").split())
    return len(plain) <= MAX_CHARACTERS and _BARE_ASSENT.fullmatch(plain) is not None


def restates(text: str, answer: str, *, metric: Metric, choices: Sequence[str] = ()) -> bool:
    """Tell whether ``text`` says that the answer is ``answer``, and nothing else.

    "Yes, the answer is 18." restates "18"; "Agreed.", "It is 18, not 20." and "18?" do not.
    """
    if len(text) > MAX_CHARACTERS or not answer.strip():
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
