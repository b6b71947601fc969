"""The table of answers: what scores, and what is the same, in every style."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optima.recipe.schema import DataSection
from optima.tasks import TASKS
from optima.tasks.answers import is_placeholder
from optima.tasks.comparison import same_answer
from optima.tasks.judging import Judge
from optima.tasks.loading import Split, load_problems
from optima.tasks.task import Task
from optima.types import Metric

METALS = ("wood", "iron", "water", "air")
DAYS = ("Planetary days will become longer.", "Planetary days will become shorter.", "No change.")
ORDERS = ("x > y", "x < y", "x = y")
PERCENTAGES = ("10%", "10", "9", "1")
SIGNED = ("-5", "5", "+2", "-2")
LETTERS = ("B", "C", "D", "K")
SPEEDS = ("2c", "c", "0.8c", "0.5c")
GENES = ("WW or ww", "WW or Ww", "WW only", "Ww only")
ARTICLES = ("A warmer day", "A cooler day", "a mouse", "I and Ca")
SPEEDS_NORTH = ("40", "40 m north", "40 m/s", "30 m/s")
COMBINED = ("wood", "iron", "both A and B", "none of the above")
EQUAL = ("12", "-4", "4", "12")
FORMULAS = (r"$\frac{1}{2}$", r"$\frac{1}{4}$", "2", "4")
VERDICTS = ("Yes, because it is hot.", "Yes, because it is cold.", "No, because it is hot.")
MONEY = ("$1", "$1,650", "$16,500", "$20")

# (choices, gold, answers that are it, answers that are not)
CHOICES: tuple[tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        METALS,
        "B",
        (
            *("B", "b", "(B)", "(b)", "B.", "B)", "B:", "[B]", " B ", "**B**", "*B*", "`B`", '"B"'),
            *("Option B", "option b", "Choice B", "Answer: B", "The answer is B", "$B$"),
            *(
                r"\boxed{B}",
                r"\text{B}",
                r"\boxed{\text{B}}",
                r"\textbf{(B)}",
                "the answer is (B).",
            ),
            *("B. iron", "b. iron", "(B) iron", "(b) iron", "B) iron", "B: iron", "B - iron"),
            *("B iron", "B, iron", "B = iron", "**B. iron**", "**B**. iron", "B. **iron**"),
            *("Option B: iron", "iron (B)", "B (iron)", "iron", "Iron.", "IRON", "the iron"),
            *("The answer is iron", "B. the iron", "B because it rusts", "B. B", "B. Iron rusts"),
            *("B, because wood is no metal", "The correct choice is B. iron", r"\boxed{iron}"),
        ),
        (
            *("A", "C", "E", "X", "2", "", "  ", "B) or C)", "B or C", "B, C", "B and C", "B/C"),
            *("BC", "A B", "B. wood", "b. wood", "A. iron", "A iron", "(A) iron", "B (wood)"),
            *("not B", "maybe B", "B?", "iron?", "B. iron?", "probably iron", "B. not iron"),
            *("iron or wood", "iron and air", "B. iron or wood", "B. iron, C. water"),
            *("B. iron and C", "B. copper", "copper", "Because", "either B or C", "no idea", "ir"),
            *("-B", "iron wood", "B. iron, not wood", "A. wood", "wood", "B but maybe C"),
        ),
    ),
    (
        DAYS,
        "B",
        (
            *("B", "planetary days will become shorter", "B. Planetary days will become shorter."),
            *("B. Planetary days", "B. planetary days will be shorter", "b) planetary days will"),
        ),
        (
            *("A", "shorter", "planetary days", "B. Planetary days will become longer."),
            *("B. planetary nights", "C", "A. Planetary days will become shorter", "B. No change"),
        ),
    ),
    (ORDERS, "A", ("A", "x > y", "A. x > y", "X > Y"), ("x < y", "A. x < y", "x y", "B", "x = y")),
    (PERCENTAGES, "B", ("B", "10", "B. 10"), ("10%", "A", "B. 10%", "9", "100")),
    (SIGNED, "A", ("A", "-5", "A. -5", "\u22125", "A) $-5$"), ("5", "B", "A. 5", "+5", "2")),
    (LETTERS, "B", ("B", "B. C", "(b)"), ("C", "A", "D", "K", "B. D")),
    (LETTERS, "D", ("D", "K", "D. K"), ("B", "D. B")),
    (SPEEDS, "B", ("B", "c", "B. c"), ("C", "2c", "C. 0.8c", "B. 2c")),
    (SPEEDS, "C", ("C", "0.8c", "C. 0.8c"), ("c", "C. c", "B")),
    (GENES, "B", ("B", "WW or Ww", "B. WW or Ww", "B. ww or ww"), ("B. WW or ww", "ww or ww", "D")),
    (GENES, "D", ("Ww only", "d) Ww only"), ("WW only", "D. WW only")),
    (ARTICLES, "B", ("A cooler day", "A cooler day (B)", "a cooler day"), ("A", "A. cooler day")),
    (ARTICLES, "D", ("I and Ca", "I and Ca (D)", "D. I and Ca"), ("I", "Ca")),
    (SPEEDS_NORTH, "B", ("40 m north", "40 m north (B)", "B. 40 m north"), ("40", "40 m", "A")),
    (SPEEDS_NORTH, "D", ("30", "30 m/s", "D. 30"), ("30 km/h", "40 m/s")),
    (COMBINED, "C", ("C", "both A and B", "C. both A and B"), ("A and B", "A", "B", "D")),
    (COMBINED, "D", ("D", "None of the above.", "D) none of the above"), ("none", "C")),
    (EQUAL, "D", ("D", "D. 12"), ("12", "A", "A. 12", "-4")),
    (FORMULAS, "A", ("A", r"\frac{1}{2}", "1/2", r"A. $\dfrac{1}{2}$", "0.5"), ("1/4", "2", "C")),
    (VERDICTS, "A", ("A. Yes", "Yes, because it is hot", "A"), ("Yes", "A. No", "No", "B. Yes")),
    (MONEY, "B", ("B", "$1,650", "1650", "1,650 dollars", "B. $1,650"), ("$16,500", "1", "165")),
    (("slower", "faster", "the same"), "A", ("A", "slower", "A) slower"), ("D", "faster", "B")),
    (("a", "b", "c", "d", "e e"), "E", ("E", "e e", "E. e e"), ("e f", "A", "D")),
)

# (gold, answers that are it, answers that are not), for golds without choices
NUMBERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "18",
        (
            *("18", "18.", "18.0", "18.00", "$18", "$18.00", r"\$18", "$18$", "+18", "**18**"),
            *(r"\boxed{18}", r"\mathbf{18}", r"\text{18}", r"\boxed{\mathbf{18}}", "18 dollars"),
            *("9+9=18", "9 + 9 = 18", r"2 \times 9 = 18", "2 x 9 = 18", "9 + 9 = 18 dollars"),
            *("18 = 9 + 9", "x = 18", "Total = 18", "9 apples + 9 apples = 18 apples", "36/2"),
            *("18 miles/hour", "18 miles per hour", "18 apples", "18%", "18 m^2", "18°"),
            *(r"18 \text{ cm}^2", r"18^\circ", "18kg", "18 USD", "USD 18", "18 (eighteen)"),
            *("The answer is 18", "Answer: 18", "the total is 18 dollars", "She makes $18 a day."),
            *("18 = 18.0", "18,", "54/3 = 18", "(20 - 2) = 18"),
        ),
        (
            *("19", "-18", "1.8", "180", "18 or 20", "18, 20", "18 and 20", "18-20", "18 to 20"),
            *("not 18", "about 18", "at least 18", "more than 18", "18 or more", "18x", "18 x"),
            *("18 = 20", "18x = 18", "x > 18", "eighteen", "", "9 + 9", "9 + 9 = 20", "18 - 2"),
            *("18 dollars and 5 cents", "18^2", "5x = 18", "18/2", "18, not 20", "- 18"),
            *("the answer is not 18", "x = 18 or x = 20", "18 million", "maybe 18", "18 minus"),
        ),
    ),
    ("-5", ("-5", "\u22125", "- 5", "-$5", "minus 5", "x = -5"), ("5", "+5", "5 - 10", "-50")),
    ("5", ("5", "10 - 5 = 5"), ("-5", "is - 5", "a loss of -5", "minus 5", "negative 5")),
    ("1,080", ("1080", "1,080", "$1,080.0", "1{,}080", r"1\,080"), ("1,08", "10 80", "108")),
    ("109,200,000", ("109200000", "109.2 million", "$109,200,000"), ("109.2", "109,200")),
    ("3.5", (r"3\frac{1}{2}", "3 1/2", "7/2", "3 1/2 cups", "3.50"), ("31/2", "3", "3/2")),
)

TEXTS: tuple[tuple[str, str, float], ...] = (  # answer, gold, F1
    *(("yes", "yes", 1.0), ("Yes.", "yes", 1.0), ("no", "yes", 0.0), ("no, yes", "yes", 0.0)),
    *(("yes, it is", "yes", 0.0), ("yes or no", "no", 0.0), ("no", "no, thanks", 0.0)),
    *(("noanswer", "Paris", 0.0), ("Paris", "noanswer", 0.0), ("no", "No", 1.0)),
    *(("Paris", "Paris", 1.0), ("the Paris", "paris", 1.0), ("Paris, France", "Paris", 2 / 3)),
    *(("London", "Paris", 0.0), ("Answer the Call", "Ghostbusters: Answer the Call", 0.8)),
    *(("not yes", "no way", 0.0), ("1990", "1990.", 1.0), ("The The", "the the", 1.0)),
)

EXPRESSIONS: tuple[tuple[str, str, float], ...] = (  # answer, gold, score by the judge
    *((r"3\frac{1}{2}", r"\frac{7}{2}", 1.0), (r"3\frac{1}{2}", "31/2", 0.0)),
    *((r"137 \frac{1}{2}", "137.5", 1.0), ("18 dollars", "18", 1.0), ("18", r"18\text{ cm}", 1.0)),
    *(("9 + 9 = 18", "18", 1.0), (r"\mathbf{18}", "18", 1.0), (r"\boxed{18}", "18", 1.0)),
    *(("18 or 20", "18", 0.0), ("x > y", "x < y", 0.0), ("-5", "5", 0.0), ("5", "-5", 0.0)),
    *(("C", r"\text{(C)}", 1.0), ("D", r"\text{(C)}", 0.0), ("**18**", "18", 1.0)),
    *(("0.333333", r"\frac13", 1.0), ("0.33", r"\frac13", 0.0), ("0.5", r"50\%", 1.0)),
    *(("1+x", "x+1", 1.0), ("x-1", "x+1", 0.0), ("(2,1)", "(1,2)", 0.0), ("$x$", "x", 1.0)),
    *(("20", r"\text{June 21}", 0.0), (r"\frac 59", "5/9", 1.0), (r"\frac{50}3", "50/3", 1.0)),
    *(("111111111", r"111, \! 111, \! 111", 1.0), (r"\text{Odd}", r"\text{odd}", 1.0)),
)

# (metric, choices, groups of the same answers); answers of two groups are not the same
SAME: tuple[tuple[Metric, tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = (
    (
        "exact_match",
        METALS,
        (
            ("B", "B. iron", "(b)", "**B**", "Option B", r"\boxed{B}", "b. iron", "iron"),
            ("A", "wood", "A. wood"),
            ("B. wood",),
            ("B or C",),
            ("copper", "Copper."),
        ),
    ),
    (
        "exact_match",
        (),
        (
            ("18", "18 dollars", r"\boxed{18}", "9+9=18", "9 + 9 = 18", "$18.00", r"\mathbf{18}"),
            ("-18", "- 18", "minus 18"),
            ("18 or 20",),
            ("20", "20 miles/hour", "The answer is 20"),
            ("B", "(b)", "Option B"),
            ("x > y", "x  >  y."),
            ("x < y",),
        ),
    ),
    (
        "math",
        (),
        (
            ("18", "18 dollars", r"\boxed{18}", "9+9=18", "9 + 9 = 18", "$18.00", r"\mathbf{18}"),
            ("-18",),
            ("x+1", "1+x", "x + 1"),
            ("x-1",),
            ("x > y", "$x > y$"),
            ("x < y",),
            ("7/2", r"3\frac{1}{2}", "3.5"),
        ),
    ),
    (
        "f1",
        (),
        (
            ("yes", "Yes.", "YES"),
            ("no", "No!"),
            ("no, yes",),
            ("Paris", "the Paris", "paris."),
            ("Paris, France",),
            ("18",),
            ("18 dollars",),
        ),
    ),
)

CHOICE_CASES = [
    (answer, gold, choices, score)
    for choices, gold, right, wrong in CHOICES
    for answers, score in ((right, 1.0), (wrong, 0.0))
    for answer in answers
]
NUMBER_CASES = [
    (answer, gold, score)
    for gold, right, wrong in NUMBERS
    for answers, score in ((right, 1.0), (wrong, 0.0))
    for answer in answers
]
PAIRS = [
    (metric, choices, a, b, is_same)
    for metric, choices, groups in SAME
    for k, group in enumerate(groups)
    for a, b, is_same in (
        *((a, b, True) for a in group for b in group),
        *((group[0], b, False) for other in groups[:k] for b in other),
    )
]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def test_the_table_is_a_table() -> None:
    assert len(CHOICE_CASES) + len(NUMBER_CASES) + len(TEXTS) + len(EXPRESSIONS) > 300
    assert len(PAIRS) > 200


@pytest.mark.parametrize(("answer", "gold", "choices", "score"), CHOICE_CASES)
def test_one_choice_named_and_only_one_scores(
    answer: str, gold: str, choices: tuple[str, ...], score: float, judge: Judge
) -> None:
    assert judge.score("exact_match", answer, (gold,), choices) == score


@pytest.mark.parametrize(("answer", "gold", "score"), NUMBER_CASES)
def test_one_number_stated_and_only_one_scores(
    answer: str, gold: str, score: float, judge: Judge
) -> None:
    assert judge.score("exact_match", answer, (gold,)) == score


@pytest.mark.parametrize(("answer", "gold", "score"), TEXTS)
def test_texts_score_by_the_official_f1(answer: str, gold: str, score: float, judge: Judge) -> None:
    assert judge.score("f1", answer, (gold,)) == pytest.approx(score)


@pytest.mark.parametrize(("answer", "gold", "score"), EXPRESSIONS)
def test_expressions_score_by_meaning(answer: str, gold: str, score: float, judge: Judge) -> None:
    assert judge.score("math", answer, (gold,)) == score


@pytest.mark.parametrize(("metric", "choices", "a", "b", "is_same"), PAIRS)
def test_votes_and_talks_hold_the_same_answers_for_the_same(
    metric: Metric, choices: tuple[str, ...], a: str, b: str, is_same: bool, judge: Judge
) -> None:
    assert judge.are_same(metric, a, b, choices) is is_same
    assert judge.are_same(metric, b, a, choices) is is_same
    cheap = same_answer(a, b, metric=metric, choices=choices)
    assert cheap is is_same or (metric == "math" and cheap is None)


@pytest.mark.parametrize("letter", ["**B**", "Option B", r"\boxed{B}", "(b)", "b. volcano", "B."])
def test_a_gold_letter_is_found_where_the_choices_are_not_known(letter: str, judge: Judge) -> None:
    assert judge.score("exact_match", letter, ("B",)) == 1.0


@pytest.mark.parametrize("letter", ["B) or C)", "B or C", "A", "Because", "B. C", "not B", "BC"])
def test_a_hedged_letter_is_none_also_where_the_choices_are_not_known(
    letter: str, judge: Judge
) -> None:
    assert judge.score("exact_match", letter, ("B",)) == 0.0


PIECES = st.sampled_from(
    [
        *(*"aAbB15,.$%{}()-+= x><?", "**", "\\boxed{", "\\frac", "\\text{", "the ", "\n", "²", "١"),
        *("iron", "wood", "B. ", "Option ", "yes", "no", " or ", " = ", "dollars", "x > y", "18"),
    ]
)
ANSWERS = st.lists(PIECES, min_size=1, max_size=12).map("".join) | st.text(min_size=1, max_size=20)
METRICS: tuple[Metric, ...] = ("f1", "exact_match", "math")


@given(ANSWERS, ANSWERS)
def test_sameness_is_symmetric_and_reflexive(a: str, b: str) -> None:
    for metric in METRICS:
        for choices in ((), METALS, ORDERS, SPEEDS):
            assert same_answer(a, a, metric=metric, choices=choices) is True
            there = same_answer(a, b, metric=metric, choices=choices)
            assert there is same_answer(b, a, metric=metric, choices=choices)
            assert there is not None or metric == "math"


@given(ANSWERS, st.sampled_from("ABCD"))
def test_what_scores_agrees_with_the_gold(answer: str, gold: str) -> None:
    score = Judge().score("exact_match", answer, (gold,), METALS)
    if answer.strip():
        assert bool(score) is same_answer(answer, gold, metric="exact_match", choices=METALS)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_no_gold_is_a_placeholder_and_every_gold_is_the_same_as_itself(
    task: Task, split: Split, shared_data: Path
) -> None:
    if not shared_data.is_dir():
        pytest.skip("the rows of the benchmarks are not beside this repository")
    made = DataSection(n_train=200, n_test=50)
    data = made if task.generate else DataSection(path=str(shared_data / task.name))
    judge = Judge()
    for problem in load_problems(task, data, split, n_agents=2, seed=0).problems:
        for gold in problem.golds:
            assert not is_placeholder(gold, task.answer_style, problem.choices)
            assert judge.score(task.metric, gold, problem.golds, problem.choices) == 1.0
            assert judge.are_same(task.metric, gold, f" {gold} ", problem.choices)
        for choice in problem.choices:
            assert not is_placeholder(choice, task.answer_style, problem.choices)
