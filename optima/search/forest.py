"""Thousands of trees at once: a fixed number of workers over a stream of dialogues.

A tree is made when a worker takes its dialogue and forgotten when it is grown; what is kept of it
are its rounds, handed on as they end. So memory grows with the trees under way, not with all.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.conversation.rollouts import Generate
from optima.recipe.schema import SearchSection
from optima.search.expand import Reward, TreeGrower
from optima.types import TreeRound


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
