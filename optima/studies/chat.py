"""A person talks as one of the agents, and the model as the others.

Prompts, roles, cues, stop rules and agreement are those of the conversations that the model is
evaluated with: only who makes an utterance differs. What a person says is text, so it is tokenised
as what a partner said is, and no token of it was generated. The run that the servers need is a
temporary directory, which stays only where a failure names a log in it.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from optima.conversation.dialogue import Complete, Completion, Dialogue, Request, Speaker
from optima.errors import OptimaError, UsageError
from optima.processes import interruption
from optima.processes.devices import detect_devices
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.records import scratch_folder
from optima.reward import compute_reward
from optima.runs.directory import Stage
from optima.runs.files import run_of
from optima.runs.reader import Run
from optima.stages.context import Model, RunContext, Sampling, Team
from optima.stages.generate import completing, dialogue_about
from optima.stages.opening import codecs_of, open_run
from optima.stages.rank import judgement
from optima.studies.infer import check_policies
from optima.tasks import get_task
from optima.tasks.judging import Judge, JudgeError
from optima.tasks.loading import Split, load_problems
from optima.types import Conversation, Problem, RewardParts, Turn

logger = logging.getLogger(__name__)


def find_problems(
    recipe: Recipe, split: Split | None, problem_id: str | None, index: int
) -> tuple[Problem, ...]:
    """Return the problems of a split (None: test) from one on, by its id or number from 0.

    An id is looked for in both splits where none is named. Raises UsageError where it is in none
    and for a number past the last, DataError where a split cannot be read.
    """
    task, n_agents = get_task(recipe.task), len(recipe.agents.names)
    splits: tuple[Split, ...] = (split,) if split else ("test", "train")
    for name in splits if problem_id is not None else splits[:1]:
        loaded = load_problems(task, recipe.data, name, n_agents=n_agents, seed=recipe.seed)
        if problem_id is None:
            if index >= len(loaded.problems):
                raise UsageError(
                    f"--index {index}: the {name} split of {task.name} has {len(loaded.problems)} "
                    f"problems; give a number from 0 to {len(loaded.problems) - 1}"
                )
            return loaded.problems[index:]
        ids = [problem.problem_id for problem in loaded.problems]
        if problem_id in ids:
            return loaded.problems[ids.index(problem_id) :]
    raise UsageError(
        f"--problem {problem_id}: is no problem of {task.name} ({' or '.join(splits)} split); take "
        "an id from `optima compare --problems`, a report, or give --index"
    )


def seat_of(recipe: Recipe, name: str | None) -> int:
    """Return the agent that a person named ``name`` plays, None the first.

    Raises UsageError where there is no such agent, or nobody to talk with.
    """
    names = recipe.agents.names
    if len(names) < 2:
        raise UsageError(
            f"agents: {names[0]} is alone and has nobody to talk with; give a recipe of two agents "
            "or more"
        )
    if name is not None and name not in names:
        raise UsageError(f"--as {name}: must be one of {', '.join(names)}")
    return names.index(name or names[0])


@dataclass(frozen=True, slots=True)
class Held:
    """A conversation that ended, and its reward without the part that needs the base model.

    ``yardstick`` is what R_token divides by: the tokens of the first model of the run that trained
    this one about the same problem; None where that is not known, and R_token then says nothing.
    """

    problem: Problem
    conversation: Conversation
    reward: RewardParts
    yardstick: int | None


@dataclass
class Seat:
    """A person's place among the agents, whose partners a served model plays."""

    context: RunContext
    model: Model
    agent: int
    _out: Stage
    _judge: Judge
    _number: Iterator[int] = field(default_factory=itertools.count)

    def speakers(self, problem: Problem) -> tuple[Speaker, ...]:
        """Return the speakers of a problem, each with what it is told."""
        return self._team(problem).speakers(problem)

    def converse(
        self, problem: Problem, read: Callable[[], str], hear: Callable[[Turn], None]
    ) -> Held:
        """Hold a conversation to its end; ``read`` gives what the person says, and may raise.

        Every utterance is handed to ``hear`` when it is made.
        """
        yardstick = first_tokens(self.model, problem)
        dialogue = dialogue_about(
            self.context, self._out, problem, self._team(problem), self._judge
        )
        turns: list[Turn] = []
        while True:
            line = None
            is_over = interruption.run(dialogue.ending(turns)) is not None
            if not is_over and dialogue.next_agent(turns) == self.agent:
                line = read()
            said = interruption.run(self._go_on(dialogue, problem, turns, line))
            if isinstance(said, Conversation):
                held = said.model_copy(update={"n": next(self._number)})
                return Held(problem, held, self._reward(problem, held, yardstick), yardstick)
            turns.append(said)
            hear(said)

    def _team(self, problem: Problem) -> Team:
        return self.context.team(self.model, [problem])

    async def _go_on(
        self, dialogue: Dialogue, problem: Problem, turns: Sequence[Turn], line: str | None
    ) -> Turn | Conversation:
        if line is not None:
            return await dialogue.go_on(turns, _saying(line))
        section = self.context.recipe.evaluation
        sampling = Sampling(1, section.temperature)
        async with completing(
            self.context, self._out, self._team(problem), sampling, n_at_once=1
        ) as generate:
            return await dialogue.go_on(turns, lambda request: generate(request, None))

    def _reward(self, problem: Problem, held: Conversation, yardstick: int | None) -> RewardParts:
        score: float | JudgeError
        try:
            score = self._judge.score(self.context.task.metric, *judgement(held, problem))
        except JudgeError as error:
            score = error
        return compute_reward(
            held,
            task_score=score,
            normaliser_tokens=yardstick or max(1, held.n_tokens),
            turn_losses=None,
            section=self.context.recipe.reward,
        )


@contextlib.contextmanager
def seat(recipe: Recipe, model: Model, agent: int, *, vllm_env: Environment) -> Iterator[Seat]:
    """Serve ``model`` by one server of this host for the time of the context.

    Raises UsageError for a team some of whose policies play no agent.
    """
    check_policies(recipe, [model])
    recipe = on_one_server(recipe)
    with (
        scratch_folder("optima-chat-") as directory,
        open_run(recipe, directory, vllm_env=vllm_env, train_env=vllm_env) as context,
        Judge() as judge,
    ):
        context.device.fleets(model.ref)
        yield Seat(
            replace(context, codecs=codecs_of(recipe, model)),
            model,
            agent,
            context.run.stage("chat"),
            judge,
        )


def on_one_server(recipe: Recipe) -> Recipe:
    """Return the recipe with the first GPUs of this host only, as many as one server takes."""
    gpus = detect_devices(recipe.serving).gpus[: recipe.serving.tensor_parallel] or None
    return recipe.changed(serving={"gpus": gpus, "nodes": None, "ray": None, "training_nodes": 1})


def first_tokens(model: Model, problem: Problem) -> int | None:
    """Return the tokens of the first model of ``model``'s run about a held-out problem, if known.

    They are what an evaluation divides by (docs/method.md).
    """
    place = run_of(model.ref.place)
    try:
        run = Run(place) if place is not None else None
        if run is None or not run.evaluated:
            return None
        asked = next((one for one in run.tasks if one.recipe.task == problem.task), run.tasks[0])
        talks = (one.conversation for one in asked.evaluation(run.evaluated[0]))
        counts = [talk.n_tokens for talk in talks if talk.problem_id == problem.problem_id]
    except OptimaError as error:
        logger.warning("R_token is not known: %s", error)
        return None
    return max(1, *counts) if counts else None


def _saying(line: str) -> Complete:
    """Return what makes a turn of a person's line, which a speaker's label ends as any other."""

    async def complete(request: Request) -> Completion:
        text = f" {line.strip()}"
        ends = [place for stop in request.stop if (place := text.find(stop)) >= 0]
        said = text[: min(ends)] if ends else text
        return Completion(said, "label" if ends else "stop", n_prompt_tokens=0, n_tokens=0)

    return complete
