"""When two agents agree: the comparison that scores the task decides, in talks as in votes.

What can be told cheaply is told at once. Two formulas that are not equal as text or number are
handed to the judge's processes, so that an expression that hangs holds up nobody but its talk.
"""

import asyncio
from dataclasses import dataclass

from optima.tasks.choices import named_choice
from optima.tasks.judging import Judge
from optima.tasks.restatement import assents, restates
from optima.tasks.task import Metric


@dataclass(frozen=True, slots=True)
class TaskAgreement:
    """Compares answers about one problem; ``choices`` are its texts in the order of the letters."""

    metric: Metric
    choices: tuple[str, ...]
    judge: Judge

    async def is_same(self, answer: str, other: str) -> bool:
        """Tell whether both mean the same; False, as in votes, where that takes too long."""
        told = self.metric.same(answer, other, self.choices)
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
        return restates(text, answer, metric=self.metric, choices=self.choices)
