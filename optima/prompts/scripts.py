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
from optima.types import AnswerStyle, Problem, Setting

# {facts} are the speaker's own facts; wordy phrasings frame them, terse ones do not.
WORDY_FACTS = (
    "I have read through my notes carefully, and here is what I found. {facts} I hope this helps "
    "us to get closer to the answer.",
    "Let me tell you what I know about this question. According to my notes, the following is "
    "true: {facts} That is the part that seems to matter here.",
    "Thank you, let us work on this together. In my notes I can see the following statement that "
    "looks relevant to what is asked: {facts}",
)
WORDY_ASKS = (
    "Could you please look into your notes and tell me what they say about it?",
    "Do you have anything in your notes that tells us the part that is still missing?",
    "What do your own notes say about the rest of the question?",
)
WORDY_NOTHING = (
    "I have looked through all of my notes, but taken alone they do not tell me where I should "
    "begin with this question.",
    "I am afraid that my notes by themselves are not enough for me to say anything useful about "
    "this question yet.",
)
WORDY_CONCLUSIONS = (
    "Putting together everything that we have said so far, I think that the answer to our "
    "question must be {mark}",
    "So when I combine this with what we know, the final answer that I arrive at is {mark}",
    "Taking all of this into account, we can be sure now that the answer is {mark}",
)
WORDY_CONFIRMATIONS = (
    "Yes, I agree with you. I have checked it against everything that was said, and I also come "
    "to the answer {mark}",
    "That sounds right to me as well, thank you for working it out. Our final answer is {mark}",
    "I have gone through the steps once more and found no mistake, so I confirm {mark}",
)
TERSE_FACTS = ("{facts}",)
TERSE_ASKS = ("You?", "Rest?", "Your notes?")
TERSE_NOTHING = ("No start here.", "Not enough yet.")
TERSE_CONCLUSIONS = ("{mark}", "So {mark}")
TERSE_CONFIRMATIONS = ("Yes, {mark}", "Agreed. {mark}", "OK {mark}")
WORDY_SOLUTIONS = (
    "Let me work through this problem step by step. {facts} Therefore the final answer is {mark}",
    "I will solve this carefully and explain what I do. {facts} This means that the answer is "
    "{mark}",
)
TERSE_SOLUTIONS = ("{facts} {mark}",)
N_TERSE_STEPS = 2  # last steps of a rationale that a terse solution keeps

_BOX = re.compile(r"\\boxed\s*\{")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def scripted_utterances(
    problem: Problem,
    *,
    answer_style: AnswerStyle,
    setting: Setting,
    names: Sequence[str],
    is_terse: bool,
    seed: int,
) -> tuple[str, ...]:
    """Return utterances in order of speaking, agent ``k % len(names)`` the k-th.

    Each begins with a space and lacks the ``Name:`` prefix. The last two mark ``golds[0]``. Raises
    UsageError when the problem has no evidence.
    """
    if not problem.evidence:
        raise UsageError(f"{problem.problem_id}: has no gold evidence to script from")
    draw = rng(seed, "script", problem.problem_id)
    gold = problem.golds[0]
    mark = f"<A>{gold}</A>" if answer_style == "tag" else rf"\boxed{{{gold}}}"
    if setting == "debate":
        texts = [_solution(problem, is_terse, draw).replace("{mark}", mark)]
    else:
        texts = _exchange(problem, len(names), is_terse, draw)
        texts[-1] = texts[-1].replace("{mark}", mark)
    confirmations = TERSE_CONFIRMATIONS if is_terse else WORDY_CONFIRMATIONS
    texts.append(draw.choice(confirmations).replace("{mark}", mark))
    return tuple(f" {_without_labels(text, names)}" for text in texts)


def _exchange(problem: Problem, n_agents: int, is_terse: bool, draw: random.Random) -> list[str]:
    """Return the utterances up to the one that says the last fact and concludes."""
    left = list(problem.evidence)
    texts: list[str] = []
    while left:
        agent = len(texts) % n_agents
        # In the order of the evidence: before a link is said, nobody can know which of its own
        # facts continues the chain.
        n_own = next((i for i, fact in enumerate(left) if fact.agent != agent), len(left))
        own, left = [fact.text for fact in left[:n_own]], left[n_own:]
        if own:
            frames = TERSE_FACTS if is_terse else WORDY_FACTS
            text = draw.choice(frames).replace("{facts}", " ".join(own))
        else:
            text = draw.choice(TERSE_NOTHING if is_terse else WORDY_NOTHING)
        if left:
            ending = draw.choice(TERSE_ASKS if is_terse else WORDY_ASKS)
        else:
            ending = draw.choice(TERSE_CONCLUSIONS if is_terse else WORDY_CONCLUSIONS)
        texts.append(f"{text} {ending}")
    return texts


def _solution(problem: Problem, is_terse: bool, draw: random.Random) -> str:
    facts = " ".join(_unboxed(fact.text) for fact in problem.evidence)
    steps = [step for step in _SENTENCE_END.split(facts) if step.strip()]
    if is_terse:
        steps = steps[-N_TERSE_STEPS:]
    frames = TERSE_SOLUTIONS if is_terse else WORDY_SOLUTIONS
    return draw.choice(frames).replace("{facts}", " ".join(steps))


def _unboxed(text: str) -> str:
    """Return a solution with the contents of its boxes in place, so that only one mark is made."""
    while (match := _BOX.search(text)) is not None:
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inner = text[match.end() : end - 1] if not depth else text[match.end() :]
        text = text[: match.start()] + inner + text[end:]
    return text


def _without_labels(text: str, names: Sequence[str]) -> str:
    """Take the colon off a speaker's name inside a fact, which would read as a new utterance."""
    return re.sub(rf"\b({'|'.join(map(re.escape, names))})\s*:", r"\1", text)
