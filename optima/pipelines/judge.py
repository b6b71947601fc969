"""The stages that turn conversations into rewards: losses of the base model, then R.

``score`` needs the device (a forward of the base model), ``rank`` only arithmetic and, for
mathematical answers, the judge's processes.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from optima.errors import StageError
from optima.files import CONVERSATIONS, LOSSES, REWARDS
from optima.pipelines.context import RunContext
from optima.records import read_records, write_records
from optima.reward import compute_reward
from optima.rundir import Stage
from optima.tasks.judging import Judge, JudgeError, Judgement
from optima.types import Conversation, Problem, RewardParts, TurnLosses

logger = logging.getLogger(__name__)
BATCH = 4096  # conversations in memory at a time
T = TypeVar("T")


def score(context: RunContext, name: str, talk: Stage) -> Stage | None:
    """Write the base model's loss of every turn of ``talk``; None when lambda_loss is 0.

    The turn is rendered as an assistant message, without its label: its template header is not
    counted, its end of turn is.
    """
    if context.recipe.reward.lambda_loss == 0:
        return None
    stage = context.run.stage(name, talk.output_digest, context.loss_model.digest, context.loss_end)
    if stage.done:
        return stage
    scorer = context.device.scorer(context.loss_model.ref)
    n_texts = 0

    def losses() -> Iterator[TurnLosses]:
        nonlocal n_texts
        for batch in _batches(read_records(talk.path / CONVERSATIONS, Conversation)):
            items = [context.loss_item(turn.text) for c in batch for turn in c.turns]
            n_texts += len(items)
            found = iter(scorer.losses(items))
            for conversation in batch:
                yield TurnLosses(
                    problem_id=conversation.problem_id,
                    n=conversation.n,
                    losses=tuple(islice(found, len(conversation.turns))),
                )

    write_records(stage.path / LOSSES, losses())
    stage.finish([stage.path / LOSSES], {"loss/texts": float(n_texts)})
    context.run.write_metrics()
    logger.info("%s: done, base-model losses of %d utterances", name, n_texts)
    return stage


def rank(
    context: RunContext,
    name: str,
    problems: Sequence[Problem],
    stages: tuple[Stage, Stage | None],
    normalisers: Mapping[str, int] | None = None,
) -> Stage:
    """Write the reward of every conversation of ``stages`` = (talk, score), in the same order.

    ``normalisers`` holds the token count that R_token divides by, per problem id; None takes the
    largest of each problem's group (paper Eq. 1).
    """
    talk, scored = stages
    stage = context.run.stage(
        name, talk.output_digest, scored.output_digest if scored else "", repr(normalisers),
        *context.task.versions,
    )  # fmt: skip
    if stage.done:
        return stage
    if normalisers is None:
        normalisers = group_maximum(talk)
    problem_by_id = {problem.problem_id: problem for problem in problems}
    totals: dict[str, float] = defaultdict(float)

    def rewards() -> Iterator[RewardParts]:
        conversations = read_records(talk.path / CONVERSATIONS, Conversation)
        losses = read_records(scored.path / LOSSES, TurnLosses) if scored else None
        with Judge() as judge:
            for batch in _batches(conversations):
                judged = [judgement(c, problem_by_id[c.problem_id]) for c in batch]
                scores = judge.score_many(context.task.metric, judged)
                for conversation, task_score in zip(batch, scores, strict=True):
                    parts = compute_reward(
                        conversation,
                        task_score=str(task_score)
                        if isinstance(task_score, JudgeError)
                        else task_score,
                        normaliser_tokens=max(1, normalisers[conversation.problem_id]),
                        turn_losses=next(losses).losses if losses else None,
                        section=context.recipe.reward,
                    )
                    _add(totals, parts)
                    yield parts

    n = write_records(stage.path / REWARDS, rewards())
    metrics = _means(totals, n)
    stage.finish([stage.path / REWARDS], metrics)
    context.run.write_metrics()
    logger.info(
        "%s: done, mean reward %.3f, task score %.3f, %d of %d eligible",
        name, metrics["reward/total"], metrics["reward/task"], int(totals["eligible"]), n,
    )  # fmt: skip
    return stage


def judgement(conversation: Conversation, problem: Problem) -> Judgement:
    """Return what the judge needs to score a conversation about ``problem``."""
    return Judgement(conversation.answer, problem.golds, problem.choices)


def read_judged(folder: Path) -> Iterator[tuple[Conversation, RewardParts]]:
    """Yield the conversations of an evaluated model's folder with their rewards.

    Raises StageError when there is not one reward for each conversation.
    """
    yield from read_rewarded(folder / "talk", folder / "rank")


def read_rewarded(talk: Path, rank: Path) -> Iterator[tuple[Conversation, RewardParts]]:
    """Yield the conversations in the folder of a stage with the rewards in that of another.

    Raises StageError when there is not one reward for each conversation.
    """
    talked, ranked = talk / CONVERSATIONS, rank / REWARDS
    try:
        yield from zip(
            read_records(talked, Conversation), read_records(ranked, RewardParts), strict=True
        )
    except (ValueError, FileNotFoundError) as error:
        raise StageError(
            f"{ranked}: has not one reward for each conversation of {talked}; remove "
            f"{ranked.parent}, then run again"
        ) from error


def group_maximum(talk: Stage) -> dict[str, int]:
    """Return the largest token count of a conversation per problem id."""
    largest: dict[str, int] = {}
    for conversation in read_records(talk.path / CONVERSATIONS, Conversation):
        key = conversation.problem_id
        largest[key] = max(largest.get(key, 0), conversation.n_tokens)
    return largest


def _add(totals: dict[str, float], parts: RewardParts) -> None:
    totals["task"] += parts.task
    totals["token"] += parts.token
    totals["eligible"] += parts.is_eligible
    totals["errors"] += parts.error is not None
    if parts.total is not None:
        totals["n_total"] += 1
        totals["total"] += parts.total
        totals["loss_term"] += parts.loss_term
    if parts.loss is not None:
        totals["n_loss"] += 1
        totals["loss"] += parts.loss


def _means(totals: Mapping[str, float], n: int) -> dict[str, float]:
    n = max(1, n)
    rewarded = max(1.0, totals.get("n_total", 0))
    return {
        "reward/total": totals.get("total", 0) / rewarded,
        "reward/task": totals.get("task", 0) / n,
        "reward/token": totals.get("token", 0) / n,
        "reward/loss_term": totals.get("loss_term", 0) / rewarded,
        "reward/loss": totals.get("loss", 0) / max(1.0, totals.get("n_loss", 0)),
        "reward/eligible": totals.get("eligible", 0) / n,
        "reward/errors": totals.get("errors", 0),
    }


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    stream = iter(items)
    while batch := list(islice(stream, BATCH)):
        yield batch
