"""Scores against independent ones: SQuAD's rules on a table, rows of the benchmarks by hand."""

from pathlib import Path

import pytest

from optima.recipe.schema import DataSection
from optima.tasks import TASKS
from optima.tasks.judging import Judge
from optima.tasks.loading import load_problems
from optima.tasks.metrics import EXACT_MATCH, F1, MATH
from optima.tasks.texts import f1_score
from optima.types import Problem

# Precision and recall over words after lower case, without punctuation and articles, counted by
# hand as (shared, words of the answer, words of the gold).
SQUAD = (
    ("Denver Broncos", "Denver Broncos", (2, 2, 2)),
    ("the Denver Broncos", "Denver Broncos", (2, 2, 2)),
    ("DENVER  broncos!", "Denver Broncos", (2, 2, 2)),
    ("Broncos", "Denver Broncos", (1, 1, 2)),
    ("The Broncos won it all", "Denver Broncos", (1, 4, 2)),
    ("Carolina Panthers", "Denver Broncos", (0, 2, 2)),
    ("a an the Broncos", "Broncos", (1, 1, 1)),
    ("theatre", "the atre", (0, 1, 1)),  # an article is a whole word
    ("Saint-Denis", "saintdenis", (1, 1, 1)),  # punctuation leaves nothing behind
    ("Saint-Denis", "Saint Denis", (0, 1, 2)),
    ("$1,000", "1000", (1, 1, 1)),
    ("O'Neil", "oneil", (1, 1, 1)),
    ("to be or not to be", "to be", (2, 6, 2)),  # a word counts as often as the other has it
    ("to be", "to be or not to be", (2, 2, 6)),
    ("to to to", "to be to", (2, 3, 3)),
    ("caf\u00e9", "cafe", (0, 1, 1)),  # no accents are taken off
    ("1990 and 1991", "1991 and 1990", (3, 3, 3)),  # the order of words is free
)


@pytest.mark.parametrize(("answer", "gold", "counts"), SQUAD)
def test_f1_follows_the_official_rules(
    answer: str, gold: str, counts: tuple[int, int, int]
) -> None:
    n_shared, n_answer, n_gold = counts
    expected = 0.0
    if n_shared:
        precision, recall = n_shared / n_answer, n_shared / n_gold
        expected = 2 * precision * recall / (precision + recall)
    assert f1_score(answer, gold) == pytest.approx(expected)


def test_the_best_gold_counts() -> None:
    with Judge() as judge:
        assert judge.score(F1, "New York City", ("Big Apple", "New York")) == pytest.approx(0.8)
        assert judge.score(EXACT_MATCH, "18", ("19", "18")) == 1.0
        assert judge.score(MATH, "18", ("19", "18")) == 1.0
        assert judge.score(MATH, "1+x", ("y", "x+1")) == 1.0


def _row(shared_data: Path, task: str, begin: str) -> Problem:
    data = DataSection(path=str(shared_data / task))
    loaded = load_problems(TASKS[task], data, "test", n_agents=2, seed=0)
    return next(problem for problem in loaded.problems if problem.question.startswith(begin))


@pytest.mark.parametrize(
    ("begin", "right", "wrong"),
    [
        # 16 - 3 - 4 = 9 eggs at 2 dollars
        ("Janet", ("18", "$18", "18.00", "18 dollars"), ("9", "1.8", "-18", "18 or 9", "")),
        # 2 + 2 / 2
        ("A robe takes", ("3", "3 bolts", "3.0"), ("2", "4", "3/2")),
        # worth 2.5 times 80,000, less the 130,000 spent
        ("Josh decides", ("70000", "70,000", "$70,000.00"), ("120000", "70", "7,000")),
        # 500 + 1500 + 500 / 4; the row's own answer is written 2,125
        ("Johnny is picking", ("2125", "2,125", "2125 pieces"), ("2,12", "2215", "21 25")),
        # 194 * (490 - 150); the row's own answer is written 65,960
        ("It costs $194", ("65960", "$65,960"), ("29100", "65.96", "65,9600")),
    ],
)
def test_gsm8k_rows_solved_by_hand(
    begin: str, right: tuple[str, ...], wrong: tuple[str, ...], shared_data: Path
) -> None:
    golds = _row(shared_data, "gsm8k", begin).golds
    with Judge() as judge:
        assert [judge.score(EXACT_MATCH, answer, golds) for answer in right] == [1.0] * len(right)
        assert [judge.score(EXACT_MATCH, answer, golds) for answer in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("begin", "right", "wrong"),
    [
        (
            "An astronomer observes",
            ("C", "c", "(C)", "C. Planetary days will become shorter.",
             "planetary days will become shorter"),
            ("A", "D", "CD", "Planetary years will become longer.", "shorter", ""),
        ),
        (
            "A toy truck rolls",  # three choices
            ("A", "slower", "A) slower"),
            ("B", "D", "faster"),
        ),
        (
            "How are warm-blooded",  # five choices
            ("D", "D:"),
            ("E", "A", "Warm-blooded animals are found only in warm climates."),
        ),
    ],
)  # fmt: skip
def test_arc_rows_answered_by_hand(
    begin: str, right: tuple[str, ...], wrong: tuple[str, ...], shared_data: Path
) -> None:
    row = _row(shared_data, "arc", begin)
    with Judge() as judge:
        for answers, score in ((right, 1.0), (wrong, 0.0)):
            for answer in answers:
                assert judge.score(EXACT_MATCH, answer, row.golds, row.choices) == score
