from fractions import Fraction

import pytest

from optima.recipe.schema import SelectSection
from optima.selection import best_of_each, best_of_n, select_top, share_of, shares_kept
from optima.types import RewardParts


def parts(
    total: float | None, *, problem: str = "p", n: int = 0, tokens: int = 10, task: float = 1.0,
    is_eligible: bool = True,
) -> RewardParts:  # fmt: skip
    return RewardParts(
        problem_id=problem, n=n, task=task, token=0.5, loss=1.0, loss_term=1.0, total=total,
        n_tokens=tokens, is_eligible=is_eligible, error=None if total is not None else "why",
    )  # fmt: skip


def test_best_of_n_has_the_highest_reward() -> None:
    assert best_of_n([parts(0.1, n=0), parts(0.9, n=1), parts(0.5, n=2)]) == parts(0.9, n=1)


def test_of_equal_rewards_the_lower_sample_is_best_whatever_its_length() -> None:
    # Without weights all right answers are equal: the shortest must not be preferred unasked.
    group = [parts(1.0, n=2, tokens=9), parts(1.0, n=1, tokens=10), parts(0.5, n=0, tokens=9)]
    assert best_of_n(group) == group[1]
    best = [parts(1.0, problem="b", tokens=1), parts(1.0, problem="a", tokens=9)]
    assert select_top(best, SelectSection(keep_to=0.5)) == (best[1],)


def test_candidates_with_faults_or_errors_are_never_best() -> None:
    group = [parts(5.0, is_eligible=False), parts(None, is_eligible=False), parts(-3.0, n=2)]
    assert best_of_n(group) == group[2]
    assert best_of_n(group[:2]) is None
    assert best_of_n([]) is None


def test_each_problem_gives_its_own_best_and_one_without_any_gives_none() -> None:
    p = [parts(0.1), parts(0.9, n=1)]
    q = [parts(None, problem="q", is_eligible=False)]
    r = [parts(-2.0, problem="r", n=1), parts(-3.0, problem="r")]
    assert best_of_each(iter([*p, *q, *r])) == [p[1], r[0]]


def test_top_seventy_per_cent_of_what_exceeds_theta() -> None:
    # Ten problems above 0.5 and one exactly at it: int(0.7 * 10) = 7 are kept, best first.
    best = [parts(0.6 + i / 100, problem=f"p{i}") for i in range(10)] + [parts(0.5, problem="at")]
    kept = select_top(best, SelectSection(theta=0.5))
    assert [p.problem_id for p in kept] == ["p9", "p8", "p7", "p6", "p5", "p4", "p3"]
    assert select_top(best[-1:], SelectSection(theta=0.5)) == ()


def test_seventy_per_cent_are_of_those_above_theta_and_not_of_all() -> None:
    # Five of ten are above 0.5: int(0.7 * 5) = 3 are kept, where 70 % of all ten would keep five.
    best = [parts(i / 10 + 0.05, problem=f"p{i}") for i in range(10)]
    kept = select_top(best, SelectSection(theta=0.5))
    assert [p.problem_id for p in kept] == ["p9", "p8", "p7"]


def test_range_of_the_reference_for_math_drops_the_best_tenth() -> None:
    best = [parts(1.0 + i / 100, problem=f"p{i}") for i in range(10)]
    kept = select_top(best, SelectSection(keep_from=0.1, keep_to=0.8))
    assert [p.problem_id for p in kept] == [f"p{i}" for i in range(8, 1, -1)]


def test_theta_may_apply_to_the_task_reward() -> None:
    best = [parts(0.2, problem="right", task=1.0), parts(0.9, problem="wrong", task=0.0)]
    kept = select_top(best, SelectSection(theta=0.5, threshold_on="task"))
    assert [p.problem_id for p in kept] == ["right"]


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2), (10, 7), (90, 63)])
def test_at_least_one_is_kept_where_there_is_one(n: int, expected: int) -> None:
    best = [parts(1.0 + i, problem=f"p{i}") for i in range(n)]
    assert len(select_top(best, SelectSection())) == expected


def test_both_ends_of_the_range_are_shares_as_written() -> None:
    # 0.29 of 100 is 29 and 0.57 of 100 is 57, which floating point makes 28 and 56.
    best = [parts(1.0 + i, problem=f"p{i}") for i in range(100)]
    kept = select_top(best, SelectSection(keep_from=0.29, keep_to=0.57))
    assert [p.problem_id for p in kept] == [f"p{i}" for i in range(70, 42, -1)]


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.7, 90, 63), (0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7), (1e-3, 3000, 3), (1.0, 7, 7)],
)
def test_share_of_a_count_is_that_of_the_number_as_written(
    share: float, count: int, expected: int
) -> None:
    # In floating point 0.7 * 90, 0.29 * 100 and 0.57 * 100 lie below, 0.07 * 100 lies above.
    assert share_of(share, count) == expected


def test_rounding_is_left_to_the_caller() -> None:
    assert share_of(0.7, 5) == Fraction(7, 2)
    assert int(share_of(0.7, 5)) == 3


@pytest.mark.parametrize(
    ("counts", "weights", "kept"),
    [
        ([300, 90], [2.0, 1.0], [180, 90]),  # 90 for a weight of 1, so 180 for 2
        ([300, 90], [1.0, 1.0], [90, 90]),
        ([100, 90], [2.0, 1.0], [100, 50]),  # here the first is the scarcer
        ([63, 90], [0.7, 1.0], [63, 90]),  # exactly: 0.7 of 90 is 63, not 62.99...
        ([50, 40, 1], [1.0, 0.1, 1.0], [1, 1, 1]),  # never none
        ([7], [5.0], [7]),
    ],
)
def test_shares_hold_by_the_scarcest_task(
    counts: list[int], weights: list[float], kept: list[int]
) -> None:
    assert shares_kept(counts, weights) == kept


def test_every_task_has_a_weight() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        shares_kept([7, 9], [1.0])
