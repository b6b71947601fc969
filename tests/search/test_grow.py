import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from optima.conversation.dialogue import Complete, Completion, Request
from optima.errors import ContextOverflowError, ServerError
from optima.recipe.schema import SearchSection
from optima.search.pairs import sibling_pairs
from optima.search.tree import Node, Tree, TreeGrower
from optima.types import TreeRound
from tests.search.game import complete, dialogue, reward
from tests.talks import Reply
from tests.tokenizers import text_of

GOLDEN = Path(__file__).parent / "golden_tree.txt"
SECTION = SearchSection(n_rounds=4)


def grow(
    rounds: list[TreeRound] | None = None,
    names: tuple[str, ...] = ("Alice", "Bob"),
    complete: Complete = complete,
) -> tuple[Tree, list[TreeRound]]:
    kept = list(rounds or [])
    grower = TreeGrower(dialogue(names), SECTION, complete, reward)
    return asyncio.run(grower.grow(list(kept), kept.append)), kept


def drawing(tree: Tree) -> str:
    """Return the tree as text: a node a line, its value, rollouts and utterance."""

    def lines(node: Node) -> Iterator[str]:
        value = "-" if node.value is None else f"{node.value:.4f}"
        mark = f" expanded x{n}" if (n := tree.expanded.count(node)) else ""
        line = f"{node.node_id} {value} / {node.n_rollouts}{mark}{node.text}".rstrip()
        yield f"{'  ' * len(node.path())}{line}\n"
        for child in node.children:
            yield from lines(child)

    return "".join(lines(tree.root))


def test_known_game_grows_the_golden_tree() -> None:
    assert drawing(grow()[0]) == GOLDEN.read_text(encoding="utf-8")


def test_tree_does_not_depend_on_who_answers_first() -> None:
    async def slow(request: Request) -> Completion:
        await asyncio.sleep(random.random() / 500)
        return await complete(request)

    assert drawing(grow(complete=slow)[0]) == drawing(grow()[0])


def test_rounds_have_all_rollouts_and_follow_the_speakers() -> None:
    tree, rounds = grow(names=("Alice", "Bob", "Cleo"))
    assert [r.number for r in rounds] == [0, 1, 2, 3]
    assert [rollout.n for r in rounds for rollout in r.rollouts] == list(range(12))
    assert tree.root.n_rollouts == 12
    assert rounds[0].expanded == 0
    for node in tree.nodes[1:]:
        assert node.turn is not None
        assert node.turn.agent == (len(node.path()) - 1) % 3
    assert {pair.chosen.agent for pair in sibling_pairs(tree, "p")} <= {0, 1, 2}


def test_every_utterance_is_asked_with_its_speakers_own_prompt() -> None:
    prompts = []

    async def listen(request: Request) -> Completion:
        prompts.append((request.agent, text_of(request.prompt_ids)))
        return await complete(request)

    grow(complete=listen)
    assert {agent for agent, _ in prompts} == {0, 1}
    for agent, prompt in prompts:
        name = ("Alice", "Bob")[agent]
        assert prompt.startswith(f"<|im_start|>system\nYou are {name}, place {agent}.")
        assert prompt.endswith(f"{name}:")


def test_rollouts_of_a_round_run_at_once() -> None:
    at_once = [0, 0]

    async def count(request: Request) -> Completion:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0)
        at_once[0] -= 1
        return await complete(request)

    grow(complete=count)
    assert at_once[1] == SECTION.n_rollouts


def test_stored_rounds_grow_on_to_the_same_tree() -> None:
    whole, rounds = grow()
    stored = [TreeRound.model_validate_json(r.model_dump_json()) for r in rounds]
    assert drawing(Tree(SECTION, stored)) == drawing(whole)
    resumed, again = grow(stored[:2])
    assert drawing(resumed) == drawing(whole)
    timeless = [json.loads(r.model_dump_json(exclude={"nodes"})) for r in again]
    assert timeless == [json.loads(r.model_dump_json(exclude={"nodes"})) for r in rounds]


def test_failed_rollout_counts_in_no_value() -> None:
    n_asked = 0

    async def fail(request: Request) -> Completion:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 2:
            raise ServerError("the server is gone")
        return await complete(request)

    tree, rounds = grow(complete=fail)
    broken = [rollout for r in rounds for rollout in r.rollouts if rollout.stop_reason == "error"]
    assert len(broken) == 1
    assert broken[0].reward.total is None
    assert broken[0].reward.error == "the server is gone"
    assert tree.root.n_rollouts == 11


def test_full_context_ends_a_rollout_with_its_reward() -> None:
    async def overflow(request: Request) -> Completion:
        if text_of(request.prompt_ids).count("<|im_start|>") > 4:
            raise ContextOverflowError("maximum context length")
        return Reply(f" {request.seed} keeps talking")

    tree, rounds = grow(complete=overflow)
    stops = {rollout.stop_reason for r in rounds for rollout in r.rollouts}
    assert stops == {"context_overflow"}
    assert tree.root.value == pytest.approx(-0.5)


def test_merged_rollouts_go_on_from_the_same_text() -> None:
    async def parrot(request: Request) -> Completion:
        return Reply(f" always nearly the same words {request.seed % 2}", n_tokens=4)

    tree, rounds = grow(complete=parrot)
    assert [len(node.children) for node in tree.nodes[:-1]] == [1] * (len(tree.nodes) - 1)
    assert len(tree.nodes) == 1 + 6  # one line to max_turns
    assert rounds[0].n_merged == 2 * 6
    assert rounds[0].n_tokens == 3 * 6 * 4  # merged utterances were generated and cost tokens
    assert sibling_pairs(tree, "p") == []


def test_answer_is_never_read_from_the_prompt() -> None:
    async def chat(request: Request) -> Completion:
        assert "<A>Paris</A>" in text_of(request.prompt_ids)
        return Reply(f" {request.seed} is all that I know")

    plain = dialogue(names=("Alice", "Bob"))
    speakers = tuple(
        replace(speaker, system_prompt="Mark it, as in <A>Paris</A>.") for speaker in plain.speakers
    )
    kept: list[TreeRound] = []
    grower = TreeGrower(replace(plain, speakers=speakers), SECTION, chat, reward)
    asyncio.run(grower.grow((), kept.append))
    assert {node.turn.answer for r in kept for node in r.nodes} == {None}
    assert {rollout.stop_reason for r in kept for rollout in r.rollouts} == {"max_turns"}


def test_fault_of_an_utterance_is_stored_with_its_node() -> None:
    async def leak(request: Request) -> Completion:
        reply = await complete(request)
        return Reply(f"{reply.text}\nBob: me too") if request.agent == 0 else reply

    tree, rounds = grow(complete=leak)
    for node in (node for r in rounds for node in r.nodes):
        assert node.faults == (("role_leakage",) if node.turn.agent == 0 else ())
    assert {pair.chosen.agent for pair in sibling_pairs(tree, "p")} == {1}
    assert [n.faults for n in Tree(SECTION, rounds).nodes] == [n.faults for n in tree.nodes]
