import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optima.tasks import METRICS, choices
from optima.tasks.answers import last_marked_answer, marked_answers, restates
from optima.tasks.choices import choice_letter, named_choice
from optima.tasks.metrics import MATH, exact_match
from optima.tasks.numbers import (
    MAX_CHARACTERS,
    is_bound_or_doubt,
    parse_number,
    stated_number,
)
from optima.tasks.texts import f1_score, normalise_latex, normalise_text, undress


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("I think <A>Paris</A>.", ["Paris"]),
        ("<A> a </A> or <A>b</A>", ["a", "b"]),
        ("<A>two\nlines</A>", ["two\nlines"]),
        ("<A>never closed", []),
        ("<A></A> <A>  </A>", []),
        ("<A>first <A>second</A>", ["second"]),
        ("the answer is Paris", []),
        ("<A>x</A></A>", ["x"]),
        ("<B>x</B>", []),
        ("```\n<A>Paris</A>\n```", ["Paris"]),
        ("`<A>Paris</A>` <A>Rome</A>", ["Paris", "Rome"]),
        ("<A> <A>Paris</A> </A>", ["Paris"]),
        ("Paris</A>", []),
        ("<A>Paris<A>", []),
        ("<A></A><A>Paris</A><A>", ["Paris"]),
    ],
)
def test_tags_are_found_complete_and_non_empty(text: str, answers: list[str]) -> None:
    assert marked_answers(text, "tag") == answers


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (r"so $\boxed{5}$", ["5"]),
        (r"\boxed{\frac{1}{2}} then \boxed{ \{1, 2\} }", [r"\frac{1}{2}", r"\{1, 2\}"]),
        (r"\boxed{\left\{ x \right\}}", [r"\left\{ x \right\}"]),
        (r"\fbox{7}", ["7"]),
        (r"$\boxed 2$.", ["2"]),
        (r"\boxed 2., so", ["2"]),
        ("\\boxed\t.5", [".5"]),
        (r"\boxed {3}", ["3"]),
        ("\\boxed\n  {3}", ["3"]),
        (r"\boxed{never closed", []),
        (r"\boxed{} \boxed{ }", []),
        (r"\boxedx{5}", []),
        (r"\boxed{a \boxed{b}}", [r"a \boxed{b}"]),
        (r"\boxed{broken \boxed{8}", ["8"]),
        ("\\", []),
        (r"$\boxed{18}$, $\boxed{19}$", ["18", "19"]),
        (r"$\boxed x$", ["x"]),
        (r"use \boxed and the \boxed notation or \boxed answer", []),
        (r"\boxed{{}} \boxed{\text{}} \boxed{\ } \boxed{\square} \boxed{\_\_}", []),
        (r"\boxed{\underline{\hspace{1cm}}} \boxed{\phantom{0}} \boxed{\{\}}", [r"\{\}"]),
    ],
)
def test_boxes_are_found_with_balanced_braces(text: str, answers: list[str]) -> None:
    assert marked_answers(text, "boxed") == answers


def test_the_last_mark_wins_and_an_empty_one_counts_as_none() -> None:
    assert last_marked_answer("<A>a</A> no, <A>b</A> <A></A>", "tag") == "b"
    assert last_marked_answer("<A></A>", "tag") is None
    assert last_marked_answer(r"\boxed{1}", "tag") is None


@pytest.mark.parametrize(
    "content",
    [
        *("answer", "Answer.", "ANSWER", "your answer", "the answer", "an answer", "final answer"),
        *(
            "your final answer",
            "answer here",
            "your answer here",
            "insert answer here",
            "...",
            "..",
        ),
        *(
            "\u2026",
            "[answer]",
            "<answer>",
            "{answer}",
            "(answer)",
            "[your answer]",
            "<your answer>",
        ),
        *("your_answer", "final_answer", "**answer**", '"answer"', "your choice", "[letter]"),
        *(
            "<choice>",
            "[text]",
            "your letter",
            "letter here",
            "____",
            "XXXXX",
            "?",
            "the correct answer",
        ),
        *(r"\text{answer}", r"\ldots", "answer in words", "[number]", "my answer"),
        *("example answer", "sample answer", "[placeholder]", "<blank>", "answer in one word"),
        *("yes/no", "Yes | No", "true/false", "answer in a few words", "your string"),
    ],
)
def test_a_placeholder_is_no_answer(content: str) -> None:
    assert marked_answers(f"<A>{content}</A>", "tag") == []
    assert last_marked_answer(f"<A>Paris</A> as <A>{content}</A>", "tag") == "Paris"
    assert marked_answers(rf"\boxed{{{content}}} \boxed{{18}}", "boxed") == ["18"]


@pytest.mark.parametrize(
    "content",
    [
        *("letter", "choice", "text", "X", "x", "solution", "The Final Solution", "number", "word"),
        *("Answer the Call", "none", "unknown", "-", "+", "A", "U.S.", "[0, 1]", "(-5)", "XXX"),
        *("yes or no", "blank", "example", "sample", "string", "placeholder", "one word"),
        *("a letter of intent", "...And Justice for All", "[Paris]", "yes", "option", "no answer"),
    ],
)
def test_what_may_be_an_answer_is_no_placeholder(content: str) -> None:
    assert marked_answers(f"<A>{content}</A>", "tag") == [content]


@pytest.mark.parametrize(
    "content",
    [
        *("letter", "the letter", "choice", "text", "option", "X", "choice text", "option letter"),
        *("A/B/C/D", "A, B, C, or D", "letter of the choice", "correct option", "the text"),
    ],
)
def test_placeholders_of_choices_are_none_beside_choices(content: str) -> None:
    assert marked_answers(f"<A>{content}</A>", "tag", ("wood", "iron")) == []
    assert marked_answers(f"<A>{content}</A>", "tag", ("wood", content)) == [content]


def test_letters_and_words_beside_choices_are_answers() -> None:
    said = ["B", "iron", "B. iron", "b", "a metal"]
    marks = " ".join(f"<A>{answer}</A>" for answer in said)
    assert marked_answers(marks, "tag", ("wood", "iron")) == said
    assert marked_answers("<A>X</A>", "tag", tuple(map(str, range(24)))) == ["X"]  # A to X
    assert marked_answers("<A>X</A>", "tag", tuple(map(str, range(23)))) == []


def test_placeholders_of_numbers_are_none_in_a_box() -> None:
    for content in (
        "number",
        "numerical value",
        "integer",
        "value",
        "the final value",
        "result",
        "expression",
    ):
        assert marked_answers(rf"\boxed{{{content}}}", "boxed") == []
    for content in ("x", "n", "X", r"\text{even}", r"\text{no solution}", "(answer, 1)"):
        assert marked_answers(rf"\boxed{{{content}}}", "boxed") == [content]


@pytest.mark.parametrize(
    "echo",
    [
        *("between <A> and </A>", "between `<A>` and `</A>`", 'between "<A>" and "</A>"'),
        *("between **<A>** and **</A>**", "the tags <A> and </A>", "tags <A>, </A>", "<A> or </A>"),
        *("from <A> to </A>", "between <A> and the mark </A>", "the opening tag <A> and the </A>"),
        *(
            "begin with <A> and end with </A>",
            "<A> & </A>",
            "<A>/</A>",
            "<A>\u200b</A>",
            "<A>.</A>",
        ),
        *("<A>AND</A>", "<A>&nbsp;</A>", "<A>``</A>", "between <A> and only then </A>"),
    ],
)
def test_marks_that_are_only_spoken_of_hold_no_answer(echo: str) -> None:
    assert marked_answers(f"Write it {echo}.", "tag") == []
    assert marked_answers(f"Write it {echo}. It is <A>Paris</A>.", "tag") == ["Paris"]


def test_and_is_no_answer_but_titles_with_it_are() -> None:
    for title in ("And Then There Were None", "and Justice for All", "Iron and Wine", "to be"):
        assert marked_answers(f"It is <A>{title}</A>", "tag") == [title]
    assert marked_answers(r"between \boxed{ and }, \boxed{\text{and}}", "boxed") == []
    assert marked_answers("<A>and</A>", "tag", ("and", "or")) == ["and"]


@pytest.mark.parametrize(
    "content",
    [
        *("{{answer}}", "[[your answer]]", "$ANSWER", "your-answer", "yourAnswer", "ANSWER_1"),
        *("&lt;answer&gt;", "same answer", "Bob's answer", "the final answer is", "answer:", "*"),
        *(r"\textbf{answer}", r"\text{answer in simplest form}", "<your answer here>", "and/or"),
    ],
)
def test_a_placeholder_in_any_dress_is_no_answer(content: str) -> None:
    assert marked_answers(f"<A>{content}</A>", "tag") == []
    assert marked_answers(rf"\boxed{{{content}}}", "boxed") == []


def test_f1_of_the_worked_example() -> None:
    # answer: {cat, sat, mat}; gold: {black, cat, sat}: 2 shared, P = 2/3, R = 2/3, F1 = 2/3
    assert f1_score("The cat sat; mat!", "a black cat sat") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("the Eiffel Tower", "Eiffel Tower.", 1.0),
        ("Eiffel", "Eiffel Tower", 2 / 3),  # P = 1, R = 1/2
        ("London", "Paris", 0.0),
        ("new york new york", "new york", 2 / 3),  # 2 shared of 4 and 2: P = 1/2, R = 1
        ("U.S.A.", "USA", 1.0),
        ("well-known", "well known", 0.0),  # punctuation goes without a space, as in SQuAD
        ("yes", "no", 0.0),
        ("a theatre", "theatre", 1.0),
    ],
)
def test_f1_is_squads(answer: str, gold: str, expected: float) -> None:
    assert f1_score(answer, gold) == pytest.approx(expected)


def test_f1_is_over_words_not_over_parts_of_them() -> None:
    assert f1_score("cathedral", "cat") == 0.0


def test_answers_of_articles_and_signs_alone_stay_apart() -> None:
    assert normalise_text("The Band") == "band"
    assert normalise_text("The The") == "the the"
    assert f1_score("The The", "The The") == 1.0
    assert f1_score("a", "The The") == 0.0
    assert normalise_text("A") != normalise_text("the")
    assert normalise_text("+") != normalise_text("-")
    assert normalise_text("(A)") == normalise_text("a.")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", 1234),
        ("$1,234.00", 1234),
        (r"\$5", 5),
        ("-3.50", -3.5),
        ("-1 1/2", -1.5),
        (f"{'9' * 1001} 1/2", None),
        ("\u22123", -3),
        ("1{,}080", 1080),
        ("50%", 50),
        (r"50\%", 50),
        ("3/4", 0.75),
        (r"\frac{3}{4}", 0.75),
        ("x = 5", 5),
        ("18.", 18),
        (".5", 0.5),
        ("1,23", None),
        ("12 000", None),
        ("5 or 6", None),
        ("5x", None),
        ("x=2, y=3", None),
        ("1/0", None),
        ("five", None),
        ("", None),
        (".", None),
        ("18 dollars", None),
    ],
)
def test_numbers_are_read_exactly(text: str, number: float | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18 dollars", 18),
        (r"18 \text{ dollars}", 18),
        ("2 million", 2_000_000),
        ("20 miles per hour.", 20),
        ("30kg", 30),
        ("5x", None),
        ("5 or 6", None),
        ("18 dollars and 5 cents", None),
    ],
)
def test_units_are_ignored_on_request(text: str, number: float | None) -> None:
    assert parse_number(text, units="ignore") == number


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("N = no. of ways = 5", False),
        ("no 5", True),
        ("about 5", True),
        ("5 times a day", False),
        (r"x = \text{18?}", True),
        (r"x = \text{at least }5", True),
        (r"\text{at least } n = 5", False),
    ],
)
def test_what_stands_before_the_last_sign_of_equality_is_no_bound(text: str, is_one: bool) -> None:
    assert is_bound_or_doubt(text) is is_one


def test_text_of_more_than_the_limit_is_no_number_and_no_choice() -> None:
    for n_characters in (MAX_CHARACTERS, MAX_CHARACTERS + 1):
        text = "5".rjust(n_characters)
        is_short = n_characters == MAX_CHARACTERS
        assert (parse_number(text) == 5) is (stated_number(text) == 5) is is_short
        assert is_bound_or_doubt(text) is not is_short
    for n_characters in (choices.MAX_CHARACTERS, choices.MAX_CHARACTERS + 1):
        text = "B".rjust(n_characters)
        is_short = n_characters == choices.MAX_CHARACTERS
        assert (choice_letter(text) == "B") is is_short
        assert (named_choice(text, ("wood", "iron")) == 1) is is_short


@pytest.mark.parametrize(
    "text", ["B", "b", "(B)", "B.", "B)", "B:", " (B). ", "B. wet palms", "(B) x"]
)
def test_a_choice_letter_is_found_in_its_usual_forms(text: str) -> None:
    assert choice_letter(text) == "B"


@pytest.mark.parametrize("text", ["Because", "wet palms", "12", "", "A B", "a dog"])
def test_words_are_no_choice_letter(text: str) -> None:
    assert choice_letter(text) is None


def test_exact_match_compares_as_the_gold_asks() -> None:
    assert exact_match("(b)", "B")
    assert not exact_match("A", "B")
    assert exact_match("$1,080.0", "1,080")
    assert exact_match("18 dollars", "18")
    assert not exact_match("19", "18")
    assert exact_match("Wet  palms.", "wet palms")
    assert not exact_match("A. wet palms", "wet palms")
    assert not exact_match("x > y", "x < y")
    assert not exact_match("-3", "3")


def test_latex_is_compared_without_its_dress() -> None:
    assert MATH.same(r"\dfrac{x}{2}", r"\frac{x}{2}")
    assert MATH.same(r"\left( 1, 2 \right)", "(1,2)")
    assert MATH.same(r"\text{even}", "even")
    assert MATH.same("0.5", r"\frac{1}{2}")
    assert MATH.same("5x", "5") is not True
    assert MATH.same("x=5, y=3", "x=2, y=3") is not True
    assert normalise_latex(r"x \le 3") == r"x\le3"
    assert normalise_latex(r"\leftarrow") == r"\leftarrow"


RUNAWAY = ("\\boxed{", "<A>", "9", "1,", "1=", "9 + ", "a ", "yes, ", "(", "**", "\\text{", "-")
PIECES = st.sampled_from(
    [*r"aA15,.$%{}()\/-+= ", "<A>", "</A>", "\\boxed{", "\\frac", "\\text{", "the", "\n", "²", "١"]
)


@given(st.lists(PIECES, max_size=30).map("".join), st.lists(PIECES, max_size=30).map("".join))
def test_no_text_makes_a_comparison_fail(a: str, b: str) -> None:
    assert MATH.same(a, a) is bool(a)
    assert MATH.same(a, b) is MATH.same(b, a)
    assert f1_score(a, b) == pytest.approx(f1_score(b, a))
    assert 0.0 <= f1_score(a, b) <= 1.0
    exact_match(a, b)
    parse_number(a, units="ignore")
    for text in (a, b):
        assert all(marked_answers(text, "tag") + marked_answers(text, "boxed"))


def test_runaway_texts_cost_no_time() -> None:
    start = time.process_time()  # of this process, however busy the machine
    for text in (*(piece * 20_000 for piece in RUNAWAY), " " * 5_000, f"a{' ' * 20_000}b"):
        for style in ("tag", "boxed"):
            marked_answers(text, style)
        exact_match(text, "5")
        exact_match(text, "B")
        f1_score(text, text)
        undress(text)
        stated_number(text)
        named_choice(text, ("wood", "iron"))
        for metric in METRICS.values():
            metric.same(text, text + "1")
            metric.same(text, text + "1", ("wood", "iron"))
            restates(text, "5", metric=metric)
    assert time.process_time() - start < 10
