"""One dialogue tree and how it grows: choose, roll out, reward, repeat (paper Alg. 4, App. H.1).

A node is an utterance, the path to it a history. Each finished rollout is rewarded, and

    V(node) = mean of R over the rollouts through it

A node may be expanded when it is the root and was not expanded yet, or has children that are not
all leaves and says something unlike every node expanded before. Of these the ``n_candidates`` of
highest value are kept and one is drawn by the softmax of the values; where there is none it is the
root again, as in the reference. Refuses rounds out of order. ``Tree`` is pure arithmetic.

Thousands grow at once. The rollouts of a round speak in step: the utterances at one depth are
generated at once and added in the order of their numbers, so that a tree depends on its seed and
not on who answers first. A fixed number of workers takes dialogues from a stream, and no tree waits
for another: a tree is made when a worker takes its dialogue and forgotten when it is grown; what is
kept of it are its rounds, handed on as they end. So memory grows with the trees under way, not with
all.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from rapidfuzz.distance import Levenshtein

from optima.conversation.dialogue import (
    Complete,
    Completion,
    Dialogue,
    Generate,
    Request,
    find_faults,
    work_through,
)
from optima.errors import ContextOverflowError, OptimaError
from optima.recipe.schema import SearchSection
from optima.seeding import rng
from optima.types import (
    Conversation,
    Fault,
    RewardParts,
    Rollout,
    StopReason,
    TreeNode,
    TreeRound,
    Turn,
)

Reward = Callable[[Sequence[Conversation]], Awaitable[Sequence[RewardParts]]]


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


@dataclass(frozen=True, slots=True)
class TreeGrower:
    """Grows the tree of one problem.

    ``dialogue`` is a conversation about the problem: its speakers, limits and seed are those of
    every rollout. ``complete`` generates one utterance, ``reward`` rates ended conversations.
    """

    dialogue: Dialogue
    section: SearchSection
    complete: Complete
    reward: Reward

    async def grow(self, rounds: Sequence[TreeRound], keep: Callable[[TreeRound], None]) -> Tree:
        """Grow the tree from its finished ``rounds`` to ``n_rounds``; ``keep`` takes each new one.

        A rollout that fails is part of its round, without a reward.
        """
        tree = Tree(self.section, rounds)
        for number in range(len(rounds), self.section.n_rounds):
            keep(await self._round(tree, number))
        return tree

    async def _round(self, tree: Tree, number: int) -> TreeRound:
        dialogue, n_rollouts = self.dialogue, self.section.n_rollouts
        start = tree.choose(rng(dialogue.seed, "expand", dialogue.problem_id, number))
        tree.expanded.append(start)
        n_nodes_before = len(tree.nodes)
        first = number * n_rollouts
        rollouts = [
            _Rollout(replace(dialogue, n=n), start) for n in range(first, first + n_rollouts)
        ]
        n_merged = 0
        while talking := [rollout for rollout in rollouts if rollout.stop is None]:
            said = await asyncio.gather(*(rollout.speak(self.complete) for rollout in talking))
            for rollout, turn in zip(talking, said, strict=True):
                if turn is not None:
                    n_nodes = len(tree.nodes)
                    await rollout.go_on(tree.insert(rollout.node, turn, self._faults(turn)))
                    n_merged += len(tree.nodes) == n_nodes
        rewards = await self.reward([rollout.conversation() for rollout in rollouts])
        for rollout, parts in zip(rollouts, rewards, strict=True):
            if parts.total is not None:
                tree.reward(rollout.node, parts.total)
        return TreeRound(
            problem_id=dialogue.problem_id,
            number=number,
            expanded=start.node_id,
            nodes=tuple(node_records(tree.nodes[n_nodes_before:])),
            rollouts=tuple(
                rollout.record(parts) for rollout, parts in zip(rollouts, rewards, strict=True)
            ),
            n_merged=n_merged,
            n_tokens=sum(rollout.n_tokens for rollout in rollouts),
        )

    def _faults(self, turn: Turn) -> tuple[Fault, ...]:
        names = [speaker.name for speaker in self.dialogue.speakers]
        return find_faults([turn], "max_turns", names)


@dataclass(slots=True)
class _Rollout:
    """One rollout under way: at which node it is, and why it ended."""

    dialogue: Dialogue
    node: Node
    stop: StopReason | None = None
    error: str | None = None
    n_tokens: int = 0

    async def speak(self, complete: Complete) -> Turn | None:
        """Return the next utterance; None when there cannot be one, which ends the rollout."""
        try:
            turn = await self.dialogue.speak(self.node.history(), complete)
        except ContextOverflowError:
            self.stop = "context_overflow"
            return None
        except OptimaError as failure:
            self.stop, self.error = "error", str(failure)
            return None
        self.n_tokens += turn.n_tokens
        return turn

    async def go_on(self, node: Node) -> None:
        """Go on from ``node``, whose utterance may be another's that was much the same."""
        self.node = node
        self.stop = await self.dialogue.ending(node.history())

    def conversation(self) -> Conversation:
        """Return the conversation from the root to where the rollout ended."""
        assert self.stop is not None
        return self.dialogue.record(self.node.history(), self.stop, self.error)

    def record(self, parts: RewardParts) -> Rollout:
        """Return what is stored of the rollout."""
        assert self.stop is not None
        return Rollout(
            n=self.dialogue.n, node_id=self.node.node_id, stop_reason=self.stop, reward=parts
        )


@dataclass(frozen=True, slots=True)
class Forest:
    """How trees grow: ``concurrency()`` at a time, none waiting for another.

    ``generate(request, preferred_server)`` makes one utterance; a tree stays on the server that
    holds its prefixes. ``rewards_for()`` gives a tree its function that rates conversations.
    ``keep`` takes each round when it ends, whichever tree it belongs to.
    """

    section: SearchSection
    generate: Generate
    rewards_for: Callable[[], Reward]
    keep: Callable[[TreeRound], None]
    concurrency: Callable[[], int]

    async def grow(
        self, dialogues: Iterable[Dialogue], rounds: Mapping[str, Sequence[TreeRound]]
    ) -> None:
        """Grow the tree of every dialogue on from its finished ``rounds``, by problem id.

        A rollout that fails is a record; anything else (a bug, a full disk in ``keep``, a scorer
        that is gone) stops all workers and rises.
        """

        async def grow_one(dialogue: Dialogue) -> None:
            await self._grow_one(dialogue, rounds.get(dialogue.problem_id, ()))

        await work_through(dialogues, grow_one, self.concurrency)

    async def _grow_one(self, dialogue: Dialogue, rounds: Sequence[TreeRound]) -> None:
        server: object = None

        async def complete(request: Request) -> Completion:
            nonlocal server
            completion = await self.generate(request, server)
            server = completion.server
            return completion

        grower = TreeGrower(dialogue, self.section, complete, self.rewards_for())
        await grower.grow(rounds, self.keep)
