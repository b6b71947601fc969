import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optima.recipe.schema import PairSection, SearchSection
from optima.search.pairs import Harvest, preference_row, select_pairs, sibling_pairs
from optima.search.tree import Tree, TreeGrower
from optima.seeding import rng
from optima.types import DialogueTree, Fault, PreferencePair, TreeRound
from tests.search.game import complete, dialogue, reward
from tests.talks import ids_of, turn
from tests.tokenizers import text_of

DRAW = random.Random(0)


def _siblings(*totals: float, faults: tuple[int, ...] = ()) -> Tree:
    """Return a tree whose root has one child per total."""
    tree = Tree(SearchSection())
    for i, total in enumerate(totals):
        found: tuple[Fault, ...] = ("overflow",) if i in faults else ()
        tree.reward(tree.insert(tree.root, turn(0, "abcdefgh"[i] * 5), found), total)
    return tree


def test_pair_is_the_best_and_the_worst_child_by_final_value() -> None:
    tree = _siblings(0.9, 0.1, 0.5)
    best = tree.root.children[0]
    (pair,) = sibling_pairs(tree, "p")
    assert (pair.chosen.text, pair.rejected.text) == ("aaaaa", "bbbbb")
    # A later rollout makes the best the worst: 0.9 and -2 are -0.55 in the mean.
    tree.reward(best, -2.0)
    (pair,) = sibling_pairs(tree, "p")
    assert (pair.chosen.text, pair.rejected.text) == ("ccccc", "aaaaa")
    assert pair.rejected_value == pytest.approx(-0.55)


def test_faulty_utterance_is_never_chosen_and_may_be_rejected() -> None:
    (pair,) = sibling_pairs(_siblings(0.9, 0.1, 0.5, faults=(0,)), "p")
    assert (pair.chosen.text, pair.rejected.text) == ("ccccc", "bbbbb")
    (pair,) = sibling_pairs(_siblings(0.9, 0.1, faults=(1,)), "p")
    assert pair.rejected.text == "bbbbb"
    assert sibling_pairs(_siblings(0.9, 0.1, faults=(0, 1)), "p") == []


def test_single_children_and_equal_values_make_no_pair() -> None:
    assert sibling_pairs(_siblings(0.9), "p") == []
    assert sibling_pairs(_siblings(0.5, 0.5), "p") == []


def _pair(high: float, low: float, parent: int = 0) -> PreferencePair:
    return PreferencePair(
        problem_id="p", parent=parent, history=(), chosen=turn(0, "x"), rejected=turn(0, "y"),
        chosen_value=high, rejected_value=low,
    )  # fmt: skip


def test_both_thresholds_are_exceeded_not_met() -> None:
    section = PairSection(theta_filter=0.4, theta_diff=0.2, keep_share=1.0)
    assert select_pairs([_pair(0.4, 0.0)], section, DRAW) == []  # value not over the filter
    assert select_pairs([_pair(0.5, 0.35)], section, DRAW) == []  # gap 0.15
    assert select_pairs([_pair(0.75, 0.25)], section, DRAW) == [_pair(0.75, 0.25)]
    exact = PairSection(theta_filter=0.4, theta_diff=0.5, keep_share=1.0)
    assert select_pairs([_pair(0.75, 0.25)], exact, DRAW) == []  # gap 0.5 is not over 0.5


def test_half_of_the_pairs_with_the_best_chosen_is_kept_and_at_least_one() -> None:
    pairs = [_pair(0.5 + i / 10, 0.0, parent=i) for i in range(5)]
    kept = select_pairs(pairs, PairSection(), DRAW)
    assert [pair.parent for pair in kept] == [4, 3]  # int(0.5 * 5) = 2
    assert select_pairs(pairs[:1], PairSection(), DRAW) == pairs[:1]


def test_random_keeps_as_many_of_those_above_the_thresholds() -> None:
    pairs = [_pair(0.5 + i / 10, 0.0, parent=i) for i in range(5)] + [_pair(0.3, 0.0, parent=9)]
    section = PairSection(strategy="random")
    drawn = {
        tuple(p.parent for p in select_pairs(pairs, section, random.Random(seed)))
        for seed in range(50)
    }
    assert {len(parents) for parents in drawn} == {2}
    assert len(drawn) > 3
    assert 9 not in {parent for parents in drawn for parent in parents}


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.floats(-1, 2)),
             min_size=1, max_size=30),
    st.floats(-0.5, 1), st.floats(0, 1),
)  # fmt: skip
def test_pairs_obey_both_thresholds_and_share_their_history(
    rollouts: list[tuple[list[int], float]], theta_filter: float, theta_diff: float
) -> None:
    tree = Tree(SearchSection())
    for path, total in rollouts:
        node = tree.root
        for depth, branch in enumerate(path):
            node = tree.insert(node, turn(depth % 2, "pqrs"[branch] * 6))
        tree.reward(node, total)
    section = PairSection(theta_filter=theta_filter, theta_diff=theta_diff, keep_share=1.0)
    for pair in select_pairs(sibling_pairs(tree, "p"), section, DRAW):
        parent = tree.nodes[pair.parent]
        assert parent.history() == pair.history
        assert pair.chosen.agent == pair.rejected.agent == len(pair.history) % 2
        values = {child.text: child.value for child in parent.children}
        known = [value for value in values.values() if value is not None]
        assert values[pair.chosen.text] == pair.chosen_value == max(known)
        assert values[pair.rejected.text] == pair.rejected_value == min(known)
        assert pair.chosen_value > theta_filter
        assert pair.chosen_value - pair.rejected_value > theta_diff


def test_row_is_what_the_acting_agent_sees() -> None:
    pair = PreferencePair(
        problem_id="p", parent=1, history=(turn(0, " hello"),),
        chosen=turn(1, " yes", ids=ids_of(" ye", "s")), rejected=turn(1, " no"),
        chosen_value=1.0, rejected_value=0.0,
    )  # fmt: skip
    row = preference_row(pair, dialogue().speakers)
    assert row.agent == 1
    assert [message.content for message in row.prompt] == ["You are Bob, place 1.", "Alice: hello"]
    assert (row.chosen[0].content, row.rejected[0].content) == ("Bob: yes", "Bob: no")
    assert text_of(row.prompt_ids) == (
        "<|im_start|>system\nYou are Bob, place 1.<|im_end|>\n<|im_start|>assistant\nAlice: hello"
        "<|im_end|>\n<|im_start|>assistant\nBob:"
    )
    assert row.chosen_ids == ids_of(" ye", "s", "<|im_end|>")
    assert row.rejected_ids == ids_of(" no", "<|im_end|>")
    assert row.n_retokenised == 1  # of the two the rejected one was not sampled
    neither = pair.model_copy(update={"chosen": turn(1, " yes")})
    assert preference_row(neither, dialogue().speakers).n_retokenised == 2


def test_harvest_says_how_far_the_best_of_all_pairs_was() -> None:
    section = SearchSection(n_rounds=3)
    trees: list[DialogueTree] = []
    for key in ("q", "p"):
        kept: list[TreeRound] = []
        held = replace(dialogue(), problem_id=key, seed=len(trees))
        asyncio.run(TreeGrower(held, section, complete, reward).grow([], kept.append))
        trees.append(DialogueTree(problem_id=key, rounds=tuple(kept)))
    pairs = [p for t in trees for p in sibling_pairs(Tree(section, t.rounds), t.problem_id)]
    gaps = [pair.chosen_value - pair.rejected_value for pair in pairs]
    every = PairSection(theta_filter=-9, theta_diff=0, keep_share=1.0)
    for in_order in (trees, trees[::-1]):  # the best pair comes last in one of them at most
        harvest = Harvest()
        chosen = list(harvest.gather(in_order, section, every, seed=0))
        assert sorted(chosen, key=repr) == sorted(pairs, key=repr)
        assert (harvest.n_trees, harvest.n_found, harvest.n_chosen) == (2, len(pairs), len(pairs))
        assert harvest.n_paired == len({pair.problem_id for pair in pairs})
        assert harvest.chosen_value - harvest.rejected_value == pytest.approx(sum(gaps))
        assert harvest.highest == max(pair.chosen_value for pair in pairs)
        assert harvest.widest == max(gaps) > min(gaps)
    drawn = PairSection(theta_filter=-9, theta_diff=0, keep_share=0.5, strategy="random")
    for seed in range(5):
        chosen = list(Harvest().gather(trees, section, drawn, seed=seed))
        for key in ("q", "p"):
            own = [pair for pair in pairs if pair.problem_id == key]
            expected = select_pairs(own, drawn, rng(seed, "pairs", key))
            assert [pair for pair in chosen if pair.problem_id == key] == expected
    nothing = Harvest()
    assert list(nothing.gather([], section, PairSection(), seed=0)) == []
    assert nothing.best() == "no siblings differ in value"
