"""From rewarded candidates to the conversations that are trained on (paper Alg. 2); pure.

Shares are counted exactly: in floating point 0.7 of 90 is 62.99..., and the 63rd is lost.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import groupby

from optima.recipe.schema import SelectSection
from optima.types import RewardParts


def share_of(share: float, count: int) -> Fraction:
    """Return ``share * count`` of the share as it is written; ``int`` rounds it down."""
    return Fraction(repr(share)) * count


def best_of_n(candidates: Iterable[RewardParts]) -> RewardParts | None:
    """Return the eligible candidate of highest R, None when no candidate is eligible.

    Of equals the one of lowest n: where the reward leaves length out, so does what is selected.
    """
    eligible = [parts for parts in candidates if parts.is_eligible and parts.total is not None]
    return min(eligible, key=_rank, default=None)


def best_of_each(candidates: Iterable[RewardParts]) -> list[RewardParts]:
    """Return the best candidate of each problem that has one; those of a problem lie together."""
    groups = groupby(candidates, key=lambda parts: parts.problem_id)
    return [parts for _, group in groups if (parts := best_of_n(group)) is not None]


def select_top(best: Sequence[RewardParts], section: SelectSection) -> tuple[RewardParts, ...]:
    """Return what is trained on: R > theta, then the kept range of ranks by R, best first.

    Of m problems above the threshold the ranks from keep_from * m up to keep_to * m, both rounded
    down, are kept, at least one where m > 0.
    """
    above = sorted((p for p in best if _thresholded(p, section) > section.theta), key=_rank)
    start = int(share_of(section.keep_from, len(above)))
    stop = max(start + 1, int(share_of(section.keep_to, len(above))))
    return tuple(above[start:stop])


def shares_kept(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many of each of several tasks are kept so that their shares are their weights'.

    Of all such numbers the largest: the task that has the least for its weight keeps all. Rounded
    down, at least 1 where there is one.
    """
    pairs = [(n, share_of(weight, 1)) for n, weight in zip(counts, weights, strict=True)]
    scale = min(n / weight for n, weight in pairs)
    return [min(n, max(1, int(weight * scale))) for n, weight in pairs]


def _thresholded(parts: RewardParts, section: SelectSection) -> float:
    if section.threshold_on == "task":
        return parts.task
    assert parts.total is not None  # best_of_n lets only such through
    return parts.total


def _rank(parts: RewardParts) -> tuple[float, str, int]:
    assert parts.total is not None
    return (-parts.total, parts.problem_id, parts.n)
