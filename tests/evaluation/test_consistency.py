"""Votes and coverage."""

import itertools
from functools import partial

import pytest

from optima.evaluation.statistics import (
    IsSame,
    Sample,
    estimate_mean,
    group_answers,
    orders,
    scaling_curve,
    vote_of_all,
    votes,
)
from optima.tasks import METRICS
from optima.tasks.judging import Judge


def _is_same(metric: str, *choices: str) -> IsSame:
    return partial(Judge().are_same, METRICS[metric], choices=choices)


def test_answers_of_one_meaning_form_a_group() -> None:
    same = _is_same("exact_match")
    assert group_answers(["B", "(b)", None, "C", "", "B."], same) == [0, 0, None, 1, None, 0]
    assert group_answers(["1,000", "1000.0", "$1000", "999"], same) == [0, 0, 0, 1]


def test_choices_are_grouped_by_the_one_they_name() -> None:
    same = _is_same("exact_match", "wood", "iron")
    answers = ["B", "B. iron", "iron", "wood", "B. wood", "A or B", "(a)"]
    assert group_answers(answers, same) == [0, 0, 0, 1, 2, 3, 1]


def test_texts_are_grouped_by_pairwise_f1_above_nine_tenths() -> None:
    same = _is_same("f1")
    long = "one two three four five six seven eight nine ten"
    # 10 of 11 words: F1 = 2 * (10/11) * 1 / (10/11 + 1) = 0.952; 10 of 13: 0.870
    answers = [long, f"{long} eleven", f"{long} eleven twelve thirteen", "The Paris", "paris"]
    assert group_answers(answers, same) == [0, 0, 1, 2, 2]


def test_a_group_holds_only_what_all_its_members_are_like() -> None:
    def near(a: str, b: str) -> bool:
        return abs(int(a) - int(b)) <= 1

    assert group_answers(["1", "2", "3"], near) == [0, 0, 1]  # 3 is near 2 and not 1


def test_vote_is_the_mean_score_of_the_largest_group() -> None:
    samples = [Sample(0, 0.2, 1), Sample(1, 0.9, 1), Sample(1, 1.0, 1), Sample(None, 0.0, 1)]
    assert list(votes(samples)) == pytest.approx([0.2, 0.2, 0.95, 0.95])


def test_of_equal_groups_the_first_begun_wins_and_no_answer_never() -> None:
    assert list(votes([Sample(3, 0.0, 1), Sample(1, 1.0, 1)])) == [0.0, 0.0]
    assert list(votes([Sample(None, 0.0, 1)] * 2 + [Sample(0, 1.0, 1)])) == [0.0, 0.0, 1.0]


def test_curve_of_one_right_in_three() -> None:
    samples = {"p": [Sample(0, 1.0, 10), Sample(1, 0.0, 20), Sample(1, 0.0, 30)]}
    points = scaling_curve(samples, seed=0, n_orders=600)
    assert [point.k for point in points] == [1, 2, 3]
    assert points[0].score.mean == pytest.approx(1 / 3, abs=0.05)
    assert points[0].coverage == points[0].score
    assert points[1].coverage.mean == pytest.approx(2 / 3, abs=0.05)
    assert points[2].coverage.mean == 1.0
    assert points[2].score.mean == 0.0  # two wrong ones agree
    assert points[0].n_tokens == pytest.approx(20, abs=1)
    assert points[2].n_tokens == 60.0
    assert points == scaling_curve(samples, seed=0, n_orders=600)


def test_vote_of_all_samples_is_the_last_point_of_the_curve() -> None:
    tie = [Sample(0, 1.0, 10), Sample(1, 0.0, 10)]  # the first begun wins: half of the orders
    sure = [Sample(0, 1.0, 10), Sample(0, 1.0, 10)]
    samples = {"tie": tie, "sure": sure}
    found = vote_of_all(samples, seed=3)
    assert found["sure"] == 1.0
    assert found["tie"] == pytest.approx(0.5, abs=0.25)
    last = scaling_curve(samples, seed=3)[-1]
    assert last.score.mean == pytest.approx(sum(found.values()) / 2)


def test_vote_of_all_hears_the_last_sample() -> None:
    # the two wrong ones agree, whichever order they come in
    samples = {"p": [Sample(0, 1.0, 1), Sample(1, 0.0, 1), Sample(1, 0.0, 1)]}
    assert vote_of_all(samples, seed=0) == {"p": 0.0}


def test_orders_are_drawn_from_seed_and_problem_and_differ_from_each_other() -> None:
    samples = [Sample(k, 1.0, k) for k in range(8)]

    def drawn(problem_id: str, seed: int) -> list[tuple[Sample, ...]]:
        return [tuple(order) for order in orders(problem_id, samples, seed=seed)]

    assert drawn("p", 0) == drawn("p", 0)
    assert len({*drawn("p", 0), *drawn("p", 1), *drawn("q", 0)}) > 50  # of 60 among 40,320
    assert all(set(order) == set(samples) for order in drawn("p", 0))


def test_orders_stay_the_same_from_release_to_release() -> None:
    # a curve drawn again must be the one that was reported
    samples = [Sample(k, 1.0, k) for k in range(6)]
    first, second = orders("p", samples, seed=0, n_orders=2)
    assert [sample.group for sample in first] == [3, 1, 0, 4, 2, 5]
    assert [sample.group for sample in second] == [4, 5, 1, 2, 3, 0]


def test_votes_and_curves_take_the_orders_of_each_problem_and_as_many_as_asked_for() -> None:
    # With one order the first of two unlike answers wins the vote, as in that problem's order.
    samples = {
        name: [Sample(0, 1 - k / 16, 10), Sample(1, 0.0, 10)] for k, name in enumerate("abcdefgh")
    }
    first = {name: next(orders(name, tied, seed=4))[0].score for name, tied in samples.items()}
    assert len(set(first.values())) > 2
    assert vote_of_all(samples, seed=4, n_orders=1) == first
    points = scaling_curve(samples, seed=4, n_orders=1)
    expected = estimate_mean(list(first.values()), seed=4)
    assert [point.score for point in points] == [expected, expected]
    assert points[0].coverage == expected
    assert points[1].coverage == estimate_mean([1 - k / 16 for k in range(8)], seed=4)


def test_curve_is_the_mean_over_orders_of_votes_and_bests() -> None:
    # Of the 6 orders of (right, wrong, wrong) two begin with right: k = 1 and the tie of k = 2
    # score 1/3; both wrong ones agree, so k = 3 scores 0. Right is among two in 4 of 6 orders.
    samples = {"p": [Sample(0, 1.0, 1), Sample(1, 0.0, 1), Sample(1, 0.0, 1)]}
    votes_of = [list(votes(order)) for order in itertools.permutations(samples["p"])]
    expected = [sum(column) / 6 for column in zip(*votes_of, strict=True)]
    assert expected == pytest.approx([1 / 3, 1 / 3, 0.0])
    points = scaling_curve(samples, seed=1, n_orders=3000)
    assert [point.score.mean for point in points] == pytest.approx(expected, abs=0.03)
    assert [p.coverage.mean for p in points] == pytest.approx([1 / 3, 2 / 3, 1.0], abs=0.03)


def test_empty_answers_never_win_however_many() -> None:
    same = _is_same("exact_match")
    groups = group_answers([None, "", "  ", None, "B"], same)
    assert groups == [None, None, None, None, 0]
    samples = [Sample(group, float(group == 0), 1) for group in groups]
    assert list(votes(samples))[-1] == 1.0


def test_curve_ends_with_the_problem_of_fewest_samples() -> None:
    right = Sample(0, 1.0, 1)
    points = scaling_curve({"a": [right] * 3, "b": [right] * 2}, seed=0)
    assert [point.k for point in points] == [1, 2]
    assert [point.score.mean for point in points] == [1.0, 1.0]


def test_coverage_is_the_best_score_and_no_sum() -> None:
    samples = {"p": [Sample(0, 0.5, 1), Sample(0, 0.75, 1), Sample(1, 0.75, 1)]}
    points = scaling_curve(samples, seed=0)
    assert (points[1].coverage.mean, points[2].coverage.mean) == (0.75, 0.75)
