"""What is said of one model on one task: score and tokens with intervals, turns, failures, agents.

``Figures`` is the one record of a model: of a training's models, of inferences, baselines, votes
and transfers. ``AgentFigures`` say what each agent adds: who speaks, who marks, who corrects.
Whether talking helps shows in the answers that change: an agent that marks another answer than the
one before either mends or spoils it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optima.evaluation.statistics import (
    Estimate,
    Point,
    estimate_mean_of_means,
    estimate_means,
    percentile,
)
from optima.tasks.task import JudgeError, Metric
from optima.tasks.texts import normalise_text
from optima.types import Conversation, Problem, RewardParts


@dataclass(frozen=True, slots=True)
class Judged:
    """What figures take of one conversation: its task score in [0, 1], tokens and turns.

    ``n_tokens`` are those of the utterances by the paper's count, ``n_generated`` those that the
    server generated.
    """

    problem_id: str
    score: float
    n_tokens: int
    n_generated: int
    n_turns: int
    is_answered: bool
    has_failed: bool


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What was counted of one model's conversations, problem by problem.

    ``answered`` and ``failed`` in [0, 1]. ``counts`` are the tokens of each conversation, or of
    each vote, by the paper's count (label in, end of turn out); ``n_generated`` those of all that
    the server generated (label out, end of turn in), ``generated`` their mean. Failed and overlong
    conversations count in full. ``score_by_problem`` and ``tokens_by_problem`` are means over each
    problem's conversations, in the order in which problems first came. Of a vote, tokens are those
    of all its samples, and it is answered when one of them is.
    """

    counts: tuple[int, ...]
    n_conversations: int
    n_generated: int
    turns: float
    answered: float
    failed: float
    score_by_problem: dict[str, float]
    tokens_by_problem: dict[str, float]

    @property
    def n_problems(self) -> int:
        """Problems that it was asked."""
        return len(self.score_by_problem)

    @property
    def n_samples(self) -> int:
        """Conversations per problem."""
        return round(self.n_conversations / self.n_problems)

    @property
    def tokens_median(self) -> float:
        """The median of ``counts``."""
        return percentile(self.counts, 50)

    @property
    def tokens_p95(self) -> float:
        """Their 95th percentile."""
        return percentile(self.counts, 95)

    @property
    def generated(self) -> float:
        """Tokens generated per conversation, or per vote."""
        return self.n_generated / len(self.counts)


@dataclass(frozen=True, slots=True)
class JudgedConversation:
    """A conversation with the problem it is about and the reward that it got."""

    problem: Problem
    conversation: Conversation
    reward: RewardParts

    def row(self) -> dict[str, Any]:
        """Return it as a line of a table."""
        conversation, reward = self.conversation, self.reward
        return {
            "problem_id": conversation.problem_id,
            "n": conversation.n,
            "question": self.problem.question,
            "golds": list(self.problem.golds),
            "answer": conversation.answer,
            "score": reward.task,
            "reward": reward.total,
            "tokens": conversation.n_tokens,
            "generated": conversation.n_generated,
            "turns": len(conversation.turns),
            "stop_reason": conversation.stop_reason,
            "text": "\n".join(f"{turn.name}:{turn.text}" for turn in conversation.turns),
        }


@dataclass(frozen=True, kw_only=True)
class Figures(Tally):
    """Figures of one model on the problems of one task: what was counted, and intervals.

    ``score`` (in [0, 1]) and ``tokens`` are means over the problems. ``model`` is where the model
    is, empty where the run does not say. ``reward`` is the mean R with the tokens of the run's
    first model as normaliser, None outside of trainings. ``metrics`` are those of its
    conversations, ``seconds`` their wall time, server start in; ``made_in_s`` that of the stages
    that made it, 0 where the run did not. ``points`` are its votes for k = 1, 2, ...
    """

    label: str
    score: Estimate
    tokens: Estimate
    model: str = ""
    reward: float | None = None
    seconds: float = 0.0
    made_in_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return the means and their 95 % intervals as a line of a table."""
        score, tokens = self.score, self.tokens
        return {
            "label": self.label,
            "score": score.mean,
            "score_low": score.low,
            "score_high": score.high,
            "tokens": tokens.mean,
            "tokens_low": tokens.low,
            "tokens_high": tokens.high,
            "generated": self.generated,
            "turns": self.turns,
            "answered": self.answered,
            "reward": self.reward,
        }


def tally(judged: Iterable[Judged], vote_by_problem: Mapping[str, float] | None = None) -> Tally:
    """Count conversations problem by problem.

    With ``vote_by_problem`` the samples of a problem are one vote of that score.
    """
    by_problem: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_problem[one.problem_id].append(one)
    everything = [one for of_one in by_problem.values() for one in of_one]
    n = max(1, len(everything))
    tokens = {key: [one.n_tokens for one in of_one] for key, of_one in by_problem.items()}
    score_by_problem = {
        key: sum(one.score for one in of_one) / len(of_one) for key, of_one in by_problem.items()
    }
    if vote_by_problem is not None:
        score_by_problem = {key: vote_by_problem[key] for key in by_problem}
        tokens = {key: [sum(counts)] for key, counts in tokens.items()}
        n_answered = sum(any(o.is_answered for o in of_one) for of_one in by_problem.values())
    else:
        n_answered = sum(one.is_answered for one in everything)
    counts = tuple(count for of_one in tokens.values() for count in of_one)
    return Tally(
        counts=counts,
        n_conversations=len(everything),
        n_generated=sum(one.n_generated for one in everything),
        turns=sum(one.n_turns for one in everything) / n,
        answered=n_answered / max(1, len(counts)),
        failed=sum(one.has_failed for one in everything) / n,
        score_by_problem=score_by_problem,
        tokens_by_problem={key: sum(of_one) / len(of_one) for key, of_one in tokens.items()},
    )


def figures_of(tally_by_label: Mapping[str, Tally], *, seed: int) -> tuple[Figures, ...]:
    """Return the figures of several models; ValueError when one of them has no conversation.

    Intervals are those of each model alone. Models with as many problems share the draws, which
    take most of the time where there are thousands.
    """
    values_M = [
        list(values.values())
        for counted in tally_by_label.values()
        for values in (counted.score_by_problem, counted.tokens_by_problem)
    ]
    estimates = iter(estimate_means(values_M, seed=seed))
    return tuple(
        Figures(**vars(counted), label=label, score=next(estimates), tokens=next(estimates))
        for label, counted in tally_by_label.items()
    )


def mean_of_tasks(found_T: Sequence[Figures], *, seed: int) -> Figures:
    """Return the figures of a model on several tasks: means over the tasks, whatever their sizes.

    Score, tokens, reward, turns and the shares answered and failed are means of the tasks' own;
    intervals are of problems drawn within each task. Counts are of all conversations, and so are
    the median and the 95th percentile of the tokens.
    """
    n = len(found_T)
    rewards = [one.reward for one in found_T if one.reward is not None]
    rows = [[list(one.score_by_problem.values()) for one in found_T],
            [list(one.tokens_by_problem.values()) for one in found_T]]  # fmt: skip
    score, tokens = (estimate_mean_of_means(values_TP, seed=seed) for values_TP in rows)
    return Figures(
        label=found_T[0].label,
        model=found_T[0].model,
        counts=tuple(count for one in found_T for count in one.counts),
        n_conversations=sum(one.n_conversations for one in found_T),
        n_generated=sum(one.n_generated for one in found_T),
        turns=sum(one.turns for one in found_T) / n,
        answered=sum(one.answered for one in found_T) / n,
        failed=sum(one.failed for one in found_T) / n,
        score_by_problem={k: v for one in found_T for k, v in one.score_by_problem.items()},
        tokens_by_problem={k: v for one in found_T for k, v in one.tokens_by_problem.items()},
        score=score,
        tokens=tokens,
        reward=sum(rewards) / n if len(rewards) == n else None,
        seconds=sum(one.seconds for one in found_T),
        made_in_s=found_T[0].made_in_s,
    )


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
