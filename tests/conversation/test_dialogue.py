import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import pytest

from optima.conversation.dialogue import (
    Completion,
    Dialogue,
    Request,
    clean_utterance,
    hold_conversations,
)
from optima.errors import ContextOverflowError, ServerError
from optima.recipe.schema import ConversationSection
from optima.types import AnswerStyle, Conversation
from tests.talks import Reply, SameText, ids_of, speakers
from tests.tokenizers import codec, text_of


def dialogue(
    *, names: Sequence[str] = ("Alice", "Bob"), style: AnswerStyle = "tag", n: int = 0,
    max_turns: int = 10, order: Literal["round_robin", "hub", "random"] = "round_robin",
    problem_id: str = "p",
) -> Dialogue:  # fmt: skip
    return Dialogue(
        problem_id=problem_id, n=n, speakers=speakers(names=names), answer_style=style,
        agreement=SameText(), limits=ConversationSection(max_turns=max_turns, order=order), seed=1,
    )  # fmt: skip


def converse(replies: Sequence[Reply | Exception], held: Dialogue) -> Conversation:
    stream = iter(replies)

    async def complete(request: Request) -> Completion:
        reply = next(stream)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return asyncio.run(held.converse(complete))


def test_conversation_ends_when_the_partner_marks_the_same_answer() -> None:
    held = converse([Reply(" <A>Paris</A>"), Reply(" Yes, <A>paris.</A>")], dialogue())
    assert held.stop_reason == "agreement"
    assert held.answer == "paris."
    assert [turn.name for turn in held.turns] == ["Alice", "Bob"]


def test_tokens_are_counted_with_labels_as_spoken_and_by_the_server_as_generated() -> None:
    held = converse([Reply(" <A>Paris</A>"), Reply(" Yes, <A>paris.</A>")], dialogue())
    spoken = ("Alice: <A>Paris</A>", "Bob: Yes, <A>paris.</A>")
    assert [turn.n_spoken for turn in held.turns] == [len(ids_of(text)) for text in spoken]
    assert held.n_tokens == sum(len(ids_of(text)) for text in spoken)
    assert held.n_generated == 6


def test_same_agent_may_confirm_its_own_answer_later() -> None:
    held = converse([Reply(" <A>4</A>"), Reply(" Sure?"), Reply(" <A>4</A>")], dialogue())
    assert held.stop_reason == "agreement"
    assert len(held.turns) == 3


def test_different_answers_go_on_and_the_last_marked_one_counts() -> None:
    replies = [Reply(" <A>a</A>"), Reply(" <A>b</A>"), Reply(" hm"), Reply(" hm")]
    held = converse(replies, dialogue(max_turns=4))
    assert held.stop_reason == "max_turns"
    assert held.answer == "b"


def test_boxed_answers_are_read_for_mathematical_tasks() -> None:
    held = converse([Reply(r" \boxed{12}"), Reply(r" So \boxed{12}.")], dialogue(style="boxed"))
    assert held.stop_reason == "agreement"
    assert held.answer == "12"


def test_three_agents_speak_in_turn() -> None:
    held = converse([Reply(" a")] * 5, dialogue(names=("Ann", "Ben", "Cleo"), max_turns=5))
    assert [turn.name for turn in held.turns] == ["Ann", "Ben", "Cleo", "Ann", "Ben"]


def test_utterance_with_a_speakers_label_is_a_fault() -> None:
    held = converse([Reply(" I ask. Bob: Paris"), Reply(" ok")], dialogue(max_turns=2))
    assert held.faults == ("role_leakage",)
    named = converse([Reply(" I ask Bob about it"), Reply(" ok")], dialogue(max_turns=2))
    assert named.faults == ()


def test_turn_cut_at_its_token_limit_is_overflow_and_the_talk_goes_on() -> None:
    held = converse([Reply(" long", "length"), Reply(" ok")], dialogue(max_turns=2))
    assert held.faults == ("overflow",)
    assert len(held.turns) == 2


def test_full_context_ends_the_conversation_with_what_was_said() -> None:
    overflow = [ContextOverflowError("full")] * 10
    held = converse([Reply(" <A>x</A>"), *overflow], dialogue())
    assert held.stop_reason == "context_overflow"
    assert held.faults == ("overflow",)
    assert held.answer == "x"
    assert len(held.turns) == 1


def test_nearly_full_context_asks_for_fewer_tokens() -> None:
    asked: list[int] = []

    async def complete(request: Request) -> Completion:
        asked.append(request.max_tokens)
        if request.max_tokens > 200:
            raise ContextOverflowError("full")
        return Reply(" <A>x</A>")

    held = asyncio.run(dialogue(max_turns=2).converse(complete))
    assert held.stop_reason == "agreement"
    assert asked[:3] == [2000, 500, 125]


def test_failed_request_is_a_record_with_what_was_said_before() -> None:
    held = converse([Reply(" hi"), ServerError("no server")], dialogue())
    assert held.stop_reason == "error"
    assert held.error == "no server"
    assert len(held.turns) == 1


@pytest.mark.parametrize(
    ("generated", "kept"),
    [(" hi \n", " hi"), (" Alice: hi", " hi"), ("Alice:hi", "hi"), (" Bob: hi", " Bob: hi")],
)
def test_own_label_said_again_and_trailing_space_are_removed(generated: str, kept: str) -> None:
    assert clean_utterance(generated, "Alice") == kept


def test_seeds_differ_by_turn_and_sample_and_repeat_by_run() -> None:
    async def seeds(held: Dialogue) -> list[int]:
        found: list[int] = []

        async def complete(request: Request) -> Completion:
            found.append(request.seed)
            return Reply(" a")

        await held.converse(complete)
        return found

    first = asyncio.run(seeds(dialogue(n=0)))
    assert len(set(first)) == len(first)
    assert asyncio.run(seeds(dialogue(n=0))) == first
    assert set(asyncio.run(seeds(dialogue(n=1)))).isdisjoint(first)


def test_all_dialogues_are_held_once_and_stay_on_their_server() -> None:
    kept: list[Conversation] = []
    preferred: list[object] = []

    async def generate(request: Request, server: object) -> Reply:
        preferred.append(server)
        await asyncio.sleep(0)
        return Reply(" a", server="s1")

    dialogues = (dialogue(n=n, max_turns=2) for n in range(20))
    asyncio.run(hold_conversations(dialogues, generate, kept.append, concurrency=lambda: 7))
    assert sorted(c.n for c in kept) == list(range(20))
    assert preferred.count(None) == 20
    assert preferred.count("s1") == 20


def test_more_dialogues_are_held_at_once_as_servers_join_and_fewer_as_they_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optima.conversation.dialogue._LOOK_S", 0.01)
    at_once, n_running, limit, n_held = [0], 0, 2, 0

    async def generate(request: Request, server: object) -> Reply:
        nonlocal n_running
        n_running += 1
        at_once.append(n_running)
        await asyncio.sleep(0.02)
        n_running -= 1
        return Reply(" a")

    def keep(conversation: Conversation) -> None:
        nonlocal limit, n_held
        n_held += 1
        limit = 6 if 10 <= n_held < 60 else 2
        if n_held in (10, 60):
            peaks.append(max(at_once))
        if n_held in (10, 70):  # the last that began before have ended
            at_once[:] = [0]

    peaks: list[int] = []
    dialogues = (dialogue(n=n, max_turns=2) for n in range(100))
    asyncio.run(hold_conversations(dialogues, generate, keep, concurrency=lambda: limit))
    assert n_held == 100
    assert [*peaks, max(at_once)] == [2, 6, 2]


def test_bug_in_one_worker_stops_all_and_rises() -> None:
    async def generate(request: Request, server: object) -> Reply:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(
            hold_conversations([dialogue()], generate, lambda c: None, concurrency=lambda: 2)
        )


def test_turn_carries_its_own_seconds_and_the_servers_counts() -> None:
    waits = iter([0.5, 0.0])

    async def complete(request: Request) -> Completion:
        await asyncio.sleep(next(waits))
        return Reply(" <A>x</A>", n_prompt_tokens=11, n_tokens=4)

    first, second = asyncio.run(dialogue().converse(complete)).turns
    assert first.seconds >= 0.5 > second.seconds
    assert (first.n_prompt_tokens, first.n_tokens) == (11, 4)


END = codec("chatml").end_token


def test_request_asks_for_the_next_utterance_and_says_all_that_ends_it() -> None:
    asked: list[Request] = []

    async def complete(request: Request) -> Completion:
        asked.append(request)
        return Reply(" a")

    held = dialogue(names=("Ann", "Ben", "Cleo"), max_turns=3)
    asyncio.run(held.converse(complete))
    assert [request.stop for request in asked] == [
        ("Ben:", "Cleo:", "\nAnn:"), ("Ann:", "Cleo:", "\nBen:"), ("Ann:", "Ben:", "\nCleo:"),
    ]  # fmt: skip
    assert {request.stop_token for request in asked} == {END}
    assert [text_of(request.prompt_ids).splitlines()[-1] for request in asked] == [
        "Ann:", "Ben:", "Cleo:",
    ]  # fmt: skip


def test_ids_of_an_utterance_that_ended_by_itself_are_kept_without_the_end_of_turn() -> None:
    said = ids_of("<A>", "Riga", "</A>")
    held = converse(
        [Reply("<A>Riga</A>", token_ids=(*said, END)), Reply(" ok")], dialogue(max_turns=2)
    )
    assert held.turns[0].token_ids == said


def test_ids_of_an_utterance_that_the_limit_cut_are_kept_whole() -> None:
    said = ids_of(" the lamp", " is")
    reply = Reply(" the lamp is", "length", token_ids=said)
    assert converse([reply, Reply(" ok")], dialogue(max_turns=2)).turns[0].token_ids == said


def test_white_space_sampled_before_the_end_of_turn_stays_in_the_ids_alone() -> None:
    said = ids_of(" Yes", " ", "\n")
    held = converse([Reply(" Yes \n", token_ids=(*said, END)), Reply(" ok")], dialogue(max_turns=2))
    assert (held.turns[0].text, held.turns[0].token_ids) == (" Yes", said)


@pytest.mark.parametrize(
    ("sampled", "returned", "text", "kept"),
    [
        ((" Yes", "\n", "Bob", ":"), " Yes\n", " Yes", (" Yes",)),
        ((" Yes", " ", "Bob", ":"), " Yes ", " Yes", (" Yes",)),
        ((" Yes", " Bob", ":<"), " Yes ", " Yes", (" Yes",)),
        ((" one", "\n\n", "two", "\n\n", "Alice", ":"), " one\n\ntwo\n", " one\n\ntwo",
         (" one", "\n\n", "two")),
        ((" Yes:\n", "Bob", ":"), " Yes:\n", " Yes:", (" Yes:\n",)),  # the break is no token
    ],
)  # fmt: skip
def test_text_and_ids_are_cut_where_a_label_begins(
    sampled: tuple[str, ...], returned: str, text: str, kept: tuple[str, ...]
) -> None:
    reply = Reply(returned, "label", token_ids=ids_of(*sampled))
    held = converse([reply, Reply(" ok")], dialogue(max_turns=2))
    assert (held.turns[0].text, held.turns[0].token_ids) == (text, ids_of(*kept))
    assert held.turns[0].finish_reason == "label"
    assert held.faults == ()


@pytest.mark.parametrize("sampled", [("Bob", ":"), ("\n", "Alice", ":"), (" ", "Bob", ":")])
def test_utterance_of_which_a_label_leaves_nothing_is_a_fault(sampled: tuple[str, ...]) -> None:
    returned = "".join(sampled[:-2])
    reply = Reply(returned, "label", token_ids=ids_of(*sampled))
    held = converse([reply, Reply(" ok")], dialogue(max_turns=2))
    assert (held.turns[0].text, held.turns[0].token_ids) == ("", ())
    assert held.faults == ("role_leakage",)
    assert len(held.turns) == 2  # the talk goes on
    by_itself = converse([Reply("", token_ids=(END,)), Reply(" ok")], dialogue(max_turns=2))
    assert by_itself.faults == ()


@pytest.mark.parametrize(
    "reply",
    [
        # The label "Riga:" was sampled inside the token ">Riga".
        Reply("<A>", "label", token_ids=ids_of("<A>Riga:")),
        # The server leaves special tokens out of the text.
        Reply(" one two", token_ids=(*ids_of(" one", "<|eot_id|>", " two"), END)),
        # The own label, said again, is taken off the text.
        Reply(" Alice: hm", token_ids=(*ids_of(" Alice: hm"), END)),
        # A server that gives no ids.
        Reply(" hm"),
    ],
)
def test_ids_that_are_not_exactly_the_text_are_not_kept(reply: Reply) -> None:
    held = converse([reply, Reply(" ok")], dialogue(names=("Alice", "Riga"), max_turns=2))
    assert held.turns[0].text.strip() in ("<A>", "one two", "hm")
    assert held.turns[0].token_ids is None


def order_of(held: Dialogue) -> str:
    talk = converse([Reply(f" word {k}") for k in range(held.limits.max_turns)], held)
    return "".join(turn.name[0] for turn in talk.turns)


def test_first_agent_of_a_hub_speaks_after_each_of_the_others() -> None:
    names = ("Ann", "Ben", "Cleo", "Dan")
    assert order_of(dialogue(names=names, max_turns=8, order="hub")) == "ABACADAB"
    assert order_of(dialogue(names=names, max_turns=8)) == "ABCDABCD"
    assert order_of(dialogue(names=names[:2], max_turns=4, order="hub")) == "ABAB"


def test_drawn_speakers_are_the_same_in_all_samples_of_a_problem_and_never_twice_in_a_row() -> None:
    names = ("Ann", "Ben", "Cleo")
    orders = [
        order_of(dialogue(names=names, n=n, max_turns=12, order="random", problem_id=problem))
        for problem in ("p", "q", "r")
        for n in range(2)
    ]
    assert orders[::2] == orders[1::2]
    assert len(set(orders)) == 3
    for order in orders:
        assert order[0] == "A"
        assert all(one != next_ for one, next_ in pairwise(order))
        assert set(order) == set("ABC")
