"""Groups of mathematical answers, and a vote as one row of a table."""

from collections.abc import Sequence
from functools import partial

import pytest

from optima.evaluation.figures import Judged, figures_of, tally
from optima.evaluation.statistics import Sample, group_answers, vote_of_all
from optima.tasks.judging import Judge, JudgeError
from optima.tasks.metrics import MATH
from optima.tasks.task import Metric

HANGS = "9^{9^{9^{9^9}}}"


class CountingJudge(Judge):
    """Notes what it was asked."""

    def __init__(self) -> None:
        super().__init__(n_workers=1, cpu_limit_s=1.0)
        self.asked: list[tuple[str | None, tuple[str, ...]]] = []

    def score(
        self,
        metric: Metric,
        answer: str | None,
        golds: Sequence[str],
        choices: Sequence[str] = (),
    ) -> float:
        self.asked.append((answer, tuple(golds)))
        return super().score(metric, answer, golds, choices)


def test_equivalent_expressions_form_a_group() -> None:
    answers = [r"\frac12", "0.5", "x+1", None, "1+x", "", r"\frac{2}{4}", "2"]
    with Judge() as judge:
        groups = group_answers(answers, partial(judge.are_same, MATH))
    assert groups == [0, 0, 1, None, 1, None, 0, 2]


def test_an_answer_that_hangs_is_compared_twice_not_with_every_other() -> None:
    others = [f"x+{n}" for n in range(6)]
    with CountingJudge() as judge:
        is_same = partial(judge.are_same, MATH)
        groups = group_answers([*others[:3], HANGS, *others[3:], HANGS], is_same)
        hung = [one for one in judge.asked if HANGS in (one[0], *one[1])]
    assert groups == [0, 1, 2, 3, 4, 5, 6, 3]
    assert len(hung) == 2  # with another answer, and with a harmless expression


def test_a_sound_answer_is_not_blamed_for_those_it_met() -> None:
    with Judge(n_workers=1, cpu_limit_s=1.0) as judge:
        with pytest.raises(JudgeError):
            judge.score(MATH, HANGS, ["1+y"])
        is_same = partial(judge.are_same, MATH)
        assert not is_same(HANGS, "1+y")
        assert not is_same(f"{HANGS}+1", "1+y")
        assert is_same("y+1", "1+y")


def test_a_vote_costs_what_its_samples_cost_and_is_answered_when_one_of_them_is() -> None:
    judged = [
        Judged("a", 0.0, 10, 11, 1, False, False),
        Judged("a", 1.0, 20, 19, 1, True, False),
        Judged("b", 0.0, 10, 10, 1, False, False),
        Judged("b", 0.0, 20, 20, 1, False, True),
    ]
    samples = {
        "a": [Sample(None, 0.0, 10), Sample(0, 1.0, 20)],
        "b": [Sample(None, 0.0, 10), Sample(None, 0.0, 20)],
    }
    (found,) = figures_of({"sc": tally(judged, vote_of_all(samples, seed=0))}, seed=0)
    assert found.score_by_problem == {"a": 1.0, "b": 0.0}
    assert found.tokens_by_problem == {"a": 30.0, "b": 30.0}
    assert (found.score.mean, found.tokens.mean, found.tokens_median) == (0.5, 30.0, 30.0)
    assert found.answered == 0.5
    assert found.turns == 1.0
    assert found.failed == 0.25  # of the samples
    assert (found.n_samples, found.counts) == (2, (30, 30))
    assert (found.n_generated, found.generated) == (60, 30.0)  # of a vote, as its tokens are
