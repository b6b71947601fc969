"""Self-consistency and coverage of several samples a problem (paper section 4).

Answers that are the same by the rule that scores the task (``Judge.are_same``) form a group: the
same choice or number, equivalent expressions, or, where F1 is the metric, a pairwise F1 above 0.9.
The vote of k samples is the largest group, the first begun among equals; its score is the mean
score of its members. Coverage is the best score of the k.
What has no answer never wins. A figure for k is the mean over seeded orders of the samples: one
order alone would say more about the order than about k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from optima.evaluation.statistics import Estimate, estimate_mean
from optima.seeding import rng

N_ORDERS = 20

IsSame = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation as votes see it: its group (None without an answer), score and tokens."""

    group: int | None
    score: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Point:
    """Means over problems for k samples: scores in [0, 1], tokens of all k conversations."""

    k: int
    score: Estimate
    coverage: Estimate
    n_tokens: float


def group_answers(answers_N: Sequence[str | None], is_same: IsSame) -> list[int | None]:
    """Return each answer's group, numbered as they begin; no or an empty answer has none.

    An answer joins the first group all of whose members are the same as it.
    """
    groups: list[list[str]] = []
    number_by_answer: dict[str, int] = {}
    for answer in answers_N:
        if answer is None or not answer.strip() or answer in number_by_answer:
            continue
        fitting = (n for n, group in enumerate(groups) if all(is_same(answer, m) for m in group))
        number = next(fitting, len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(answer)
        number_by_answer[answer] = number
    return [None if answer is None else number_by_answer.get(answer) for answer in answers_N]


def votes(samples: Sequence[Sample]) -> Iterator[float]:
    """Yield the score of the largest group of the first 1, 2, ... samples; 0 without an answer."""
    scores: dict[int, list[float]] = {}  # by group, in the order in which groups were begun
    for sample in samples:
        if sample.group is not None:
            scores.setdefault(sample.group, []).append(sample.score)
        winner = max(scores.values(), key=len, default=[0.0])  # the first of equals
        yield sum(winner) / len(winner)


def orders(
    problem_id: str, samples: Sequence[Sample], *, seed: int, n_orders: int = N_ORDERS
) -> Iterator[list[Sample]]:
    """Yield the samples of a problem in ``n_orders`` seeded orders."""
    for n in range(n_orders):
        order = list(samples)
        rng(seed, "scaling", problem_id, n).shuffle(order)
        yield order


def vote_of_all(
    samples_by_problem: Mapping[str, Sequence[Sample]], *, seed: int, n_orders: int = N_ORDERS
) -> dict[str, float]:
    """Return each problem's score of a vote among all its samples, as the curve's last point."""
    return {
        problem_id: sum(
            list(votes(order))[-1]
            for order in orders(problem_id, samples, seed=seed, n_orders=n_orders)
        )
        / n_orders
        for problem_id, samples in samples_by_problem.items()
    }


def scaling_curve(
    samples_by_problem: Mapping[str, Sequence[Sample]], *, seed: int, n_orders: int = N_ORDERS
) -> list[Point]:
    """Return one point for each k from 1 to the least number of samples of a problem."""
    n_most = min(map(len, samples_by_problem.values()))
    shape = (len(samples_by_problem), n_most)
    scores_PK, bests_PK, tokens_PK = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for p, (problem_id, samples) in enumerate(samples_by_problem.items()):
        for order in orders(problem_id, samples, seed=seed, n_orders=n_orders):
            taken = order[:n_most]
            scores_PK[p] += list(votes(taken))
            bests_PK[p] += list(accumulate((sample.score for sample in taken), max))
            tokens_PK[p] += list(accumulate(sample.n_tokens for sample in taken))
    return [
        Point(
            k=k + 1,
            score=estimate_mean(scores_PK[:, k] / n_orders, seed=seed),
            coverage=estimate_mean(bests_PK[:, k] / n_orders, seed=seed),
            n_tokens=float(tokens_PK[:, k].mean() / n_orders),
        )
        for k in range(n_most)
    ]
