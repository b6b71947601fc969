import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optima.recipe.schema import SearchSection
from optima.search.tree import Node, Tree, text_distance
from tests.talks import turn

SECTION = SearchSection()


def _tree(section: SearchSection = SECTION) -> Tree:
    return Tree(section)


def _chain(tree: Tree, *texts: str) -> Node:
    node = tree.root
    for depth, text in enumerate(texts):
        node = tree.insert(node, turn(depth % 2, text))
    return node


def _eligible(tree: Tree) -> list[Node]:
    return sorted(tree.eligible(), key=lambda node: node.node_id)


def test_distance_is_edits_over_the_longer_length() -> None:
    assert text_distance("abcd", "abxd") == 1 / 4
    assert text_distance("ab", "abcdefgh") == 6 / 8
    assert text_distance("", "") == 0


def test_value_is_the_mean_over_the_rollouts_through_the_node() -> None:
    tree = _tree()
    first, second = _chain(tree, "one", "alpha"), _chain(tree, "one", "omega!")
    other = _chain(tree, "zzzzzz")
    tree.reward(first, 1.0)
    tree.reward(second, 0.4)
    tree.reward(other, -0.5)
    tree.reward(first, 0.4)  # a rollout that merged into the first
    assert first.value == pytest.approx((1.0 + 0.4) / 2)
    assert second.value == pytest.approx(0.4)
    assert first.parent is second.parent
    assert first.parent is not None
    assert first.parent.value == pytest.approx((1.0 + 0.4 + 0.4) / 3)
    assert tree.root.value == pytest.approx((1.0 + 0.4 - 0.5 + 0.4) / 4)


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(-3, 3)), min_size=1), st.randoms())
def test_values_do_not_depend_on_the_order_of_rollouts(
    rollouts: list[tuple[int, float]], generator: random.Random
) -> None:
    def grow(order: list[tuple[int, float]]) -> Tree:
        tree = _tree()
        for texts in (("a", "bb", "cc"), ("a", "bb", "zz"), ("a", "yy"), ("ooooo", "pp", "qq")):
            _chain(tree, *(text * 3 for text in texts))
        for place, total in order:
            tree.reward(tree.nodes[1 + place % (len(tree.nodes) - 1)], total)
        return tree

    shuffled = rollouts[:]
    generator.shuffle(shuffled)
    one, other = grow(rollouts), grow(shuffled)
    for a, b in zip(one.nodes, other.nodes, strict=True):
        through = [
            total
            for place, total in rollouts
            if a in (end := one.nodes[1 + place % (len(one.nodes) - 1)]).path() or a is end
        ]
        if a is one.root:
            through = [total for _, total in rollouts]
        expected = math.fsum(through) / len(through) if through else None
        for value in (a.value, b.value):
            assert value == (expected if expected is None else pytest.approx(expected))


def test_child_within_the_merge_distance_joins_its_sibling_and_keeps_its_text() -> None:
    tree = _tree()
    first = tree.insert(tree.root, turn(0, "the lamp is in Riga"))  # 19 characters
    assert tree.insert(tree.root, turn(0, "the lamp is at Riga")) is not first  # 2 / 19 > 0.1
    assert tree.insert(tree.root, turn(0, "the lamp is in Rigo")) is first  # 1 / 19 < 0.1
    assert first.text == "the lamp is in Riga"
    assert len(tree.root.children) == 2


def test_child_at_the_merge_distance_is_a_node_of_its_own() -> None:
    tree = _tree()
    first = tree.insert(tree.root, turn(0, "0123456789"))
    assert tree.insert(tree.root, turn(0, "012345678x")) is not first  # 1 / 10 is not below 0.1


def test_same_text_elsewhere_in_the_tree_is_no_sibling() -> None:
    tree = _tree()
    above = tree.insert(tree.root, turn(0, "hello"))
    assert tree.insert(above, turn(1, "hello")) is not above


def test_root_is_eligible_until_it_is_expanded_leaves_and_parents_of_leaves_never() -> None:
    tree = _tree()
    assert _eligible(tree) == [tree.root]
    end = _chain(tree, "first", "second utterance", "the third one")
    tree.reward(end, 1.0)
    top = tree.root.children[0]
    assert _eligible(tree) == [tree.root, top]  # "second" has leaves only, "third" is one
    _chain(tree, "first", "second utterance", "and another end")
    assert _eligible(tree) == [tree.root, top]
    tree.expanded.append(tree.root)
    assert _eligible(tree) == [top]


def test_root_is_chosen_again_where_nothing_else_is_eligible() -> None:
    tree = _tree()
    assert tree.choose(random.Random(0)) is tree.root
    tree.expanded.append(tree.root)
    tree.reward(_chain(tree, "first", "second utterance", "the third one"), -5.0)
    top = tree.root.children[0]
    # The root's value is higher than that of "top" alone would be, yet only "top" is drawn.
    tree.reward(_chain(tree, "an end at once"), 9.0)
    assert {tree.choose(random.Random(seed)) for seed in range(50)} == {top}
    tree.expanded.append(top)
    assert list(tree.eligible()) == []
    assert tree.choose(random.Random(0)) is tree.root


def test_node_like_one_expanded_before_is_not_eligible() -> None:
    tree = _tree()
    for word in ("aaaaaaaa", "bbbbbbbb", "aaaaaaab"):
        end = _chain(tree, word * 2, f"{word} and on", f"{word} to the end")
        tree.reward(end, 0.5)
    near, far, twin = tree.root.children
    assert text_distance(near.text, twin.text) == 2 / 16
    tree.expanded = [tree.root, near]
    assert [node for node in _eligible(tree) if node.parent is tree.root] == [far]


def test_node_is_compared_with_every_node_expanded_before_and_not_the_last_alone() -> None:
    tree = _tree()
    for word in ("aaaaaaaa", "bbbbbbbb", "aaaaaaab", "bbbbbbba"):
        tree.reward(_chain(tree, word * 2, f"{word} and on", f"{word} to the end"), 0.5)
    a, b, like_a, like_b = tree.root.children
    tree.expanded.append(a)
    assert [node for node in _eligible(tree) if node.parent is tree.root] == [b, like_b]
    tree.expanded.append(b)
    assert [node for node in _eligible(tree) if node.parent is tree.root] == []
    tree.expanded.append(tree.root)
    assert like_a not in _eligible(tree)


def test_node_at_the_least_distance_is_eligible() -> None:
    tree = _tree()
    for word in ("abcdefgh", "abcdefxy", "abcdefgz"):
        tree.reward(_chain(tree, word, f"{word} and on", f"{word} to the end"), 0.5)
    first, at_distance, _ = tree.root.children
    assert text_distance("abcdefgh", "abcdefxy") == 0.25
    tree.expanded.append(first)
    assert [node for node in _eligible(tree) if node.parent is tree.root] == [at_distance]


def test_node_that_no_rewarded_rollout_passed_is_not_eligible() -> None:
    tree = _tree()
    _chain(tree, "first", "second", "third")  # a rollout that failed on the way
    assert _eligible(tree) == [tree.root]


def test_choice_is_a_softmax_among_the_best() -> None:
    tree = _tree(SearchSection(n_candidates=2))
    values = {"alpha": 1.0, "bravo!": 0.0, "charlie?": -1.0}
    for word, value in values.items():
        tree.reward(_chain(tree, word * 3, f"{word} on", f"{word} end"), value)
    assert tree.root.value == 0.0
    counts = Counter(tree.choose(random.Random(seed)).text for seed in range(4000))
    # The best two are alpha (1) and, of those worth 0, the root, whose id is lower.
    assert set(counts) == {"alphaalphaalpha", ""}
    expected = math.exp(1) / (math.exp(1) + math.exp(0))
    assert counts["alphaalphaalpha"] / 4000 == pytest.approx(expected, abs=0.03)


def test_choice_takes_values_of_any_size() -> None:
    tree = _tree(SearchSection(n_candidates=2))
    for word, value in (("alpha", 2000.0), ("bravo!", 1990.0)):  # a loss near 0 has no bound
        tree.reward(_chain(tree, word * 3, f"{word} on", f"{word} end"), value)
    assert {tree.choose(random.Random(seed)).text for seed in range(50)} == {"alphaalphaalpha"}


def test_rounds_out_of_order_are_refused() -> None:
    from optima.types import TreeRound

    stray = TreeRound(
        problem_id="p", number=1, expanded=0, nodes=(), rollouts=(), n_merged=0, n_tokens=0
    )
    with pytest.raises(ValueError, match="round 1 follows 0 rounds"):
        Tree(SECTION, [stray])
