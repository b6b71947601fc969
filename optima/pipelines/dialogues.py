"""What holding conversations and growing trees share: their dialogues, and who completes them.

Two agents agree by the comparison that scores the task, in talks as in votes. What can be told
cheaply is told at once. Two formulas that are not equal as text or number are handed to the judge's
processes, so that an expression that hangs holds up nobody but its talk.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass

from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.conversation.rollouts import Generate
from optima.errors import StageError
from optima.pipelines.context import RunContext, Sampling, Team
from optima.rundir import Stage
from optima.seeding import derive_seed
from optima.serving.client import CompletionClient, Server
from optima.serving.fleet import Fleet
from optima.shares import share_of
from optima.tasks.choices import named_choice
from optima.tasks.judging import Judge
from optima.tasks.restatement import assents, restates
from optima.tasks.task import JudgeError, Metric
from optima.types import Problem

logger = logging.getLogger(__name__)


def dialogue_about(
    context: RunContext, out: Stage, problem: Problem, team: Team, judge: Judge
) -> Dialogue:
    """Return the first conversation of a stage about a problem, before it is held."""
    return Dialogue(
        problem_id=problem.problem_id,
        n=0,
        speakers=team.speakers(problem),
        answer_style=context.task.answer_style,
        agreement=TaskAgreement(context.task.metric, problem.choices, judge),
        limits=context.recipe.conversation,
        seed=derive_seed(context.recipe.seed, out.name),
        choices=problem.choices,
    )


@contextlib.asynccontextmanager
async def completing(
    context: RunContext, out: Stage, fleet: Fleet, sampling: Sampling, n_at_once: int | None = None
) -> AsyncIterator[Generate]:
    """Give a function that has servers make one turn, which counts until a record holds it.

    ``n_at_once`` calls there will be at a time; None is ``serving.concurrency`` per server.
    """
    async with CompletionClient(
        fleet.servers,
        fleet.model_name,
        context.recipe.serving,
        n_at_once,
        context.codec.encoder.n_ids,
    ) as client:

        async def generate(request: Request, preferred: object) -> Completion:
            completion = await client.complete(
                request,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                prefer=preferred if isinstance(preferred, Server) else None,
            )
            out.count_unkept(completion.n_tokens)
            return completion

        with rare_collections():
            yield generate


def check_errors(
    context: RunContext, out: Stage, metrics: Mapping[str, float], errors: Iterable[str | None]
) -> None:
    """Raise StageError when more conversations failed than ``conversation.max_error_rate`` allows.

    ``metrics`` count them, ``errors`` has an entry for each conversation.
    """
    n, n_failed = int(metrics["conversations"]), int(metrics["conversations/errors"])
    if n_failed > share_of(context.recipe.conversation.max_error_rate, n):
        first = next(filter(None, errors), "nothing")
        raise StageError(
            f"stage {out.name}: {n_failed} of {n} conversations ended in an error, more than "
            f"conversation.max_error_rate allows; the first says: {first}; see "
            f"{context.run.log_dir}, then run again to try exactly those"
        )


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely: turns make no cycles, and looking for some took 13-25 % of the time
    per turn (2026-11-23)."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@dataclass(frozen=True, slots=True)
class TaskAgreement:
    """Compares answers about one problem; ``choices`` are its texts in the order of the letters."""

    metric: Metric
    choices: tuple[str, ...]
    judge: Judge

    async def is_same(self, answer: str, other: str) -> bool:
        """Tell whether both mean the same; False, as in votes, where that takes too long."""
        try:
            told = self.metric.same(answer, other, self.choices)
        except JudgeError:  # which the judge says, and counts as different
            told = None
        if told is not None:
            return told
        return await asyncio.to_thread(
            self.judge.are_same, self.metric, answer, other, self.choices
        )

    def is_restated(self, text: str, answer: str) -> bool:
        """Tell whether an utterance without a mark says nothing but that ``answer`` is right.

        "Right." does, unless it is the text of a choice.
        """
        is_choice = bool(self.choices) and named_choice(text, self.choices) is not None
        if assents(text) and not is_choice:
            return True
        try:
            return restates(text, answer, metric=self.metric, choices=self.choices)
        except JudgeError as error:
            logger.warning("counted as not restated: %s", error)
            return False
