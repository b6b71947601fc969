"""Thousands of conversations at once: a fixed number of workers over a stream of dialogues.

Nothing is kept: a dialogue is made when a worker takes it, a conversation is handed to ``keep``
when it ends. So memory does not grow with the number of conversations.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.types import Conversation

# Makes a turn, by the server that is named if it can: its cache holds what was said before.
Generate = Callable[[Request, object], Awaitable[Completion]]


async def hold_conversations(
    dialogues: Iterable[Dialogue],
    generate: Generate,
    keep: Callable[[Conversation], None],
    *,
    concurrency: int,
) -> None:
    """Hold all dialogues, ``concurrency`` at a time.

    Errors of a conversation are records; anything else (a bug, a full disk in ``keep``) stops all
    workers and rises.
    """
    stream = iter(dialogues)

    async def work() -> None:
        for dialogue in stream:  # shared by all workers: each dialogue is taken once
            server: object = None

            async def complete(request: Request) -> Completion:
                nonlocal server
                completion = await generate(request, server)
                server = completion.server
                return completion

            keep(await dialogue.converse(complete))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
