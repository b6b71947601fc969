"""Shares of what goes wrong in talks, each on made conversations, and the advice they give."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from optima.evaluation.health import (
    MIN_PROBLEMS,
    Remedies,
    TalkHealth,
    examine,
    find_loss_of_speech,
)
from optima.types import Conversation, Fault, Problem, StopReason, Turn
from tests.talks import turn

LEFT = Remedies("sampling.first_temperature", "assistant", True, True)
NOTHING_LEFT = Remedies("sampling.temperature", None, False, False)
OWN_PROMPTS = "write prompts of your own (conversation.prompts)"
SHARES = ("marked", "agreed", "leaked", "cut", "repeated", "empty")
TALK = (turn(0, " The notes say Riga."), turn(1, " <A>Riga</A>", answer="Riga"))
CONFIRMED = (*TALK, turn(0, " Yes, <A>Riga</A>", answer="Riga"))


def held(
    turns: Sequence[Turn] = CONFIRMED,
    stop: StopReason = "agreement",
    *,
    problem: int = 0,
    answer: str | None = "Riga",
    faults: tuple[Fault, ...] = (),
) -> Conversation:
    return Conversation(
        problem_id=str(problem), n=0, format_id=None, turns=tuple(turns), stop_reason=stop,
        answer=answer, faults=faults, error=None,
    )  # fmt: skip


def problem(index: int = 0, gold: str = "Riga", choices: tuple[str, ...] = ()) -> Problem:
    return Problem(
        problem_id=str(index), task="arc", question="Where?", golds=(gold,), choices=choices
    )


def shares(*conversations: Conversation) -> dict[str, float]:
    found = examine(conversations, [problem()])
    return {name: getattr(found, name) for name in SHARES if getattr(found, name)}


def health(**changed: object) -> TalkHealth:
    """Return the shares of talks with which all is well, but for what is changed."""
    well: dict[str, object] = {
        "n": 40, "marked": 1.0, "agreed": 1.0, "leaked": 0.0, "cut": 0.0, "repeated": 0.0,
        "empty": 0.0, "top_answer": "riga", "top_share": 0.1, "top_gold_share": 0.1,
        "n_problems": 20,
    }  # fmt: skip
    return TalkHealth(**{**well, **changed})  # type: ignore[arg-type]


def test_talk_with_which_all_is_well_has_an_answer_and_its_confirmation() -> None:
    assert shares(held()) == {"marked": 1.0, "agreed": 1.0}
    assert list(health().advice(LEFT)) == []


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (held(TALK, "max_turns", answer=None), set()),
        (held(TALK, "max_turns"), {"marked"}),
        (held(TALK[1:], "alone"), {"marked", "agreed"}),
        (held(TALK[:1], "alone", answer=None), set()),  # nobody agreed on what was not said
        (held(faults=("role_leakage",)), {"marked", "agreed", "leaked"}),
        (
            held([CONFIRMED[0].model_copy(update={"finish_reason": "label"}), *CONFIRMED[1:]]),
            {"marked", "agreed", "leaked"},
        ),
        (held(faults=("overflow",)), {"marked", "agreed", "cut"}),
        (held([*TALK, *TALK], "max_turns"), {"marked", "repeated"}),
        (held([*TALK, turn(0, TALK[1].text, answer="Riga")]), {"marked", "agreed"}),
        (held([turn(0, " \n"), *CONFIRMED]), {"marked", "agreed", "empty"}),
    ],
)
def test_each_fault_counts_in_its_own_share(conversation: Conversation, expected: set[str]) -> None:
    assert set(shares(conversation)) == expected
    sound = held(TALK, "max_turns", answer=None)
    assert shares(conversation, sound, sound, sound) == dict.fromkeys(expected, 0.25)


def test_shares_stand_in_the_metrics_under_their_names() -> None:
    found = examine([held(), held(faults=("overflow",), problem=1)], [problem(0), problem(1)])
    assert found.metrics() == {
        "health/marked": 1.0, "health/agreed": 1.0, "health/leaked": 0.0, "health/cut": 0.5,
        "health/repeated": 0.0, "health/empty": 0.0, "health/top_share": 1.0,
        "health/collapsed": 0.0,
    }  # fmt: skip
    assert [examine([held()] * n, [problem()]).n for n in (0, 1, 3)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"marked": 0.6, "agreed": 0.6},
            "40 % of the conversations mark no answer: show one with "
            f"conversation.worked_example=true, help with cold_start, or {OWN_PROMPTS}",
        ),
        (
            {"agreed": 0.5},
            "50 % mark an answer that nobody confirms: lower sampling.first_temperature, or "
            "conversation.max_turns so that less is spent on it",
        ),
        (
            {"leaked": 0.4},
            "40 % begin to speak for a partner: try model.roles=assistant, or " + OWN_PROMPTS,
        ),
        (
            {"cut": 0.4},
            "40 % have a turn that is cut: raise conversation.max_turn_tokens (and "
            "model.max_model_len), or lower sampling.first_temperature",
        ),
        (
            {"repeated": 0.4},
            "40 % repeat an utterance: try model.roles=assistant, raise "
            f"sampling.first_temperature, or {OWN_PROMPTS}",
        ),
        (
            {"empty": 0.4},
            "40 % have an utterance that says nothing: try model.roles=assistant, raise "
            f"sampling.first_temperature, or {OWN_PROMPTS}",
        ),
        (
            {"top_share": 0.6},
            "60 % of the problems get the answer 'riga', which is right for 10 %: if the model was "
            "trained, lower train.learning_rate or train.epochs, or go back to an earlier model; "
            f"if not, {OWN_PROMPTS}",
        ),
    ],
)
def test_each_bad_share_names_its_remedy(changed: dict[str, object], line: str) -> None:
    assert list(health(**changed).advice(LEFT)) == [line]


def test_no_remedy_is_named_that_is_in_use_or_cannot_be() -> None:
    bad = health(marked=0.1, agreed=0.1, leaked=1.0, repeated=1.0)
    assert list(bad.advice(NOTHING_LEFT)) == [
        f"90 % of the conversations mark no answer: {OWN_PROMPTS}",
        f"100 % begin to speak for a partner: {OWN_PROMPTS}",
        f"100 % repeat an utterance: raise sampling.temperature, or {OWN_PROMPTS}",
    ]


def test_share_at_the_limit_is_not_bad_yet() -> None:
    assert list(health(marked=0.7, agreed=0.4, cut=0.3, empty=0.3).advice(LEFT)) == []
    assert list(health(leaked=0.3, repeated=0.3).advice(LEFT)) == []
    assert 0.75 - 0.45 == 0.3
    assert list(health(marked=0.75, agreed=0.45).advice(LEFT)) == []


def collapse(n: int, n_same: int, golds: Sequence[str]) -> TalkHealth:
    """Return the shares of one talk a problem, ``n_same`` of which end with "yes"."""
    talks = [held(problem=i, answer="Yes." if i < n_same else f"no. {i}") for i in range(n)]
    return examine(talks, [problem(i, golds[i % len(golds)]) for i in range(n)])


def test_one_answer_to_half_of_the_problems_is_a_collapse_unless_it_is_often_right() -> None:
    assert collapse(10, 5, ["no"]).has_collapsed
    assert not collapse(10, 4, ["no"]).has_collapsed
    assert collapse(12, 12, ["yes", "no", "no"]).has_collapsed
    assert not collapse(12, 12, ["yes", "no"]).has_collapsed  # no more than twice as often as right
    few = collapse(MIN_PROBLEMS - 1, MIN_PROBLEMS - 1, ["no"])
    assert (few.top_share, few.has_collapsed) == (1.0, False)


def test_commonest_answer_of_a_problem_is_that_of_most_of_its_conversations() -> None:
    talks = [held(answer=answer) for answer in ("Oslo", "Riga", "riga.")]
    found = examine([*talks, held(problem=1, answer="Oslo")], [problem(0), problem(1, "Oslo")])
    assert (found.top_answer, found.top_share, found.top_gold_share) == ("riga", 0.5, 0.5)


def test_where_no_answer_is_marked_none_is_the_commonest() -> None:
    found = examine([held(answer=None)], [problem()])
    assert (found.top_answer, found.top_share, found.top_gold_share) == ("", 0.0, 0.0)


def test_text_of_a_choice_is_as_right_as_its_letter() -> None:
    choices = ("iron", "ice")
    for gold, answers in (("A", ("A", "iron")), ("B", ("B", "ice"))):
        for answer in answers:
            found = examine([held(answer=answer)], [problem(0, gold, choices)])
            assert (found.top_share, found.top_gold_share) == (1.0, 1.0)
    for gold in ("C", "Riga"):
        found = examine([held(answer="ice")], [problem(0, gold, choices)])
        assert (found.top_share, found.top_gold_share) == (1.0, 0.0)


def _metrics(marked: float, empty: float = 0.0, n: float = 100.0) -> dict[str, float]:
    return {"health/marked": marked, "health/empty": empty, "conversations": n}


def _cut(share: float, n: float = 100.0) -> dict[str, float]:
    return {**_metrics(1.0, n=n), "health/cut": share}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # says nothing: at least 90 % with an empty utterance, and next to no marks
        (_metrics(0.8), _metrics(0.0, empty=0.9), "90 % of its conversations hold an utterance"),
        (_metrics(0.0), _metrics(0.0, empty=1.0), "100 % of its conversations hold"),
        (_metrics(0.8), _metrics(0.8, empty=1.0), None),  # one agent is silent, the other answers
        (_metrics(0.0, empty=1.0), _metrics(0.0, empty=1.0), None),  # it never spoke
        (_metrics(0.0, empty=0.9), _metrics(0.0, empty=1.0), None),
        (_metrics(0.0), _metrics(0.0, empty=0.89), None),
        (_metrics(0.0, empty=0.88), _metrics(0.0, empty=0.9), None),  # as mute before
        (_metrics(0.0, n=5), _metrics(0.0, empty=1.0, n=5), "100 % of its conversations hold"),
        (_metrics(0.0, n=4), _metrics(0.0, empty=1.0, n=4), None),  # by chance in 1 of 70
        # marks under a tenth of what the earlier one marked, beyond what chance does
        ({}, _metrics(0.0), None),  # nothing is known of the earlier one
        (_metrics(0.5), _metrics(0.04), "4 % of its conversations mark an answer, of 50 % before"),
        (_metrics(0.5), _metrics(0.05), None),
        (_metrics(0.6, n=10), _metrics(0.0, n=10), "0 % of its conversations mark"),
        (_metrics(0.5, n=10), _metrics(0.0, n=10), None),  # equal models differ so in 1 of 62
        (_metrics(0.0), _metrics(0.0), None),
        # no longer ends its turns: half are cut, where a tenth at most were
        (_cut(0.1), _cut(0.5), "50 % of its conversations hold a turn that does not end by itself"),
        (_cut(0.0), _cut(1.0), "100 % of its conversations hold a turn that does not end"),
        (_cut(0.0), _cut(0.49), None),
        (_cut(0.0, n=2), _cut(0.5, n=2), None),  # one conversation of two
        (_cut(0.1, n=10), _cut(0.5, n=10), None),  # by chance in 1 of 14
        (_cut(0.1, n=20), _cut(0.5, n=20), "50 % of its conversations hold a turn that does not"),
        (_cut(0.11), _cut(1.0), None),  # the limit was low for it before
        (_metrics(0.8), _cut(1.0), None),  # nothing is known of the earlier one
        ({}, {}, None),  # of a run whose metrics do not tell
    ],
)
def test_model_that_lost_its_speech_in_training_is_told_from_one_that_had_none(
    before: dict[str, float], after: dict[str, float], expected: str | None
) -> None:
    said = find_loss_of_speech(before, after)
    assert said is None if expected is None else (said or "").startswith(expected)


def test_answer_of_the_worked_example_everywhere_is_put_down_to_the_example() -> None:
    copied = collapse(12, 12, ["no"])
    shown = replace(LEFT, shown=copied.top_answer.title())
    (said,) = [line for line in copied.advice(shown) if "of the problems" in line]
    assert said.endswith("that of the worked example: the model copies it, so take "
                         "conversation.worked_example=false")  # fmt: skip
    (said,) = [line for line in copied.advice(LEFT) if "of the problems" in line]
    assert "worked example" not in said
    (said,) = [
        line for line in copied.advice(replace(LEFT, shown="Tarn")) if "of the problems" in line
    ]
    assert "worked example" not in said
