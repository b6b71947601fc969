"""Rewards while conversations are still being generated (paper Alg. 4).

Growing trees ask for a few rewards at a time, thousands of them at once. The desk gathers the texts
that come while the scorer is busy into its next batch, so no tree waits for more than two batches.
Answers are judged in place; those of a slow metric one by one in other processes: an
expression that hangs delays its own tree and leaves the other processes to all others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from optima.pipelines.context import LossModel, RunContext
from optima.pipelines.judge import judgement
from optima.recipe.schema import RewardSection
from optima.reward import compute_reward, search_reward
from optima.tasks.judging import N_WORKERS, Judge, JudgeError, Judgement
from optima.tasks.task import Metric
from optima.types import Conversation, Problem, RewardParts

Q = TypeVar("Q")
A = TypeVar("A")
Losses = dict[str, float | None]


class Batcher(Generic[Q, A]):
    """Answers questions in batches, one batch at a time, by a function that runs in a thread."""

    def __init__(self, answer: Callable[[list[Q]], Sequence[A]]) -> None:
        self._answer = answer
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, questions: Sequence[Q]) -> list[A]:
        """Return the answers in order; raises what the function raised."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[A]] = [loop.create_future() for _ in questions]
        self._waiting += zip(questions, futures, strict=True)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return list(await asyncio.gather(*futures))

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await asyncio.to_thread(self._answer, [question for question, _ in batch])
            except Exception as error:  # noqa: BLE001  rises where the answer is awaited
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a conversation is rewarded by.

    ``normaliser_tokens`` is what R_token divides by. ``losses`` gives the base model's losses of
    texts, and blocks while it does; None where lambda_loss is 0.
    """

    metric: Metric
    section: RewardSection
    normaliser_tokens: int
    losses: Callable[[list[str]], Sequence[float | None]] | None


class RewardDesk:
    """Rewards conversations about ``problems``; a context manager that owns the judge."""

    def __init__(
        self, problems: Sequence[Problem], yardstick: Yardstick, judge: Judge | None = None
    ) -> None:
        self._problem_by_id = {problem.problem_id: problem for problem in problems}
        self._yardstick = yardstick
        self._judge = judge or Judge()
        self._judging = ThreadPoolExecutor(N_WORKERS, "judge")
        self._scoring = Batcher(yardstick.losses) if yardstick.losses else None

    def __enter__(self) -> Self:
        self._judge.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._judging.shutdown(wait=False, cancel_futures=True)
        self._judge.__exit__(*exc)

    def rewards_for(self) -> Callable[[Sequence[Conversation]], Awaitable[list[RewardParts]]]:
        """Return a function that rewards conversations of one tree.

        It remembers the losses of the tree's utterances, which many of its rollouts share.
        """
        known: Losses = {}

        async def rewards(conversations: Sequence[Conversation]) -> list[RewardParts]:
            scores, _ = await asyncio.gather(
                self._score(
                    [judgement(c, self._problem_by_id[c.problem_id]) for c in conversations]
                ),
                self._learn_losses(conversations, known),
            )
            return [
                compute_reward(
                    conversation,
                    task_score=str(score) if isinstance(score, JudgeError) else score,
                    normaliser_tokens=self._yardstick.normaliser_tokens,
                    turn_losses=[known[turn.text.strip()] for turn in conversation.turns]
                    if self._scoring
                    else None,
                    section=self._yardstick.section,
                )
                for conversation, score in zip(conversations, scores, strict=True)
            ]

        return rewards

    async def _learn_losses(self, conversations: Sequence[Conversation], known: Losses) -> None:
        if self._scoring is None:
            return
        texts = [turn.text.strip() for c in conversations for turn in c.turns]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known |= zip(new, await self._scoring.ask(new), strict=True)

    async def _score(self, judgements: list[Judgement]) -> list[float | JudgeError]:
        metric = self._yardstick.metric
        if not metric.is_slow:
            return self._judge.score_many(metric, judgements)
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(self._judging, self._score_one, item) for item in judgements)
        )

    def _score_one(self, item: Judgement) -> float | JudgeError:
        try:
            return self._judge.score(self._yardstick.metric, *item)
        except JudgeError as error:
            return error


def search_yardstick(context: RunContext, loss: LossModel, normaliser: int) -> Yardstick:
    """Return what rewards conversations while trees grow; starts the scorer where losses count."""
    section = search_reward(context.recipe)
    if section.lambda_loss == 0:
        return Yardstick(context.task.metric, section, normaliser, None)
    scorer = context.device.scorer(loss.model.ref)

    def losses(texts: list[str]) -> Sequence[float | None]:
        return scorer.losses([loss.item(text) for text in texts])

    return Yardstick(context.task.metric, section, normaliser, losses)
