"""Means over problems and their intervals, and what several samples a problem add (section 4).

How far a mean may be off is said by a percentile bootstrap, seeded. Problems are drawn with
replacement; what is paired (two models on the same problems) is drawn together, so that what a
problem's difficulty adds to both falls out of their difference.

Self-consistency: answers that are the same by the rule that scores the task (``Judge.are_same``)
form a group: the same choice or number, equivalent expressions, or, where F1 is the metric, a
pairwise F1 above 0.9. The vote of k samples is the largest group, the first begun among equals; its
score is the mean score of its members. Coverage is the best score of the k. What has no answer
never wins. A figure for k is the mean over seeded orders of the samples: one order alone would say
more about the order than about k.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

from optima.seeding import rng
from optima.selection import share_of

if TYPE_CHECKING:  # slow to import, and commands read runs that need none of it
    import numpy as np
    from numpy.typing import NDArray

N_RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 400_000  # drawn indices held at once
N_ORDERS = 20

IsSame = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the interval that holds it at the level asked for."""

    mean: float
    low: float
    high: float

    @property
    def is_nonzero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def estimate_mean(
    values_P: "Sequence[float] | NDArray[np.float64]",
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean of one value per problem with its interval; ValueError without values."""
    return estimate_means([values_P], seed=seed, n_resamples=n_resamples, level=level)[0]


def estimate_means(
    values_MP: "Sequence[Sequence[float] | NDArray[np.float64]]", *, seed: int,
    n_resamples: int = N_RESAMPLES, level: float = LEVEL,
) -> list[Estimate]:  # fmt: skip
    """Return the mean with its interval of each of M rows, as ``estimate_mean`` of it alone.

    Rows of equal length share their draws. ValueError for a row without values.
    """
    import numpy as np

    rows = [np.asarray(values_P, dtype=np.float64) for values_P in values_MP]
    if any(values.size == 0 for values in rows):
        raise ValueError("a mean needs at least one value")
    tail = 100 * (1 - level) / 2
    found: dict[int, Estimate] = {}
    for size in dict.fromkeys(values.size for values in rows):
        places = [m for m, values in enumerate(rows) if values.size == size]
        means_MR = _resampled_means(np.stack([rows[m] for m in places]), seed, n_resamples)
        for m, means in zip(places, means_MR, strict=True):
            low, high = np.percentile(means, [tail, 100 - tail])
            found[m] = Estimate(float(rows[m].mean()), float(low), float(high))
    return [found[m] for m in range(len(rows))]


def estimate_mean_of_means(values_TP: Sequence[Sequence[float]], *, seed: int) -> Estimate:
    """Return the mean over T tasks of the means of their problems, with its interval.

    Problems are drawn within their task, independently of the other tasks.
    """
    import numpy as np

    rows = [np.asarray([values], dtype=np.float64) for values in values_TP]
    means_TR = [_resampled_means(row, [seed, t], N_RESAMPLES)[0] for t, row in enumerate(rows)]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.mean(means_TR, axis=0), [tail, 100 - tail])
    return Estimate(float(np.mean([row.mean() for row in rows])), float(low), float(high))


def _resampled_means(
    values_MP: "NDArray[np.float64]", seed: int | list[int], n_resamples: int
) -> "NDArray[np.float64]":
    """Return the means of ``n_resamples`` draws with replacement, the same draws for each row."""
    import numpy as np

    n_rows, size = values_MP.shape
    generator = np.random.default_rng(seed)
    sums_MR = np.empty((n_rows, n_resamples))
    step = max(1, _CHUNK // size)
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn = generator.integers(0, size, size=(n, size))
        for r, places in enumerate(drawn, start=start):
            # How often each value was drawn: several rows share the count, and it stays in cache.
            sums_MR[:, r] = values_MP @ np.bincount(places, minlength=size)
    means_MR: NDArray[np.float64] = sums_MR / size
    return means_MR


def percentile(values: Sequence[float], share: float) -> float:
    """Return the ``share`` percentile (0 to 100) of values, interpolated between neighbours.

    Exact, as it may be rounded down: the 85th percentile of 0, 1, ..., 100 is 85 and not 84.99….
    """
    ordered = sorted(values)
    place = share_of(share, len(ordered) - 1) / 100
    low, high = (Fraction(float(ordered[at])) for at in (int(place), math.ceil(place)))
    return float(low + (place - int(place)) * (high - low))


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
    number_by_answer: dict[str | None, int] = {}
    for answer in answers_N:
        if answer is None or not answer.strip() or answer in number_by_answer:
            continue
        fitting = (n for n, group in enumerate(groups) if all(is_same(answer, m) for m in group))
        number = next(fitting, len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(answer)
        number_by_answer[answer] = number
    return [number_by_answer.get(answer) for answer in answers_N]


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
    import numpy as np

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
