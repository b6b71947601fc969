"""Token ids from a real vLLM server: what it says comes back as ids and is prompted on as ids."""

import asyncio
import urllib.request
from dataclasses import replace

import pytest

from optima.conversation.codec import ChatCodec
from optima.conversation.dialogue import Completion, Dialogue, Request, Speaker
from optima.conversation.loading import load_codec
from optima.recipe.loading import load_recipe
from optima.recipe.schema import ConversationSection
from optima.serving.client import CompletionClient
from optima.serving.fleet import Fleet
from optima.trainset import conversation_rows
from optima.types import Conversation
from tests.e2e.conftest import MODEL, RECIPE
from tests.talks import NAMES, SameText

pytestmark = pytest.mark.e2e
FACTS = "The red lamp is in Riga, the green lamp is in Turku and the blue lamp is in Lyon. " * 4
BLOCK = 32  # tokens of a cached block, as the CPU server is started


@pytest.fixture(scope="module")
def codec() -> ChatCodec:
    return load_codec(str(MODEL))


def ask_all(fleet: Fleet, requests: list[Request], temperature: float = 0.0) -> list[Completion]:
    """Return the completions of requests, asked one after another."""
    serving = load_recipe(RECIPE, []).serving

    async def each() -> list[Completion]:
        async with CompletionClient(fleet.servers, fleet.model_name, serving) as client:
            return [
                await client.complete(request, temperature=temperature, top_p=1.0)
                for request in requests
            ]

    return asyncio.run(each())


def speakers(codec: ChatCodec, hint: str = "") -> tuple[Speaker, ...]:
    return tuple(
        Speaker(i, name, f"{hint}You are {name}. {FACTS}Talk about the lamps.", codec)
        for i, name in enumerate(NAMES[:2])
    )


def first_request(codec: ChatCodec) -> Request:
    speaker = speakers(codec)[0]
    return Request(
        agent=0, prompt_ids=speaker.prompt_ids([]), stop=(), stop_token=codec.end_token,
        max_tokens=32, seed=3,
    )  # fmt: skip


def hold(
    fleet: Fleet, codec: ChatCodec, hint: str = ""
) -> tuple[Conversation, list[tuple[Request, Completion, float]]]:
    """Return a talk, and of each turn what was asked, answered and found in the prefix cache."""
    heard: list[tuple[Request, Completion, float]] = []

    async def talk() -> Conversation:
        serving = load_recipe(RECIPE, []).serving
        async with CompletionClient(fleet.servers, fleet.model_name, serving) as client:

            async def complete(request: Request) -> Completion:
                before = n_cached(fleet)
                completion = await client.complete(request, temperature=0.7, top_p=1.0)
                heard.append((request, completion, n_cached(fleet) - before))
                return completion

            held = Dialogue(
                problem_id="p", n=0, speakers=speakers(codec, hint), answer_style="tag",
                agreement=SameText(), seed=1,
                limits=ConversationSection(max_turns=6, max_turn_tokens=32),
            )  # fmt: skip
            return await held.converse(complete)

    return asyncio.run(talk()), heard


def test_ids_come_back_are_the_text_and_are_trained_as_they_are(
    fleet: Fleet, codec: ChatCodec
) -> None:
    conversation, heard = hold(fleet, codec)
    assert conversation.error is None
    assert len(heard) == len(conversation.turns)
    for (asked, said, _), turn in zip(heard, conversation.turns, strict=True):
        assert said.token_ids is not None
        assert said.n_tokens == len(said.token_ids)
        assert said.n_prompt_tokens == len(asked.prompt_ids)
        if said.finish_reason != "label":
            assert codec.encoder.decode(said.token_ids) == said.text
        assert turn.token_ids is not None
        assert said.token_ids[: len(turn.token_ids)] == turn.token_ids
        assert codec.encoder.decode(turn.token_ids).rstrip() == turn.text
    rows = conversation_rows("p", 0, conversation.turns, speakers(codec))
    for row in rows:
        own = [turn for turn in conversation.turns if turn.agent == row.agent]
        assert [row.input_ids[start:stop] for start, stop in row.trained] == [
            (*(turn.token_ids or ()), codec.end_token) for turn in own
        ]
        assert row.n_retokenised == 0
        for asked, *_ in heard:
            if asked.agent == row.agent:
                assert row.input_ids[: len(asked.prompt_ids)] == asked.prompt_ids


def n_cached(fleet: Fleet) -> float:
    """Return how many prompt tokens the server has found in its prefix cache so far."""
    server = fleet.servers[0]
    asked = urllib.request.Request(
        f"{server.base_url}/metrics", headers={"Authorization": f"Bearer {server.api_key}"}
    )
    with urllib.request.urlopen(asked, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("vllm:prefix_cache_hits") and "created" not in line
    )


def test_next_prompt_goes_on_from_what_was_sampled_and_finds_it_cached(
    fleet: Fleet, codec: ChatCodec
) -> None:
    conversation, heard = hold(fleet, codec, "You have never spoken of this before. ")
    by_agent: dict[int, tuple[int, ...]] = {}
    for (asked, _, n_found), turn in zip(heard, conversation.turns, strict=True):
        known = by_agent.get(asked.agent, ())
        assert asked.prompt_ids[: len(known)] == known
        # All full blocks of it, what was sampled included; the last id never was an input.
        assert n_found >= (len(known) - 1) // BLOCK * BLOCK
        by_agent[asked.agent] = asked.prompt_ids + (turn.token_ids or ())
    assert [n_found for *_, n_found in heard[:2]] == [0, 0]
    assert all(n_found > 0 for *_, n_found in heard[2:])


def test_stop_text_ends_a_turn_and_is_no_part_of_its_text(fleet: Fleet, codec: ChatCodec) -> None:
    request = first_request(codec)
    (whole,) = ask_all(fleet, [request])
    assert whole.token_ids is not None
    word = whole.text.split()[3]
    (cut,) = ask_all(fleet, [replace(request, stop=("never said", word))])
    assert cut.finish_reason == "label"
    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.token_ids is not None
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert word in codec.encoder.decode(cut.token_ids)


def test_stop_token_ends_a_turn_and_is_the_last_of_its_ids(fleet: Fleet, codec: ChatCodec) -> None:
    request = first_request(codec)
    (whole,) = ask_all(fleet, [request])
    assert whole.token_ids is not None
    token = whole.token_ids[5]
    first = whole.token_ids.index(token)
    (cut,) = ask_all(fleet, [replace(request, stop_token=token)])
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert cut.n_tokens == first + 1
