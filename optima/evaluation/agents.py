"""What each agent adds to the conversations of a model: who speaks, who marks, who corrects; pure.

Whether talking helps shows in the answers that change: an agent that marks another answer than the
one before either mends or spoils it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from optima.evaluation.figures import JudgedConversation
from optima.tasks.task import JudgeError, Metric
from optima.tasks.texts import normalise_text


@dataclass(slots=True)
class AgentFigures:
    """One agent in all conversations of a model; counts, and sums of tokens and seconds.

    ``n_first`` are the conversations in which it marks the first answer, ``n_scored`` those of them
    whose answer can be scored, ``first_score`` the sum of the scores. ``n_changed`` are the answers
    that differ in their words from the last one marked, ``n_better`` and ``n_worse`` those that
    score higher and lower; what cannot be scored is neither. Scores are None where the metric is
    too slow to take every answer.
    """

    name: str
    n_conversations: int = 0
    n_turns: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    n_marked: int = 0
    n_first: int = 0
    n_scored: int = 0
    n_changed: int = 0
    first_score: float | None = None
    n_better: int | None = None
    n_worse: int | None = None


def agents_of(judged: Iterable[JudgedConversation], metric: Metric) -> tuple[AgentFigures, ...]:
    """Return the figures of each agent that spoke, in the order of speaking."""
    by_number: dict[int, AgentFigures] = {}
    n = 0
    for one in judged:
        n += 1
        _count(one, by_number, metric)
    for agent in by_number.values():
        agent.n_conversations = n
    return tuple(by_number[number] for number in sorted(by_number))


def _count(one: JudgedConversation, by_number: dict[int, AgentFigures], metric: Metric) -> None:
    before: str | None = None
    for turn in one.conversation.turns:
        agent = by_number.setdefault(turn.agent, _new(turn.name, metric))
        agent.n_turns += 1
        agent.n_tokens += turn.n_counted
        agent.seconds += turn.seconds
        if turn.answer is None:
            continue
        agent.n_marked += 1
        if before is None:
            agent.n_first += 1
            score = _score(turn.answer, one, metric)
            if agent.first_score is not None and score is not None:
                agent.n_scored += 1
                agent.first_score += score
        elif normalise_text(before) != normalise_text(turn.answer):
            agent.n_changed += 1
            was, now = (_score(answer, one, metric) for answer in (before, turn.answer))
            _rate_change(agent, was, now)
        before = turn.answer


def _rate_change(agent: AgentFigures, was: float | None, now: float | None) -> None:
    if was is None or now is None or agent.n_better is None or agent.n_worse is None:
        return
    agent.n_better += now > was
    agent.n_worse += now < was


def _new(name: str, metric: Metric) -> AgentFigures:
    if metric.is_slow:
        return AgentFigures(name)
    return AgentFigures(name, first_score=0.0, n_better=0, n_worse=0)


def _score(answer: str, one: JudgedConversation, metric: Metric) -> float | None:
    """Return the score of an answer marked on the way; None for one that cannot be scored here."""
    if metric.is_slow:
        return None
    try:
        return max(metric.points(answer, gold, one.problem.choices) for gold in one.problem.golds)
    except JudgeError:
        return None
