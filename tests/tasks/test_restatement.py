"""Unmarked utterances that end a talk: those that say the answer, and not a word more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optima.tasks import METRICS
from optima.tasks.answers import MAX_RESTATEMENT_CHARACTERS, assents, restates

METALS = ("wood", "iron", "water", "air")


@pytest.mark.parametrize(
    ("text", "answer", "metric"),
    [
        ("18", "18", "exact_match"),
        (" Yes, the answer is 18.", "18", "exact_match"),
        ("I agree, the answer is $18.", "18", "exact_match"),
        ("The answer is **18**", "18", "exact_match"),
        ("Final answer: 18 dollars!", "18", "exact_match"),
        ("That's right, the answer is 18.", "18", "exact_match"),
        ("That\u2019s right, it\u2019s 18.", "18", "exact_match"),
        ("Correct. The final answer is 18.00", "18", "exact_match"),
        ("18 is correct.", "18", "exact_match"),
        ("18. I agree.", "18", "exact_match"),
        ("The answer is 18 apples.", "18 apples", "exact_match"),
        ("Yes, the answer is -5.", "-5", "exact_match"),
        ("The answer is Paris.", "Paris", "f1"),
        ("Agreed, it is the Eiffel Tower.", "Eiffel Tower", "f1"),
        ("The answer is Washington, D.C.", "Washington, D.C.", "f1"),
        ("I agree with you that the answer is Who's Afraid of Virginia Woolf?",
         "Who's Afraid of Virginia Woolf?", "f1"),
        ("Yes.", "yes", "f1"),
        ("Yes, the answer is yes.", "yes", "f1"),
        ("I agree, the answer is no.", "no", "f1"),
        ("Yes, the answer is x + 1.", "x+1", "math"),
        (r"I agree, the answer is $\frac{1}{2}$.", r"\frac12", "math"),
    ],
)  # fmt: skip
def test_what_only_says_the_answer_restates_it(text: str, answer: str, metric: str) -> None:
    assert restates(text, answer, metric=METRICS[metric])


@pytest.mark.parametrize(
    ("text", "answer", "metric"),
    [
        ("", "18", "exact_match"),
        ("Agreed.", "18", "exact_match"),  # it names no answer
        ("Yes, I agree with you.", "18", "exact_match"),
        ("18?", "18", "exact_match"),
        ("Is the answer 18?", "18", "exact_match"),
        ("The answer is not 18.", "18", "exact_match"),
        ("That is not right, 18", "18", "exact_match"),
        ("Incorrect, 18", "18", "exact_match"),
        ("It is 18, not 20.", "18", "exact_match"),
        ("The answer is 18 or 20.", "18", "exact_match"),
        ("The answer is 20.", "18", "exact_match"),
        ("9 + 9 = 18", "18", "exact_match"),
        ("The answer is 18 apples.", "18", "exact_match"),
        ("The answer is 18 cents.", "18 dollars", "exact_match"),
        ("The answer is 18, so Bob has 3.", "18", "exact_match"),
        ("The answer is 18. Please check.", "18", "exact_match"),
        ("The answer is -5.", "5", "exact_match"),
        ("The answer is - 5.", "5", "exact_match"),
        ("The answer is .5", "5", "exact_match"),
        ("The answer is 18", "", "exact_match"),
        ("The answer is Paris, France.", "Paris", "f1"),
        ("Alice is right, Paris.", "Paris", "f1"),
        ("Maybe Paris.", "Paris", "f1"),
        ("Paris, but I am not sure.", "Paris", "f1"),
        ("Yes.", "no", "f1"),
        ("Yes, the answer is no.", "no", "f1"),
        ("No.", "yes", "f1"),
        ("No, the answer is yes.", "yes", "f1"),
        ("9 + 9 = 18", "18", "math"),
        ("Bob has 18.", "18", "math"),
        ("18 of them are left.", "18", "math"),
        ("The answer is 18 apples.", "18", "math"),
        ("The answer is x + 2.", "x+1", "math"),
        ("The answer is 1 + x.", "x+1", "math"),  # the judge would say so, and is not asked
        ("Yes, " * 200 + "18", "18", "exact_match"),
    ],
)
def test_anything_more_or_less_does_not(text: str, answer: str, metric: str) -> None:
    assert not restates(text, answer, metric=METRICS[metric])


@pytest.mark.parametrize("answer", ["B", "iron", "B. iron"])
@pytest.mark.parametrize(
    "text",
    ["B", "(B) iron.", "Choice B", "Yes, the answer is B.", "I agree: iron.",
     "The correct answer is B. iron", "Option B is correct.", "Agreed, it's B) iron"],
)  # fmt: skip
def test_a_choice_is_restated_by_letter_or_text(text: str, answer: str) -> None:
    assert restates(text, answer, metric=METRICS["exact_match"], choices=METALS)


@pytest.mark.parametrize(
    "text",
    ["C", "B or C", "The answer is wood.", "B. wood", "B. iron conducts", "B?", "not B", "Agreed.",
     "B because it rusts", "A. iron", "The answer is B, and C is wrong."],
)  # fmt: skip
def test_another_choice_or_a_reason_is_no_restatement(text: str) -> None:
    assert not restates(text, "B", metric=METRICS["exact_match"], choices=METALS)


def test_utterance_of_more_than_the_limit_says_more_than_an_answer() -> None:
    for n_characters in (MAX_RESTATEMENT_CHARACTERS, MAX_RESTATEMENT_CHARACTERS + 1):
        is_short = n_characters == MAX_RESTATEMENT_CHARACTERS
        assert restates("18".rjust(n_characters), "18", metric=METRICS["exact_match"]) is is_short
        assert assents("Right" + "." * (n_characters - 5)) is is_short


WORDS = st.sampled_from(
    ["the", "answer", "is", "yes", "no", "not", "18", "20", "Paris", "agreed", ".", ",", "?", "or"]
)


@given(st.lists(WORDS, max_size=8).map(" ".join))
def test_no_negation_question_or_other_number_is_ever_passed_over(text: str) -> None:
    if restates(text, "18", metric=METRICS["exact_match"]):
        assert text.split().count("18") == 1
        assert not {"no", "not", "?", "20", "Paris", "or"} & set(text.split())


@pytest.mark.parametrize(
    "text",
    ["Right.", " right", "Correct!", "I agree.", "Agreed, that is correct.", "You\u2019re right.",
     "**Right**", "I agree with your answer. All steps are correct.", "Exactly."],
)  # fmt: skip
def test_bare_assent_is_told_from_everything_else(text: str) -> None:
    assert assents(text)


@pytest.mark.parametrize(
    "text",
    ["", "Yes.", "OK.", "Great!", "Right?", "Not right.", "Right, but 7 is wrong.", "Wrong.",
     "That is not correct.", "I agree that it is 18.", "Right. What else?", "Is it right",
     "I do not agree."],
)  # fmt: skip
def test_whatever_else_is_said_is_no_bare_assent(text: str) -> None:
    assert not assents(text)
