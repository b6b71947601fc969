"""The stages that turn conversations into rewards: losses of the base model, then R.

``score`` needs the device (a forward of the base model), ``rank`` only arithmetic and, for
mathematical answers, the judge's processes. For its loss a turn is rendered as an assistant
message, without its label: its template header is not counted, its end of turn is.

Growing trees ask for a few rewards at a time, thousands of them at once (paper Alg. 4). The desk
gathers the texts that come while the scorer is busy into its next batch, so no tree waits for more
than two batches. Answers are judged in place; those of a slow metric one by one in other processes:
an expression that hangs delays its own tree and leaves the other processes to all others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Self, TypeVar

from optima.plan import Step
from optima.progress import Meter
from optima.recipe.schema import RewardSection
from optima.records import read_records, write_records
from optima.reward import compute_reward, search_reward
from optima.runs.directory import Stage
from optima.runs.files import CONVERSATIONS, LOSSES, REWARDS
from optima.stages.context import LossModel, Made, RunContext
from optima.tasks.judging import N_WORKERS, Judge, JudgeError, Judgement
from optima.tasks.task import Metric
from optima.types import Conversation, Problem, RewardParts, TurnLosses

BATCH = 4096  # conversations in memory at a time
T = TypeVar("T")


def score_where_needed(context: RunContext, step: Step, talked: Stage) -> Stage | None:
    """Let ``score`` be done; None when lambda_loss is 0, so that losses are of no use."""
    if context.recipe.reward.lambda_loss == 0:
        return None
    return context.do(step, score, talked, context.loss)


def score(context: RunContext, out: Stage, talked: Stage, loss: LossModel) -> Made:
    """Write the loss of every turn of a stage's conversations, in their order."""
    meter = Meter(out.name, out.path, "conversations", int(talked.metrics["conversations"]))
    scorer = context.device.scorer(loss.model.ref)
    n_texts = 0

    def losses() -> Iterator[TurnLosses]:
        nonlocal n_texts
        for batch in in_batches(read_records(talked.path / CONVERSATIONS, Conversation)):
            items = [loss.item(turn.text) for c in batch for turn in c.turns]
            n_texts += len(items)
            found = iter(scorer.losses(items))
            for conversation in batch:
                yield TurnLosses(
                    problem_id=conversation.problem_id,
                    n=conversation.n,
                    losses=tuple(islice(found, len(conversation.turns))),
                )
                meter.count(1)

    with meter:
        write_records(out.path / LOSSES, losses())
    line = f"base-model losses of {n_texts} utterances"
    return Made((LOSSES,), {"loss/texts": float(n_texts)}, line)


def in_batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of BATCH, the last one shorter."""
    stream = iter(items)
    while batch := list(islice(stream, BATCH)):
        yield batch


def rank(
    context: RunContext,
    out: Stage,
    problems: Sequence[Problem],
    talked: Stage,
    losses: Stage | None,
    normalisers: Mapping[str, int] | None = None,
) -> Made:
    """Write the reward of every conversation of ``talked``, in the same order.

    ``losses`` are those of its turns, None where they do not count. ``normalisers`` holds the token
    count that R_token divides by, per problem id; None takes the largest of each problem's group
    (paper Eq. 1).
    """
    divisors = group_maximum(talked) if normalisers is None else normalisers
    problem_by_id = {problem.problem_id: problem for problem in problems}
    means = RewardMeans()

    def rewards() -> Iterator[RewardParts]:
        conversations = read_records(talked.path / CONVERSATIONS, Conversation)
        turn_losses = read_records(losses.path / LOSSES, TurnLosses) if losses else None
        with Judge() as judge:
            for batch in in_batches(conversations):
                judged = [judgement(c, problem_by_id[c.problem_id]) for c in batch]
                scores = judge.score_many(context.task.metric, judged)
                for conversation, score in zip(batch, scores, strict=True):
                    parts = compute_reward(
                        conversation,
                        task_score=score,
                        normaliser_tokens=max(1, divisors[conversation.problem_id]),
                        turn_losses=next(turn_losses).losses if turn_losses else None,
                        section=context.recipe.reward,
                    )
                    means.add(parts)
                    yield parts

    n = write_records(out.path / REWARDS, rewards())
    metrics = means.metrics()
    line = (
        f"mean reward {metrics['reward/total']:.3f}, task score {metrics['reward/task']:.3f}, "
        f"{metrics['reward/eligible'] * n:.0f} of {n} eligible"
    )
    return Made((REWARDS,), metrics, line)


def mark(
    context: RunContext,
    folder: str,
    problems: Sequence[Problem],
    talked: Stage,
    normalisers: Mapping[str, int] | None = None,
) -> Stage:
    """Reward conversations; R_token divides by ``normalisers``, None: by each group's maximum."""
    losses = score_where_needed(context, Step(f"{folder}/score", ""), talked)
    return context.do(Step(f"{folder}/rank", ""), rank, problems, talked, losses, normalisers)


class RewardMeans:
    """Means of the parts of rewards: of the total, what the loss adds and the loss itself over
    those that have one."""

    def __init__(self) -> None:
        names = ("total", "task", "token", "loss_term", "loss", "eligible")
        self._sums = dict.fromkeys(names, 0.0)
        self._counts = dict.fromkeys(names, 0)

    def add(self, parts: RewardParts) -> None:
        """Count one reward more."""
        found = {
            "total": parts.total,
            "task": parts.task,
            "token": parts.token,
            "loss_term": None if parts.total is None else parts.loss_term,
            "loss": parts.loss,
            "eligible": float(parts.is_eligible),
        }
        for name, value in found.items():
            if value is not None:
                self._sums[name] += value
                self._counts[name] += 1

    def metrics(self) -> dict[str, float]:
        """Return the means by the names of metrics, 0 of nothing."""
        n_errors = self._counts["task"] - self._counts["total"]
        means = {f"reward/{k}": v / max(1, self._counts[k]) for k, v in self._sums.items()}
        return {**means, "reward/errors": float(n_errors)}


def judgement(conversation: Conversation, problem: Problem) -> Judgement:
    """Return what the judge needs to score a conversation about ``problem``."""
    return Judgement(conversation.answer, problem.golds, problem.choices)


def group_maximum(talked: Stage) -> dict[str, int]:
    """Return the largest token count of a conversation per problem id."""
    largest: dict[str, int] = {}
    for conversation in read_records(talked.path / CONVERSATIONS, Conversation):
        key = conversation.problem_id
        largest[key] = max(largest.get(key, 0), conversation.n_tokens)
    return largest


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
                    task_score=score,
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
