"""Conversations scripted from gold evidence, for the cold start (not in the paper).

A model that never marks an answer has nothing to select from. A short SFT on such scripts shows it
the form of the talk; how to be brief is left to the iterations, so most scripts are wordy. An
agent states only facts of its own context, and only when what came before makes them matter.
"""

import random
import re
from collections.abc import Sequence

from optima.errors import UsageError
from optima.seeding import rng
from optima.tasks.texts import closing_braces
from optima.types import AnswerStyle, Fact, Problem

# {facts} are the speaker's own facts, {partner} is who spoke before.
WORDY_FACTS = (
    "I have read my notes carefully, and this is what I found: {facts}",
    "Let me share what my notes say about this. {facts}",
    "In my notes I can see something that looks relevant here: {facts}",
    "Thank you, let us work on this together. My notes say: {facts}",
)
WORDY_ASKS = (
    "Could you please tell me what your notes say about it?",
    "Do you have the part that is still missing?",
    "What do your own notes say about the rest?",
    "I still need more to answer, so what can you add?",
    "Please say what you know.",
)
WORDY_NOTHING = (
    "My notes alone do not tell me where to begin.",
    "I am afraid that my notes are not enough to start with.",
    "I looked, but I cannot tell yet which of my notes matters.",
    "So far I find nothing in my notes that I could add.",
)
# {said} are the facts that others said before.
WORDY_RECAPS = (
    "We already know the following: {said}",
    "You have told me this: {said}",
    "From what was said before, we know: {said}",
)
WORDY_CONCLUSIONS = (
    "Putting this together, I think that the answer must be {mark}",
    "When I combine all of this, the answer that I arrive at is {mark}",
    "So we can be sure now that the answer is {mark}",
)
WORDY_CONFIRMATIONS = (
    "Yes, I agree with you, and I also come to the answer {mark}",
    "That sounds right to me as well. Our final answer is {mark}",
    "I have gone through it once more and found no mistake: {mark}",
)
TERSE_FACTS = ("{facts}",)
TERSE_ASKS = ("What do you have?", "Your notes?", "And yours?", "What else?", "More?")
TERSE_NOTHING = ("Not enough here alone.", "Nothing to start from.", "Cannot tell yet.", "No link.")
TERSE_CONCLUSIONS = ("{mark}", "So {mark}", "Hence {mark}")
TERSE_CONFIRMATIONS = ("Yes, {mark}", "Agreed. {mark}", "OK {mark}")
WORDY_SOLUTIONS = (
    "Let me work through this problem step by step. {facts} Therefore the final answer is {mark}",
    "I will solve this carefully and explain what I do. {facts} This means that the answer is "
    "{mark}",
    "To find what is asked, I go through it one step at a time. {facts} So my answer is {mark}",
)
WORDY_CHECKS = (
    "I have checked every step of your solution and found no mistake, so I agree: the answer is "
    "{mark}",
    "Your reasoning looks right to me. I went through the calculation again and come to the same "
    "result, {mark}",
    "I looked for a mistake in each of the steps and there is none. I confirm {mark}",
)
TERSE_SOLUTIONS = ("{facts} {mark}", "{facts} So {mark}")
TERSE_CHECKS = ("Correct. {mark}", "Checked, {mark}", "No mistake. {mark}")
N_TERSE_STEPS = 2  # last steps of a rationale that a terse solution keeps

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_OPERAND = r"\$?\d[\d,]*(?:\.\d+)?%?"
_CALCULATION = re.compile(
    rf"[(]*{_OPERAND}[)]*(?:\s*[-+*/x×÷][\s(]*{_OPERAND}[)]*)+\s*=\s*{_OPERAND}"
)
_ENVIRONMENT = re.compile(r"\\(begin|end)\b")
_NAME = re.compile(r"\w{3,}")
# Words that stand at the start of a question or sentence and so look like names.
_NO_NAMES = frozenset(
    (
        *("after", "all", "and", "are", "before", "between", "both", "did", "does", "during"),
        *("for", "from", "had", "has", "have", "her", "his", "how", "into", "its", "not", "one"),
        *("the", "their", "then", "there", "these", "they", "this", "was", "were", "what", "when"),
        *("where", "which", "while", "who", "whom", "whose", "why", "with"),
    )
)


def scripted_utterances(
    problem: Problem, *, answer_style: AnswerStyle, names: Sequence[str], is_terse: bool, seed: int
) -> tuple[str, ...]:
    """Return utterances in order of speaking, agent ``k % len(names)`` the k-th.

    Each begins with a space and lacks the ``Name:`` prefix; no two are equal. The last two, and no
    others, mark ``golds[0]``; an agent alone speaks and marks once. Raises UsageError when the
    problem has no evidence, or evidence that none of the agents holds.
    """
    if not problem.evidence:
        raise UsageError(f"{problem.problem_id}: has no gold evidence to script from")
    draw = rng(seed, "script", problem.problem_id)
    gold = problem.golds[0]
    mark = f"<A>{gold}</A>" if answer_style == "tag" else rf"\boxed{{{gold}}}"
    if not problem.contexts:
        texts = [_solution(problem, is_terse, draw)]
        checks = TERSE_CHECKS if is_terse else WORDY_CHECKS
        texts.append(draw.choice(checks))
    else:
        texts = _exchange(problem, len(names), is_terse, draw)
        texts.append(draw.choice(TERSE_CONFIRMATIONS if is_terse else WORDY_CONFIRMATIONS))
    texts = texts[: 1 if len(names) == 1 else None]  # an agent alone has nobody to agree with
    texts = [_without_labels(text, names) for text in texts]
    return tuple(f" {text}".replace("{mark}", mark) for text in texts)


def _exchange(problem: Problem, n_agents: int, is_terse: bool, draw: random.Random) -> list[str]:
    """Return the utterances up to the one that says the last fact and concludes."""
    holders = {fact.agent for fact in problem.evidence}
    if not holders <= set(range(n_agents)):
        raise UsageError(
            f"{problem.problem_id}: evidence lies with agents {sorted(holders)}, but only "
            f"{n_agents} talk; deal the contexts for as many agents"
        )
    facts = _Phrases(TERSE_FACTS if is_terse else WORDY_FACTS, draw)
    asks = _Phrases(TERSE_ASKS if is_terse else WORDY_ASKS, draw)
    # 4 and 5 phrasings: their pairs repeat after 20 turns of agents who can add nothing.
    idle_asks = _Phrases(TERSE_ASKS if is_terse else WORDY_ASKS, draw)
    nothing = _Phrases(TERSE_NOTHING if is_terse else WORDY_NOTHING, draw)
    left = list(problem.evidence)
    known = problem.question
    said_by: list[tuple[int, str]] = []
    texts: list[str] = []
    while left:
        agent = len(texts) % n_agents
        own = []
        while (index := _next_fact(left, agent, known)) is not None:
            own.append(left.pop(index).text)
            known = f"{known} {own[-1]}"
        others = " ".join(text for speaker, text in said_by if speaker != agent)
        said_by += [(agent, text) for text in own]
        text = facts.next().replace("{facts}", " ".join(own))
        if not own:
            text = f"{nothing.next()} {idle_asks.next()}"
        elif left:
            text = f"{text} {asks.next()}"
        elif is_terse:
            text = f"{text} {draw.choice(TERSE_CONCLUSIONS)}"
        else:
            recap = draw.choice(WORDY_RECAPS).replace("{said}", others) if others else ""
            text = f"{recap} {text} {draw.choice(WORDY_CONCLUSIONS)}".lstrip()
        texts.append(text)
    return texts


class _Phrases:
    """Phrasings in a drawn order, none repeated until all were used."""

    def __init__(self, phrases: Sequence[str], draw: random.Random) -> None:
        self._order = draw.sample(phrases, len(phrases))
        self._n_used = 0

    def next(self) -> str:
        self._n_used += 1
        return self._order[(self._n_used - 1) % len(self._order)]


def _next_fact(left: Sequence[Fact], agent: int, known: str) -> int | None:
    """Return the index of a fact that ``agent`` holds and has reason to state now, None if none.

    That is the next link of the evidence, or a fact about someone or something that the question
    or an earlier fact names. What is linked to neither nobody could pick out of the notes yet.
    """
    if left and left[0].agent == agent:
        return 0
    named = _names(known)
    for index, fact in enumerate(left):
        words = {word.lower() for word in _NAME.findall(fact.text)}
        if fact.agent == agent and words & named:
            return index
    return None


def _names(text: str) -> set[str]:
    """Return the capitalised words of ``text``, lower-cased."""
    words = {word.lower() for word in _NAME.findall(text) if word[0].isupper()}
    return words - _NO_NAMES


def _solution(problem: Problem, is_terse: bool, draw: random.Random) -> str:
    facts = [_unboxed(fact.text) for fact in problem.evidence]
    frames = TERSE_SOLUTIONS if is_terse else WORDY_SOLUTIONS
    text = " ".join(facts)
    if is_terse:
        found = [match.group() for match in _CALCULATION.finditer(text)]
        text = ", ".join(found) + "." if found and "\\" not in text else _last_steps(text)
    return draw.choice(frames).replace("{facts}", " ".join(text.split()))


def _last_steps(text: str) -> str:
    """Return the shortest end of a rationale that cuts through no formula."""
    steps = [step for step in _SENTENCE_END.split(text) if step.strip()]
    for n_steps in range(N_TERSE_STEPS, len(steps)):
        end = "\n".join(steps[-n_steps:])
        if _is_whole(end):
            return end
    return text


def _is_whole(text: str) -> bool:
    """Tell whether dollars, brackets, braces and environments of a LaTeX text close."""
    open_braces = sum({"{": 1, "}": -1}.get(brace, 0) for brace in _BRACE.findall(text))
    environments = [match.group(1) for match in _ENVIRONMENT.finditer(text)]
    return (
        text.replace("\\$", "").count("$") % 2 == 0
        and text.count("\\[") == text.count("\\]")
        and text.count("\\(") == text.count("\\)")
        and text.count("[asy]") == text.count("[/asy]")
        and environments.count("begin") == environments.count("end")
        and open_braces == 0
    )


def _unboxed(text: str) -> str:
    """Return a solution with the contents of its boxes in place, so that only one mark is made."""
    while (match := _BOX.search(text)) is not None:
        end = closing_braces(text).get(match.end() - 1, len(text))
        text = text[: match.start()] + text[match.end() : end] + text[end + 1 :]
    return text


def _without_labels(text: str, names: Sequence[str]) -> str:
    """Take the colon off a speaker's name inside a fact, which would read as a new utterance."""
    return re.sub(rf"\b({'|'.join(map(re.escape, names))})\s*:", r"\1", text)
