"""Held-out evaluation of the models of a run (paper section 4: temperature 0).

The evaluation's reward divides the tokens by those of the first model of the run on the same
problem, capped at 1: a yardstick that stays the same while the models change, unlike the group
maximum of training, which shrinks with the model.
"""

from optima.errors import StageError
from optima.evaluation.health import find_loss_of_speech
from optima.pipelines.context import Model, RunContext, Sampling
from optima.pipelines.judge import group_maximum, rank, score_where_needed
from optima.pipelines.talk import generate
from optima.plan import Step
from optima.reporting.tables import EvaluationRow
from optima.rundir import Stage, finished_stages
from optima.types import Problem


class Evaluations:
    """Evaluates the models of a run and keeps their figures, first model first.

    Talking and judging are apart: ``add`` talks on the servers that go on to generate the next
    candidates, ``settle`` judges with the scorer that goes on to score them.
    """

    def __init__(self, context: RunContext, problems: tuple[Problem, ...]) -> None:
        self._context = context
        self._problems = problems
        self._normalisers: dict[str, int] | None = None
        self._talks: list[tuple[Model, Stage]] = []
        self._rows: list[EvaluationRow] = []

    def add(self, model: Model) -> None:
        """Let ``model`` converse about all held-out problems.

        Raises StageError when its training cost it its speech, before it is used any further.
        """
        section = self._context.recipe.evaluation
        step, problems = Step(f"evaluate/{model.label}/talk", model.label), self._problems
        sampling = Sampling(section.n_samples, section.temperature)
        team = self._context.team(model, problems)
        talked = self._context.do(step, generate, team, problems, sampling)
        if self._normalisers is None:
            self._normalisers = group_maximum(talked)
        for earlier, before in self._talks:
            lost = find_loss_of_speech(before.metrics, talked.metrics)
            if lost is not None:
                raise StageError(
                    f"stage {step.name}: {lost} ({earlier.label}): the training of {model.label} "
                    "has ruined the model; lower the learning rate or the epochs of its training, "
                    f"and give another --run-dir. What it said: {talked.path}"
                )
        self._talks.append((model, talked))

    def settle(self) -> None:
        """Reward what was added since the last call."""
        context = self._context
        for model, talked in self._talks[len(self._rows) :]:
            name = f"evaluate/{model.label}"
            losses = score_where_needed(context, Step(f"{name}/score", model.label), talked)
            step = Step(f"{name}/rank", model.label)
            ranked = context.do(step, rank, self._problems, talked, losses, self._normalisers)
            self._rows.append(_row(model, talked, ranked, self._seconds(model)))

    def rows(self) -> tuple[EvaluationRow, ...]:
        """Return the figures of all models added."""
        self.settle()
        return tuple(self._rows)

    def _seconds(self, model: Model) -> float:
        """Return the wall time of all stages that made the model, its iteration only."""
        stages = finished_stages(self._context.run.root)
        return sum(done.seconds for done in stages if done.stage.split("/")[0] == model.label)


def _row(model: Model, talked: Stage, ranked: Stage, seconds: float) -> EvaluationRow:
    return EvaluationRow(
        label=model.label,
        model=model.ref.adapter or model.ref.path,
        score=ranked.metrics["reward/task"],
        answered=talked.metrics["conversations/answered"],
        tokens=talked.metrics["tokens/conversation"],
        # not stored by runs of before the paper's count, whose tokens are the generated ones
        generated=talked.metrics.get(
            "tokens/generated_conversation", talked.metrics["tokens/conversation"]
        ),
        turns=talked.metrics["turns/conversation"],
        reward=ranked.metrics["reward/total"],
        seconds=seconds,
    )
