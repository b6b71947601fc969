"""Evaluation of the models of a training (paper section 4).

Inferences, baselines, transfers and trials of influence ask and mark by the same two functions; the
figures are then read from the run. The reward divides the tokens by those of the first model of the
run on the same problem, capped at 1: a yardstick that stays the same while the models change,
unlike the group maximum of training, which shrinks with the model.
"""

from collections.abc import Sequence

from optima.errors import StageError
from optima.evaluation.figures import Figures
from optima.evaluation.health import find_loss_of_speech
from optima.recipe.schema import Recipe
from optima.runs.directory import Stage
from optima.runs.reader import Run
from optima.stages.context import Model, RunContext
from optima.stages.generate import ask
from optima.stages.problems import Part
from optima.stages.rank import group_maximum, mark
from optima.types import Problem


def anchor_left(recipe: Recipe) -> str:
    """Return the field that keeps a preference training near what is chosen, if that is off."""
    is_off = recipe.dpo is not None and recipe.dpo.nll_weight == 0
    return ", or raise dpo.nll_weight (it is 0)" if is_off else ""


class Evaluations:
    """Evaluates the models of a training, first model first.

    Asking and judging are apart: ``add`` talks on the servers that go on to generate the next
    candidates, ``settle`` judges with the scorer that goes on to score them.
    """

    def __init__(self, context: RunContext, parts: Sequence[Part]) -> None:
        self._root = context.run.root
        self._tasks = [_OfTask(part.run, part.problems.test) for part in parts]

    def add(self, model: Model) -> None:
        """Let ``model`` converse about all held-out problems.

        Raises StageError when its training cost it its speech, before it is used any further.
        """
        for task in self._tasks:
            task.add(model)

    def settle(self) -> None:
        """Reward what was added since the last call."""
        for task in self._tasks:
            task.settle()

    def rows(self) -> tuple[Figures, ...]:
        """Return the figures of all models added; of a mixture, means over its tasks."""
        self.settle()
        return Run(self._root).figures


class _OfTask:
    """The evaluations on the problems of one task."""

    def __init__(self, context: RunContext, problems: tuple[Problem, ...]) -> None:
        self._context = context
        self._problems = problems
        self._normalisers: dict[str, int] | None = None
        self._talks: list[tuple[Model, Stage]] = []
        self._n_settled = 0

    def add(self, model: Model) -> None:
        talked = ask(self._context, f"evaluate/{model.label}", model, self._problems)
        if self._normalisers is None:
            self._normalisers = group_maximum(talked)
        for earlier, before in self._talks:
            lost = find_loss_of_speech(before.metrics, talked.metrics)
            if lost is not None:
                raise StageError(
                    f"stage {talked.name}: {lost} ({earlier.label}): the training of {model.label} "
                    "has ruined the model; lower the learning rate or the epochs of its training"
                    f"{anchor_left(self._context.recipe)}, and give another --run-dir. "
                    f"What it said: {talked.path}"
                )
        self._talks.append((model, talked))

    def settle(self) -> None:
        for model, talked in self._talks[self._n_settled :]:
            folder = f"evaluate/{model.label}"
            mark(self._context, folder, self._problems, talked, self._normalisers)
            self._n_settled += 1
