"""Thousands of conversations at once: a fixed number of workers over a stream of dialogues.

Nothing is kept: a dialogue is made when a worker takes it, a conversation is handed to ``keep``
when it ends. So memory does not grow with the number of conversations.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.types import Conversation


class RoutedCompletion(Completion, Protocol):
    """A completion that also says which server made it."""

    @property
    def server(self) -> object:
        """The server; handed back as ``prefer`` so that a conversation keeps its prefix cache."""


Generate = Callable[[Request, object], Awaitable[RoutedCompletion]]


async def hold_conversations(
    dialogues: Iterable[Dialogue],
    generate: Generate,
    keep: Callable[[Conversation], None],
    *,
    concurrency: int,
) -> int:
    """Hold all dialogues, ``concurrency`` at a time, and return their number.

    ``generate(request, preferred_server)`` makes one turn. Errors of a conversation are records;
    anything else (a bug, a full disk in ``keep``) stops all workers and rises.
    """
    stream = iter(dialogues)
    n_held = 0

    async def work() -> None:
        nonlocal n_held
        for dialogue in stream:  # shared by all workers: each dialogue is taken once
            server: object = None

            async def complete(request: Request) -> RoutedCompletion:
                nonlocal server
                completion = await generate(request, server)
                server = completion.server
                return completion

            keep(await dialogue.converse(complete))
            n_held += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return n_held
