"""One dialogue tree (paper Alg. 4, App. H.1); pure.

A node is an utterance, the path to it a history. Each finished rollout is rewarded, and

    V(node) = mean of R over the rollouts through it

A node may be expanded when it is the root and was not expanded yet, or has children that are not
all leaves and says something unlike every node expanded before. Of these the ``n_candidates`` of
highest value are kept and one is drawn by the softmax of the values; where there is none it is the
root again, as in the reference. Refuses rounds out of order.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from rapidfuzz.distance import Levenshtein

from optima.recipe.schema import SearchSection
from optima.types import Fault, TreeNode, TreeRound, Turn


@dataclass(eq=False)
class Node:
    """An utterance with its place in the tree; the root has none."""

    node_id: int
    parent: "Node | None" = None
    turn: Turn | None = None
    faults: tuple[Fault, ...] = ()
    children: list["Node"] = field(default_factory=list)
    n_rollouts: int = 0
    reward_sum: float = 0.0
    n_unlike: int = 0  # of the expanded nodes, in their order, those that it is known to be unlike

    @property
    def value(self) -> float | None:
        """Mean reward of the rollouts through this node; None before the first."""
        return self.reward_sum / self.n_rollouts if self.n_rollouts else None

    @property
    def text(self) -> str:
        """What is said; the root says nothing."""
        return self.turn.text if self.turn else ""

    @property
    def is_leaf(self) -> bool:
        """Tell whether nothing follows: a conversation ended here."""
        return not self.children

    def path(self) -> list["Node"]:
        """Return the nodes from the root, which is left out, to this one."""
        nodes = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def history(self) -> tuple[Turn, ...]:
        """Return what was said from the root to this node."""
        return tuple(node.turn for node in self.path() if node.turn is not None)


class Tree:
    """The tree of one problem as it grows round by round."""

    def __init__(self, section: SearchSection, rounds: Sequence[TreeRound] = ()) -> None:
        self._section = section
        self.nodes = [Node(0)]
        self.expanded: list[Node] = []
        for finished in rounds:
            self.replay(finished)

    @property
    def root(self) -> Node:
        """The node before anything was said."""
        return self.nodes[0]

    def replay(self, finished: TreeRound) -> None:
        """Add a stored round; ValueError when it does not follow the rounds before."""
        if finished.number != len(self.expanded):
            raise ValueError(f"round {finished.number} follows {len(self.expanded)} rounds")
        self.expanded.append(self.nodes[finished.expanded])
        for stored in finished.nodes:
            node = self._add(self.nodes[stored.parent], stored.turn, stored.faults)
            if node.node_id != stored.node_id:
                raise ValueError(f"node {stored.node_id} stands at place {node.node_id}")
        for rollout in finished.rollouts:
            if rollout.reward.total is not None:
                self.reward(self.nodes[rollout.node_id], rollout.reward.total)

    def insert(self, parent: Node, turn: Turn, faults: tuple[Fault, ...] = ()) -> Node:
        """Return the child of ``parent`` that says ``turn``.

        That is the first sibling within ``merge_distance`` (edit distance / longer length), from
        whose text the rollout then continues, or a new node.
        """
        limit = self._section.merge_distance
        for sibling in parent.children:
            if text_distance(sibling.text, turn.text, limit) < limit:
                return sibling
        return self._add(parent, turn, faults)

    def reward(self, end: Node, total: float) -> None:
        """Count a finished rollout that ended at ``end`` in every node on its path."""
        node: Node | None = end
        while node is not None:
            node.n_rollouts += 1
            node.reward_sum += total
            node = node.parent

    def choose(self, generator: random.Random) -> Node:
        """Return the node to expand next, drawn by softmax among the best eligible ones."""
        best = list(islice(self.eligible(), self._section.n_candidates)) or [self.root]
        values = [node.value or 0.0 for node in best]
        highest = max(values)
        weights = [math.exp(value - highest) for value in values]
        return generator.choices(best, weights)[0]

    def eligible(self) -> Iterator[Node]:
        """Yield the nodes that may be expanded, best first.

        Texts are compared as far as the caller reads on, for that is what takes time.
        """
        for node in sorted(self.nodes, key=_by_value):
            if node is self.root:
                is_eligible = node not in self.expanded
            else:
                is_eligible = _has_room(node) and self._is_new(node)
            if is_eligible:
                yield node

    def _is_new(self, node: Node) -> bool:
        """Tell whether the node says something unlike every expanded one.

        Expanded nodes are only ever added, so each is compared with ``node`` once.
        """
        least = self._section.min_distance
        while node.n_unlike < len(self.expanded):
            other = self.expanded[node.n_unlike]
            if other is not self.root and text_distance(node.text, other.text, least) < least:
                return False
            node.n_unlike += 1
        return True

    def _add(self, parent: Node, turn: Turn, faults: tuple[Fault, ...]) -> Node:
        node = Node(len(self.nodes), parent, turn, faults)
        parent.children.append(node)
        self.nodes.append(node)
        return node


def text_distance(one: str, other: str, at_most: float = 1.0) -> float:
    """Return the edit distance over the longer length, in [0, 1]; 0 for two empty texts.

    A distance above ``at_most`` may be returned as 1, which is found much faster.
    """
    return Levenshtein.normalized_distance(one, other, score_cutoff=at_most)


def node_records(nodes: Sequence[Node]) -> Iterator[TreeNode]:
    """Yield the records of nodes, which must not contain the root."""
    for node in nodes:
        assert node.parent is not None
        assert node.turn is not None
        yield TreeNode(
            node_id=node.node_id, parent=node.parent.node_id, turn=node.turn, faults=node.faults
        )


def _has_room(node: Node) -> bool:
    """Tell whether a rollout passed the node and went on by more than one utterance."""
    return node.value is not None and not all(child.is_leaf for child in node.children)


def _by_value(node: Node) -> tuple[float, int]:
    return (-(node.value or 0.0), node.node_id)
