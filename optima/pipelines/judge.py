"""The stages that turn conversations into rewards: losses of the base model, then R.

``score`` needs the device (a forward of the base model), ``rank`` only arithmetic and, for
mathematical answers, the judge's processes. For its loss a turn is rendered as an assistant
message, without its label: its template header is not counted, its end of turn is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from optima.files import CONVERSATIONS, LOSSES, REWARDS
from optima.pipelines.context import LossModel, Made, RunContext
from optima.plan import Step
from optima.records import read_records, write_records
from optima.reward import compute_reward
from optima.rundir import Stage
from optima.tasks.judging import Judge, JudgeError, Judgement
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
                        task_score=str(score) if isinstance(score, JudgeError) else score,
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


class RewardMeans:
    """Means of the parts of rewards: of the total, what the loss adds and the loss itself over
    those that have one."""

    def __init__(self) -> None:
        names = ("total", "task", "token", "loss_term", "loss", "eligible")
        self._values: dict[str, list[float]] = {name: [] for name in names}

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
                self._values[name].append(value)

    def metrics(self) -> dict[str, float]:
        """Return the means by the names of metrics, 0 of nothing."""
        n_errors = len(self._values["task"]) - len(self._values["total"])
        means = {f"reward/{k}": sum(v) / max(1, len(v)) for k, v in self._values.items()}
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
