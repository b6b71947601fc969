"""Growing dialogue trees: choose, roll out, reward, repeat (paper Alg. 4), thousands at once.

The rollouts of a round speak in step: the utterances at one depth are generated at once and added
in the order of their numbers, so that a tree depends on its seed and not on who answers first. A
fixed number of workers takes dialogues from a stream, and no tree waits for another: a tree is made
when a worker takes its dialogue and forgotten when it is grown; what is kept of it are its rounds,
handed on as they end. So memory grows with the trees under way, not with all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from optima.conversation.dialogue import (
    Complete,
    Completion,
    Dialogue,
    Generate,
    Request,
    find_faults,
)
from optima.errors import ContextOverflowError, OptimaError
from optima.recipe.schema import SearchSection
from optima.search.tree import Node, Tree, node_records
from optima.seeding import rng
from optima.types import Conversation, Fault, RewardParts, Rollout, StopReason, TreeRound, Turn

Reward = Callable[[Sequence[Conversation]], Awaitable[Sequence[RewardParts]]]


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
    """How trees grow: ``concurrency`` at a time, none waiting for another.

    ``generate(request, preferred_server)`` makes one utterance; a tree stays on the server that
    holds its prefixes. ``rewards_for()`` gives a tree its function that rates conversations.
    ``keep`` takes each round when it ends, whichever tree it belongs to.
    """

    section: SearchSection
    generate: Generate
    rewards_for: Callable[[], Reward]
    keep: Callable[[TreeRound], None]
    concurrency: int

    async def grow(
        self, dialogues: Iterable[Dialogue], rounds: Mapping[str, Sequence[TreeRound]]
    ) -> None:
        """Grow the tree of every dialogue on from its finished ``rounds``, by problem id.

        A rollout that fails is a record; anything else (a bug, a full disk in ``keep``, a scorer
        that is gone) stops all workers and rises.
        """
        waiting = iter(dialogues)

        async def work() -> None:
            for dialogue in waiting:  # shared by all workers: each dialogue is taken once
                await self._grow_one(dialogue, rounds.get(dialogue.problem_id, ()))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _grow_one(self, dialogue: Dialogue, rounds: Sequence[TreeRound]) -> None:
        server: object = None

        async def complete(request: Request) -> Completion:
            nonlocal server
            completion = await self.generate(request, server)
            server = completion.server
            return completion

        grower = TreeGrower(dialogue, self.section, complete, self.rewards_for())
        await grower.grow(rounds, self.keep)
