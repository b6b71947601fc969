"""What is dress of an answer, and what is left without it."""

import pytest

from optima.tasks.texts import (
    MAX_LAYERS,
    closing_braces,
    f1_score,
    normalise_latex,
    normalise_text,
    undress,
    without_lead_in,
    without_verdict,
)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        *((text, "B") for text in ("** B **", "“B”", "_B_", "'B'", "<b>B</b>", "Ｂ。", "B;", "B:")),
        *((text, "B") for text in (r"\boxed{\text{B}}", r"\fbox{B}", r"\(B\)", "$$B$$", "# B")),
        *((text, "B") for text in (r"{\bf B}", r"\bf B", r"{ \it B}")),
        *((text, text) for text in (r"{\bf B} or {\bf C}", r"{\bf B", r"{\bf {B} C")),
        *((text, text) for text in ("a..", ".", "#18", "*B* and *C*", "**", "****", "{B}", "((")),
        *((text, text) for text in (r"\boxed B", r"\boxed{B} or \boxed{C}", "", "$5$ or $6$")),
    ],
)  # fmt: skip
def test_what_wraps_the_whole_is_taken_off(text: str, bare: str) -> None:
    assert undress(text) == bare
    assert undress(f" {text}\n") == bare


def test_dress_is_taken_off_in_as_many_layers_as_are_looked_at() -> None:
    assert undress("\\text{" * MAX_LAYERS + "B" + "}" * MAX_LAYERS) == "B"
    assert undress("\\text{" * (MAX_LAYERS + 1) + "B" + "}" * (MAX_LAYERS + 1)) == r"\text{B}"


@pytest.mark.parametrize(
    ("text", "without_lead", "without_both"),
    [
        *((text, "B", "B") for text in ("The answer is **B**.", "Answer: **B**", "**Answer:** B")),
        *((text, "B", "B") for text in ("So, **the answer is B**.", "**The answer is** **B**")),
        ("So, the final answer is: B is correct.", "B is correct", "B"),
        ("B is the best choice", "B is the best choice", "B"),
        ("**B** is right.", "**B** is right", "B"),
        ("I'd go with iron", "iron", "iron"),
        ("= 18", "18", "18"),
        ("answer", "answer", "answer"),
        ("iron", "iron", "iron"),
    ],
)
def test_lead_in_and_verdict_are_taken_off(text: str, without_lead: str, without_both: str) -> None:
    assert (without_lead_in(text), without_verdict(text)) == (without_lead, without_both)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("$5$.", "5"),
        (r" \$5 ", "5"),
        (".5.", ".5"),
        (r"\left( x \right)", "(x)"),
        (r"\bigl( x", "(x"),
        (r"\dfrac12", r"\frac12"),
        (r"\tfrac{1}{2}", r"\frac{1}{2}"),
        (r"\text{ even}", "even"),
        (r"\mathbf{x}", "x"),
        ("1{,}000", "1,000"),
        (r"50\%", "50%"),
        (r"90^{\circ}", r"90^\circ"),
        (r"a \, b~c \quad d", "abcd"),
        (r"x \le 3", r"x\le3"),
        (r"\leftarrow", r"\leftarrow"),
        (r"\dfraction", r"\dfraction"),
    ],
)
def test_formulas_lose_what_changes_no_meaning(text: str, normal: str) -> None:
    assert normalise_latex(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Band, an A!", "band"), ("The The", "the the"), (" + ", "+"), ("A.", "a"), ("", "")],
)
def test_squad_form_never_loses_everything(text: str, normal: str) -> None:
    assert normalise_text(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("yes", "yes it is", 0.0),
        ("no way", "no", 0.0),
        ("noanswer", "x noanswer", 0.0),
        ("The yes.", "yes", 1.0),
        ("yes it is", "yes it was", 2 / 3),
        ("x y y", "y y z z", 4 / 7),  # 2 shared: P = 2/3, R = 2/4
    ],
)
def test_verdicts_are_right_as_a_whole_or_not_at_all(answer: str, gold: str, score: float) -> None:
    assert f1_score(answer, gold) == pytest.approx(score)
    assert f1_score(gold, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("{a}{b}", {0: 2, 3: 5}),
        ("{a{b}c}", {0: 6, 2: 4}),
        ("}{", {}),
        (r"\{a\}", {}),
        (r"{\}}", {0: 3}),
        ("{{a}", {1: 3}),
    ],
)
def test_each_brace_knows_its_end(text: str, places: dict[int, int]) -> None:
    assert closing_braces(text) == places
