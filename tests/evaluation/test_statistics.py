"""Intervals."""

import dataclasses

import numpy as np
import pytest

from optima.evaluation.statistics import (
    N_RESAMPLES,
    estimate_mean,
    estimate_mean_of_means,
    estimate_means,
    percentile,
)


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


def test_interval_lies_between_percentiles_of_seeded_draws_in_one_stream() -> None:
    values = np.random.default_rng(1).random(700)  # 600 draws of so many are more than is held once
    drawn = np.random.default_rng(5).integers(700, size=(600, 700))
    low, high = np.percentile(values[drawn].mean(axis=1), [10, 90])
    found = estimate_mean(values, seed=5, n_resamples=600, level=0.8)
    assert dataclasses.astuple(found) == pytest.approx((values.mean(), low, high))
    first = values[drawn[0]].mean()
    alone = estimate_mean(values, seed=5, n_resamples=1)
    assert (alone.low, alone.high) == pytest.approx((first, first))


def test_interval_of_a_mean_of_tasks_is_of_draws_by_seed_and_place() -> None:
    rows = [np.random.default_rng(t).random(size) for t, size in enumerate((30, 20))]
    means = []
    for t, row in enumerate(rows):
        drawn = np.random.default_rng([3, t]).integers(len(row), size=(N_RESAMPLES, len(row)))
        means.append(row[drawn].mean(axis=1))
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    found = estimate_mean_of_means([list(row) for row in rows], seed=3)
    mean = (rows[0].mean() + rows[1].mean()) / 2
    assert dataclasses.astuple(found) == pytest.approx((mean, low, high))


@pytest.mark.parametrize(("n_values", "least"), [(30, 0.91), (200, 0.93)])
def test_interval_holds_the_true_mean_about_as_often_as_it_says(
    n_values: int, least: float
) -> None:
    draws = np.random.default_rng(7).beta(0.4, 0.6, size=(400, n_values))  # scores crowd at 0 and 1
    found = [estimate_mean(values, seed=seed, n_resamples=600) for seed, values in enumerate(draws)]
    share = sum(one.low <= 0.4 <= one.high for one in found) / len(found)  # 0.4 / (0.4 + 0.6)
    # The binomial error of 400 intervals at 95 % is 1.1 points; small samples run a little short.
    assert least <= share <= 0.98


def test_paired_interval_covers_the_true_difference_and_is_the_narrower() -> None:
    generator = np.random.default_rng(11)
    n_held, widths = 0, []
    for seed in range(300):
        hard = generator.normal(0.0, 1.0, 60)  # what a problem adds to both models
        ours, theirs = hard + generator.normal(0.3, 0.5, 60), hard + generator.normal(0.0, 0.5, 60)
        paired = estimate_mean(ours - theirs, seed=seed, n_resamples=600)
        alone = estimate_mean(ours, seed=seed, n_resamples=600)
        n_held += paired.low <= 0.3 <= paired.high
        widths.append((paired.high - paired.low, alone.high - alone.low))
    assert 0.90 <= n_held / 300 <= 0.98
    assert np.mean([paired for paired, _ in widths]) < np.mean([alone for _, alone in widths])


def test_percentiles_lie_between_neighbours() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 50) == 2.5
    # rank 0.95 * (4 - 1) = 2.85: 3 + 0.85 * (4 - 3)
    assert percentile(values, 95) == pytest.approx(3.85)
    assert percentile([7.0], 95) == 7.0


def test_percentile_that_is_a_whole_number_is_not_rounded_below_it() -> None:
    # Rank 0.85 * 99 = 84.15: 795 + 0.15 * (815 - 795) = 798, in floating point 797.99….
    values = [float(n) for n in (*range(84), 795, 815, *range(900, 914))]
    assert len(values) == 100
    assert percentile(values, 85.0) == 798.0


def test_mean_of_tasks_counts_each_task_once_and_draws_problems_within_it() -> None:
    many, few = [1.0] * 300 + [0.0] * 700, [1.0] * 5 + [0.0] * 5
    found = estimate_mean_of_means([many, few], seed=0)
    assert found.mean == pytest.approx((0.3 + 0.5) / 2)
    # sd of half the sum: sqrt(0.3 * 0.7 / 1000 + 0.5 * 0.5 / 10) / 2 = 0.0794; times 1.96
    assert found.low == pytest.approx(0.4 - 0.156, abs=0.02)
    assert found.high == pytest.approx(0.4 + 0.156, abs=0.02)
    # Of two tasks alike the draws are their own: the interval is narrower than that of one.
    same = estimate_mean_of_means([few, few], seed=0)
    alone = estimate_mean(few, seed=0)
    assert same.high - same.low < 0.85 * (alone.high - alone.low)
    steady = estimate_mean_of_means([[1.0] * 3, [0.0] * 9], seed=0)
    assert (steady.mean, steady.low, steady.high) == (0.5, 0.5, 0.5)
