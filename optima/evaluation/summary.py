"""What is said of one model on one task: score with its interval, tokens, turns, failures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optima.evaluation.statistics import Estimate, estimate_means, percentile
from optima.types import Conversation, RewardParts


@dataclass(frozen=True, slots=True)
class Judged:
    """What a summary takes of one conversation: its task score in [0, 1], tokens and turns.

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


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted of one model's conversations, problem by problem, before any interval.

    ``counts`` are the tokens of each conversation; shares in [0, 1]; problems are in the order in
    which they first came.
    """

    counts: tuple[int, ...]
    n_generated: int
    turns: float
    answered: float
    failed: float
    score_by_problem: dict[str, float]
    tokens_by_problem: dict[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one model on the problems of one task.

    ``score``, ``answered`` and ``failed`` in [0, 1]; tokens are those of the utterances of a
    conversation by the paper's count (label in, end of turn out), ``generated`` the mean of those
    that the server generated (label out, end of turn in) and ``n_generated`` all of them; failed
    and overlong conversations count in full. ``score_by_problem`` are the
    means over each problem's conversations, which the interval is drawn over.
    """

    n_problems: int
    n_conversations: int
    score: Estimate
    tokens: Estimate
    tokens_median: float
    tokens_p95: float
    turns: float
    answered: float
    failed: float
    generated: float
    n_generated: int
    score_by_problem: dict[str, float]
    tokens_by_problem: dict[str, float]


def summarise(judged: Iterable[tuple[Conversation, RewardParts]], *, seed: int) -> Summary:
    """Summarise conversations with their rewards; ValueError when there are none."""
    counted = tally(
        Judged(
            problem_id=conversation.problem_id,
            score=parts.task,
            n_tokens=conversation.n_tokens,
            n_generated=conversation.n_generated,
            n_turns=len(conversation.turns),
            is_answered=conversation.answer is not None,
            has_failed=conversation.error is not None or parts.error is not None,
        )
        for conversation, parts in judged
    )
    return summarise_together([counted], seed=seed)[0]


def tally(judged: Iterable[Judged]) -> Tally:
    """Count conversations problem by problem."""
    scores: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, list[int]] = defaultdict(list)
    n_turns = n_answered = n_failed = n_generated = 0
    for one in judged:
        scores[one.problem_id].append(one.score)
        tokens[one.problem_id].append(one.n_tokens)
        n_generated += one.n_generated
        n_turns += one.n_turns
        n_answered += one.is_answered
        n_failed += one.has_failed
    counts = tuple(n for of_one in tokens.values() for n in of_one)
    n = max(1, len(counts))
    return Tally(
        counts=counts,
        n_generated=n_generated,
        turns=n_turns / n,
        answered=n_answered / n,
        failed=n_failed / n,
        score_by_problem={key: sum(of_one) / len(of_one) for key, of_one in scores.items()},
        tokens_by_problem={key: sum(of_one) / len(of_one) for key, of_one in tokens.items()},
    )


def summarise_together(tallies: Sequence[Tally], *, seed: int) -> list[Summary]:
    """Summarise several models; ValueError when one of them has no conversation.

    Intervals are those of each model alone. Models with as many problems share the draws, which
    take most of the time where there are thousands.
    """
    values_M = [
        values
        for counted in tallies
        for values in (
            list(counted.score_by_problem.values()),
            list(counted.tokens_by_problem.values()),
        )
    ]
    estimates = iter(estimate_means(values_M, seed=seed))
    return [_summary(counted, next(estimates), next(estimates)) for counted in tallies]


def _summary(counted: Tally, score: Estimate, tokens: Estimate) -> Summary:
    return Summary(
        n_problems=len(counted.score_by_problem),
        n_conversations=len(counted.counts),
        score=score,
        tokens=tokens,
        tokens_median=percentile(counted.counts, 50),
        tokens_p95=percentile(counted.counts, 95),
        turns=counted.turns,
        answered=counted.answered,
        failed=counted.failed,
        generated=counted.n_generated / max(1, len(counted.counts)),
        n_generated=counted.n_generated,
        score_by_problem=counted.score_by_problem,
        tokens_by_problem=counted.tokens_by_problem,
    )
