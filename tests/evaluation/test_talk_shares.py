"""The shares of what goes wrong in talks, counted by hand, and what is advised."""

from dataclasses import replace
from typing import Literal

import pytest

from optima.evaluation.health import TalkHealth, examine
from optima.types import Conversation, Fault, Problem, StopReason, Turn


def _problem(key: str, gold: str, choices: tuple[str, ...] = ()) -> Problem:
    return Problem(
        problem_id=key, task="arc", question="?", golds=(gold,), contexts=("", ""), choices=choices
    )


def _turn(text: str, finish_reason: Literal["stop", "length", "label"] = "stop") -> Turn:
    return Turn(
        agent=0, name="Alice", text=text, answer=None, n_prompt_tokens=1, n_tokens=1,
        finish_reason=finish_reason, seconds=0.0,
    )  # fmt: skip


def _talk(
    key: str,
    *turns: Turn,
    answer: str | None = None,
    stop: StopReason = "max_turns",
    faults: tuple[Fault, ...] = (),
) -> Conversation:
    return Conversation(
        problem_id=key, n=0, format_id=None, turns=turns, stop_reason=stop, answer=answer,
        faults=faults,
    )  # fmt: skip


GOOD = TalkHealth(
    n=20, marked=1.0, agreed=1.0, leaked=0.0, cut=0.0, repeated=0.0, empty=0.0, top_answer="iron",
    top_share=0.6, top_gold_share=0.3, n_problems=10,
)  # fmt: skip


def test_each_share_counts_its_own_fault() -> None:
    problems = [_problem("p", "Paris"), _problem("q", "B", ("wood", "iron")), _problem("r", "x")]
    health = examine(
        [
            _talk("p", _turn(" a"), _turn(" b"), answer="The Paris", stop="agreement"),
            _talk("p", _turn(" c"), answer="paris!", stop="alone"),
            _talk("p", _turn(" d"), answer="Rome", faults=("role_leakage",)),
            _talk("q", _turn(" e", "label"), answer="paris", faults=("overflow",)),
            _talk("q", _turn(" f"), _turn(" f "), _turn(" g"), stop="error"),
            _talk("r", _turn("  "), stop="context_overflow", faults=("overflow",)),
            _talk("r", _turn(" h"), answer="iron"),
            _talk("r", _turn(" i"), answer="iron"),
        ],
        problems,
    )
    assert health == TalkHealth(
        n=8, marked=6 / 8, agreed=2 / 8, leaked=2 / 8, cut=2 / 8, repeated=1 / 8, empty=1 / 8,
        top_answer="paris", top_share=2 / 3, top_gold_share=1 / 3, n_problems=3,
    )  # fmt: skip


def test_choice_counts_as_right_by_its_text_and_by_its_letter() -> None:
    problems = [_problem(f"p{k}", "B", ("wood", "iron")) for k in range(2)]
    for answer, share in (("iron", 1.0), ("B", 1.0), ("wood", 0.0), ("A", 0.0)):
        talks = [_talk(f"p{k}", _turn(" a"), answer=answer) for k in range(2)]
        assert examine(talks, problems).top_gold_share == share


def test_nothing_counted_has_no_share() -> None:
    health = examine([], [])
    assert (health.n, health.n_problems, health.marked) == (0, 0, 0.0)
    assert (health.top_answer, health.top_share, health.has_collapsed) == ("", 0.0, False)


def test_metrics_carry_every_share_under_its_name() -> None:
    assert replace(GOOD, marked=0.9, leaked=0.1, cut=0.2, repeated=0.3, empty=0.4).metrics() == {
        "health/marked": 0.9, "health/agreed": 1.0, "health/leaked": 0.1, "health/cut": 0.2,
        "health/repeated": 0.3, "health/empty": 0.4, "health/top_share": 0.6,
        "health/collapsed": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n_problems", "top_share", "top_gold_share", "has_collapsed"),
    [
        *((10, 0.6, 0.3, False), (10, 0.6, 0.29, True), (9, 0.9, 0.0, False)),
        *((10, 0.5, 0.1, True), (10, 0.49, 0.0, False)),
    ],
)
def test_collapse_is_one_answer_to_half_of_ten_problems_right_for_under_half_of_them(
    n_problems: int, top_share: float, top_gold_share: float, has_collapsed: bool
) -> None:
    health = replace(
        GOOD, n_problems=n_problems, top_share=top_share, top_gold_share=top_gold_share
    )
    assert health.has_collapsed is has_collapsed
    assert health.metrics()["health/collapsed"] == float(has_collapsed)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, []),
        ({"leaked": 0.3, "cut": 0.3, "repeated": 0.3, "marked": 0.7, "agreed": 0.4}, []),
        ({"marked": 0.6, "agreed": 0.6}, ["40 % of the conversations mark no answer"]),
        ({"agreed": 0.6}, ["40 % mark an answer that nobody confirms"]),
        ({"leaked": 0.4}, ["40 % begin to speak for a partner"]),
        ({"cut": 0.4}, ["40 % have a turn that is cut: raise conversation.max_turn_tokens"]),
        ({"repeated": 0.4}, ["40 % repeat an utterance"]),
        (
            {"top_gold_share": 0.1},
            ["60 % of the problems get the answer 'iron', which is right for 10 %"],
        ),
        ({"cut": 0.5, "leaked": 0.9}, ["90 % begin", "50 % have a turn"]),
    ],
)
def test_advice_names_the_share_and_a_field_of_the_recipe(
    change: dict[str, float], lines: list[str]
) -> None:
    advice = list(replace(GOOD, **change).advice())  # type: ignore[arg-type]
    assert len(advice) == len(lines)
    for said, begin in zip(advice, lines, strict=True):
        assert said.startswith(begin)
        assert any(f"{section}." in said for section in ("conversation", "sampling", "model",
                                                         "train"))  # fmt: skip
