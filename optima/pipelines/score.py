"""The stage that takes the base model's losses of what was said: R_loss before it is weighed.

A turn is rendered as an assistant message, without its label: its template header is not counted,
its end of turn is. It needs the device, for a forward of the base model.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from optima.files import CONVERSATIONS, LOSSES
from optima.pipelines.context import LossModel, Made, RunContext
from optima.plan import Step
from optima.records import read_records, write_records
from optima.rundir import Stage
from optima.types import Conversation, TurnLosses

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
