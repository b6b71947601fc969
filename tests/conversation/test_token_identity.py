"""What is trained is what was generated, id by id, with a tokenizer that merges across labels."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from optima.conversation.codec import HOLE
from optima.conversation.dialogue import Completion, Dialogue, Request, Speaker
from optima.recipe.schema import ConversationSection, SearchSection
from optima.search.pairs import preference_row, sibling_pairs
from optima.search.tree import TreeGrower
from optima.trainset import conversation_rows
from optima.types import Conversation, PreferencePair, RewardParts
from tests.talks import NAMES, Reply, SameText, ids_of, speakers, turn
from tests.templates import FAMILIES
from tests.tokenizers import encoder, text_of

# Pieces as they are sampled. With the label before it the first one of each is tokenised otherwise.
SAMPLED = (
    ("<A>", "Riga", "</A>"),
    ("(", "to Alice", ") no"),
    ("\n", "hm"),
    (":", "<A>", "Oslo</A>", " \n"),
    (" the la", "mp Zo", "ë's 🙂"),
    ("<A>", "Pa", "ris</A>"),
    ("(", "You speak", " first.)"),
)
talks = pytest.mark.parametrize(
    ("family", "names"), list(itertools.product(FAMILIES, (NAMES[:2], NAMES)))
)


class Spy:
    """A server that says ``SAMPLED`` in turn, and remembers what it was asked and what it said."""

    def __init__(self) -> None:
        self.heard: list[tuple[Request, tuple[int, ...]]] = []

    async def complete(self, request: Request) -> Completion:
        pieces = SAMPLED[len(self.heard) % len(SAMPLED)]
        said = (*ids_of(*pieces), request.stop_token)
        self.heard.append((request, said))
        return Reply("".join(pieces), token_ids=said)

    def by(self, speaker: Speaker) -> list[tuple[Request, tuple[int, ...]]]:
        return [(asked, said) for asked, said in self.heard if asked.agent == speaker.agent]


def dialogue(held_by: Sequence[Speaker]) -> Dialogue:
    return Dialogue(
        problem_id="p", n=0, speakers=tuple(held_by), answer_style="tag", agreement=SameText(),
        limits=ConversationSection(max_turns=7), seed=1,
    )  # fmt: skip


def hold(held_by: Sequence[Speaker]) -> tuple[Conversation, Spy]:
    spy = Spy()
    conversation = asyncio.run(dialogue(held_by).converse(spy.complete))
    assert len(conversation.turns) == len(spy.heard) == 7
    return conversation, spy


@talks
def test_row_trains_exactly_what_was_sampled_after_exactly_what_was_prompted(
    family: str, names: tuple[str, ...]
) -> None:
    everyone = speakers(family, names)
    conversation, spy = hold(everyone)
    rows = conversation_rows("p", 0, conversation.turns, everyone)
    assert [row.agent for row in rows] == [speaker.agent for speaker in everyone]
    for row, speaker in zip(rows, everyone, strict=True):
        heard = spy.by(speaker)
        trained = [row.input_ids[start:stop] for start, stop in row.trained]
        assert trained == [said for _, said in heard]
        for (asked, said), (start, stop) in zip(heard, row.trained, strict=True):
            assert row.input_ids[:start] == asked.prompt_ids
            assert row.input_ids[start:stop] == said
        assert row.input_ids == heard[-1][0].prompt_ids + heard[-1][1]
        assert (row.n_utterances, row.n_retokenised) == (len(heard), 0)


@talks
def test_no_question_and_no_utterance_is_taken_for_the_place_of_own_words(
    family: str, names: tuple[str, ...]
) -> None:
    mark = "\ue0a0optima\ue0a1"  # what stood there in every process
    turns = [turn(k % len(names), f" {mark}", ids=ids_of(f" {mark}")) for k in range(len(names))]
    asked = replace(speakers(family, names)[0], system_prompt=f"Who said {mark}?{mark}")
    said = text_of(asked.prompt_ids(turns))
    assert f"Who said {mark}?{mark}" in said
    assert said.count(f": {mark}") == len(names)
    (row,) = asked.rows(turns)
    assert text_of(row.input_ids[slice(*row.trained[0])]).startswith(f" {mark}")
    command = [
        sys.executable,
        "-c",
        "from optima.conversation.codec import HOLE; print(ascii(HOLE))",
    ]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert other.strip().startswith("'\\ue0a0optima")
    assert other.strip() != ascii(HOLE)


@talks
def test_tokenising_the_text_of_the_talk_anew_would_train_other_ids(
    family: str, names: tuple[str, ...]
) -> None:
    everyone = speakers(family, names)
    conversation, spy = hold(everyone)
    for row in conversation_rows("p", 0, conversation.turns, everyone):
        assert encoder().encode_once(text_of(row.input_ids)) != row.input_ids
    for asked, said in spy.heard[:4]:  # each of them begins with what would merge with its label
        whole = encoder().encode_once(text_of(asked.prompt_ids + said))
        assert whole[: len(asked.prompt_ids)] != asked.prompt_ids


@talks
def test_every_prompt_goes_on_from_the_one_before_and_what_was_said_after_it(
    family: str, names: tuple[str, ...]
) -> None:
    everyone = speakers(family, names)
    _, spy = hold(everyone)
    for speaker in everyone:
        for (asked, said), (later, _) in itertools.pairwise(spy.by(speaker)):
            known = asked.prompt_ids + said
            assert later.prompt_ids[: len(known)] == known


def test_partners_read_an_utterance_as_text_and_its_speaker_as_ids() -> None:
    alice, bob = speakers("llama3")
    conversation, _ = hold((alice, bob))
    own, heard = alice.prompt_ids(conversation.turns[:2]), bob.prompt_ids(conversation.turns[:1])
    merged = ids_of("Alice:<A>Riga</A>")
    assert merged == ids_of("Alice", ":<", "A", ">Riga", "</", "A", ">")
    assert _holds(heard, merged)
    assert not _holds(own, merged)
    assert _holds(own, ids_of("Alice", ":", "<A>", "Riga", "</A>"))


@talks
def test_pair_trains_exactly_what_was_sampled_after_exactly_what_was_prompted(
    family: str, names: tuple[str, ...]
) -> None:
    everyone, spy = speakers(family, names), Spy()
    pairs = _pairs_of_a_tree(everyone, spy)
    assert {pair.chosen.agent for pair in pairs} == {speaker.agent for speaker in everyone}
    n_otherwise = 0
    for pair in pairs:
        row = preference_row(pair, everyone)
        heard = spy.by(everyone[row.agent])
        answers = [said for asked, said in heard if asked.prompt_ids == row.prompt_ids]
        assert row.chosen_ids in answers
        assert row.rejected_ids in answers
        assert row.chosen_ids != row.rejected_ids
        assert row.n_retokenised == 0
        for ids in (row.chosen_ids, row.rejected_ids):
            whole = encoder().encode_once(text_of(row.prompt_ids + ids))
            n_otherwise += whole[: len(row.prompt_ids)] != row.prompt_ids
    assert n_otherwise > len(pairs)  # as tokenised text most sides would be other ids


def _pairs_of_a_tree(everyone: Sequence[Speaker], spy: Spy) -> list[PreferencePair]:
    async def reward(conversations: Sequence[Conversation]) -> list[RewardParts]:
        return [
            RewardParts(
                problem_id="p", n=held.n, task=0.0, token=0.0, loss=None, loss_term=0.0,
                total=held.n / 10, n_tokens=1, is_eligible=True,
            )
            for held in conversations
        ]  # fmt: skip

    grower = TreeGrower(dialogue(everyone), SearchSection(n_rounds=6), spy.complete, reward)
    return sibling_pairs(asyncio.run(grower.grow((), lambda _: None)), "p")


def _holds(ids: Sequence[int], part: Sequence[int]) -> bool:
    return any(tuple(ids[start : start + len(part)]) == tuple(part) for start in range(len(ids)))
