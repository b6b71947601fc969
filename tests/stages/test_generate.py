"""Talks that end by the comparison that scores their task."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.recipe.schema import ConversationSection
from optima.stages.generate import TaskAgreement
from optima.tasks import METRICS
from optima.tasks.judging import Judge
from optima.types import AnswerStyle, Conversation
from tests.talks import NAMES, Reply, speakers

HANGS = "9^{9^{9^{9^9}}}"
COLOURS = ("red", "dark blue", "green")


def dialogue(metric: str, judge: Judge, choices: tuple[str, ...] = (), n: int = 2) -> Dialogue:
    style: AnswerStyle = "boxed" if metric == "math" else "tag"
    return Dialogue(
        problem_id="p", n=0, speakers=speakers(names=NAMES[:n]), answer_style=style,
        agreement=TaskAgreement(METRICS[metric], choices, judge),
        limits=ConversationSection(max_turns=3), seed=1,
    )  # fmt: skip


async def converse(held: Dialogue, texts: Sequence[str]) -> Conversation:
    said = iter([*texts, " so it is", " so it is", " so it is"])

    async def complete(request: Request) -> Completion:
        return Reply(next(said))

    return await held.converse(complete)


def hold(metric: str, texts: Sequence[str], choices: tuple[str, ...] = ()) -> Conversation:
    with Judge(n_workers=1) as judge:
        return asyncio.run(converse(dialogue(metric, judge, choices), texts))


@pytest.mark.parametrize(
    ("metric", "texts", "choices"),
    [
        ("math", (r" \boxed{\frac{1}{2}}", r" No, \boxed{0.5}"), ()),
        ("math", (r" \boxed{(x+1)^2}", r" \boxed{x^2+2x+1}"), ()),  # the judge has to tell
        ("exact_match", (" <A>1,200</A>", " <A>1200 dollars</A>"), ()),
        ("exact_match", (" <A>B</A>", " <A>dark blue</A>"), COLOURS),
        ("f1", (" <A>the Eiffel Tower</A>", " <A>Eiffel tower.</A>"), ()),
    ],
)
def test_talk_ends_when_the_second_answer_means_the_first(
    metric: str, texts: tuple[str, ...], choices: tuple[str, ...]
) -> None:
    held = hold(metric, texts, choices)
    assert (held.stop_reason, len(held.turns)) == ("agreement", 2)
    assert held.answer == held.turns[1].answer


@pytest.mark.parametrize(
    ("metric", "texts", "choices"),
    [
        ("math", (r" \boxed{(x+1)^2}", r" \boxed{x^2+1}"), ()),
        ("exact_match", (" <A>1200</A>", " <A>1201</A>"), ()),
        ("exact_match", (" <A>A</A>", " <A>dark blue</A>"), COLOURS),
        ("f1", (" <A>Eiffel Tower</A>", " <A>Tower Bridge</A>"), ()),
    ],
)
def test_talk_goes_on_when_the_second_answer_is_another(
    metric: str, texts: tuple[str, ...], choices: tuple[str, ...]
) -> None:
    held = hold(metric, texts, choices)
    assert (held.stop_reason, len(held.turns)) == ("max_turns", 3)
    assert held.answer == held.turns[1].answer


@pytest.mark.parametrize(
    ("metric", "first", "restated", "choices"),
    [
        ("f1", " <A>Paris</A>", " Yes, the answer is Paris.", ()),
        ("f1", " <A>Paris</A>", " I agree, that is correct.", ()),
        ("math", r" \boxed{18}", " I agree, it is 18.", ()),
        ("exact_match", " <A>B</A>", " The answer is dark blue.", COLOURS),
    ],
)
def test_partner_who_says_nothing_but_the_answer_again_agrees(
    metric: str, first: str, restated: str, choices: tuple[str, ...]
) -> None:
    held = hold(metric, (first, restated), choices)
    assert (held.stop_reason, len(held.turns)) == ("agreement", 2)
    assert held.answer == held.turns[0].answer
    assert held.turns[1].answer is None


def test_assent_that_is_the_text_of_a_choice_names_that_choice() -> None:
    sides = ("Left", "Right", "Both")
    assert hold("exact_match", (" <A>Left</A>", " Right."), sides).stop_reason == "max_turns"
    assert hold("exact_match", (" <A>Right</A>", " Right."), sides).stop_reason == "agreement"
    assert hold("exact_match", (" <A>Left</A>", " Correct."), sides).stop_reason == "agreement"


def test_paper_rule_asks_for_the_mark_twice() -> None:
    with Judge(n_workers=1) as judge:
        plain = dialogue("f1", judge)
        limits = plain.limits.model_copy(update={"assent_ends": False})
        paper = replace(plain, limits=limits)
        held = asyncio.run(converse(paper, (" <A>Paris</A>", " Right.", " <A>Paris</A>")))
    assert (held.stop_reason, len(held.turns)) == ("agreement", 3)


@pytest.mark.parametrize(
    "texts",
    [
        (" <A>Paris</A>", " Paris?"),
        (" <A>Paris</A>", " OK."),
        (" <A>Paris</A>", " Let me see.", " I agree."),
        (" <A>Paris</A>", " It is Paris, and not Rome."),
        (" <A>Paris</A>", " Let me see.", " The answer is Paris."),  # not right after the mark
        (" The answer is Paris.", " The answer is Paris."),  # never marked
    ],
)
def test_what_is_no_restatement_right_after_a_mark_ends_no_talk(texts: tuple[str, ...]) -> None:
    held = hold("f1", texts)
    assert (held.stop_reason, len(held.turns)) == ("max_turns", 3)


def test_answers_that_hang_when_compared_hold_up_no_other_talk() -> None:
    ended: list[str] = []

    async def both(judge: Judge) -> tuple[Conversation, Conversation]:
        async def run(name: str, texts: Sequence[str]) -> Conversation:
            held = await converse(dialogue("math", judge), texts)
            ended.append(name)
            return held

        hanging = run("hangs", (rf" \boxed{{{HANGS}}}", r" \boxed{8+x}"))
        return await asyncio.gather(hanging, run("plain", (r" \boxed{4}", r" \boxed{4.0}")))

    with Judge(n_workers=1, cpu_limit_s=1.0) as judge:
        first, second = asyncio.run(both(judge))
    assert ended == ["plain", "hangs"]
    assert (first.stop_reason, len(first.turns)) == ("max_turns", 3)  # counted as different
    assert second.stop_reason == "agreement"
