"""Intervals."""

import dataclasses

import pytest

from optima.evaluation.statistics import estimate_mean, estimate_means


def test_interval_of_coin_flips_is_the_binomial_one() -> None:
    flips = [1.0] * 300 + [0.0] * 700
    found = estimate_mean(flips, seed=0)
    assert found.mean == pytest.approx(0.3)
    # 1.96 * sqrt(0.3 * 0.7 / 1000) = 0.0284
    assert found.low == pytest.approx(0.3 - 0.0284, abs=0.002)
    assert found.high == pytest.approx(0.3 + 0.0284, abs=0.002)
    assert found == estimate_mean(flips, seed=0)


def test_values_without_spread_have_no_interval() -> None:
    found = estimate_mean([0.5, 0.5, 0.5], seed=1)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_no_value_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate_mean([], seed=0)


def test_paired_difference_sees_what_single_intervals_hide() -> None:
    hard_and_easy = [i / 200 for i in range(200)]
    better = [value + 0.02 for value in hard_and_easy]
    alone = estimate_mean(better, seed=0), estimate_mean(hard_and_easy, seed=0)
    assert alone[0].low < alone[1].high  # the two overlap
    pairs = list(zip(better, hard_and_easy, strict=True))
    found = estimate_mean([value - other for value, other in pairs], seed=0)
    assert found.mean == pytest.approx(0.02)
    assert found.is_nonzero
    assert not estimate_mean([0.0] * 200, seed=0).is_nonzero


def test_means_estimated_together_are_those_of_each_alone() -> None:
    rows = [[0.0, 1.0, 1.0], [5.0, 6.0], [0.25, 0.5, 2.0]]
    together = estimate_means(rows, seed=3)
    for row, found in zip(rows, together, strict=True):
        alone = estimate_mean(row, seed=3)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(alone))
