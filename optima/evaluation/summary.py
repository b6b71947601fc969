"""What is said of one model on one task: score with its interval, tokens, turns, failures."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from optima.evaluation.statistics import Estimate, estimate_mean, percentile
from optima.types import Conversation, RewardParts


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one model on the problems of one task.

    ``score``, ``answered`` and ``failed`` in [0, 1]; tokens are those the agents generated in a
    conversation; failed and overlong conversations count in full. ``score_by_problem`` are the
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
    n_tokens: int
    score_by_problem: dict[str, float]
    tokens_by_problem: dict[str, float]


def summarise(judged: Iterable[tuple[Conversation, RewardParts]], *, seed: int) -> Summary:
    """Summarise conversations with their rewards; ValueError when there are none."""
    scores: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, list[int]] = defaultdict(list)
    n_turns = n_answered = n_failed = 0
    for conversation, parts in judged:
        scores[conversation.problem_id].append(parts.task)
        tokens[conversation.problem_id].append(conversation.n_tokens)
        n_turns += len(conversation.turns)
        n_answered += conversation.answer is not None
        n_failed += conversation.error is not None or parts.error is not None
    score_by_problem = {key: sum(of_one) / len(of_one) for key, of_one in scores.items()}
    tokens_by_problem = {key: sum(of_one) / len(of_one) for key, of_one in tokens.items()}
    counts = [n for of_one in tokens.values() for n in of_one]
    n = max(1, len(counts))
    return Summary(
        n_problems=len(scores),
        n_conversations=len(counts),
        score=estimate_mean(list(score_by_problem.values()), seed=seed),
        tokens=estimate_mean(list(tokens_by_problem.values()), seed=seed),
        tokens_median=percentile(counts, 50),
        tokens_p95=percentile(counts, 95),
        turns=n_turns / n,
        answered=n_answered / n,
        failed=n_failed / n,
        n_tokens=sum(counts),
        score_by_problem=score_by_problem,
        tokens_by_problem=tokens_by_problem,
    )
