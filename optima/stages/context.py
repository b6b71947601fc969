"""What all stages of a run share: who does a stage, who speaks in it, and who has the device.

``RunContext.do`` keeps the books of every stage. One GPU (or the CPU) serves models, scores losses
and trains in turn: ``Device`` hands it to one tenant after the other and keeps a tenant as long as
nobody else needs the place, servers also longer where ``serving.keep`` says so. Only where trees
grow, which takes rewards while it generates, servers and scorer run side by side.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from optima.conversation.codec import ChatCodec
from optima.conversation.dialogue import Speaker
from optima.errors import UsageError
from optima.plan import Step, placed, trained_agents
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.prompts.rendering import Format, PromptStyle, cue, system_prompt
from optima.recipe.schema import Recipe
from optima.runs.directory import RunDir, Stage
from optima.runs.identity import identify
from optima.runs.layout import check_model
from optima.seeding import digest
from optima.serving.board import board_of
from optima.serving.cluster import Cluster
from optima.serving.fleet import Fleets
from optima.serving.nodes import Nodes
from optima.serving.scorer import Item, LossScorer
from optima.stages.room import keep_of, serving_recipe
from optima.tasks import get_task
from optima.tasks.task import Task
from optima.training.jobs import Others
from optima.types import ModelRef, Problem, TeamRef

logger = logging.getLogger(__name__)

MAX_PORT = 65535
P = ParamSpec("P")
T = TypeVar("T", Fleets, LossScorer)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the run: its name in tables, where it is, and a digest of how it was made.

    A team of several policies has ``members``, by their names, and ``ref`` is all of them.
    """

    label: str
    ref: ModelRef
    digest: str
    members: Mapping[str, "Model"] = field(default_factory=dict)

    @classmethod
    def of_members(
        cls, label: str, members: Mapping[str, "Model"], base: str, folder: str = ""
    ) -> "Model":
        """Return the team of these policies, some of which may be the model at ``base`` itself.

        ``folder`` is where its run keeps it.
        """
        own = {name: one.ref for name, one in members.items() if one.ref != ModelRef(path=base)}
        made = digest(*(f"{name}={member.digest}" for name, member in members.items()))
        ref = TeamRef(path=base, member_by_policy=own, folder=folder)
        return cls(label, ref, made, members)

    def member(self, policy: str) -> "Model":
        """Return the model that is a policy; every policy begins as the same one."""
        return self.members.get(policy, self)


@dataclass(frozen=True, slots=True)
class Team:
    """Who speaks: all agents, played by ``model``, and what they are told of a made-up problem.

    ``style`` and the ``codecs`` of the agents render it; they follow from the recipe and the model.
    ``policies`` has that of each agent, nothing where all share one.
    """

    model: Model
    told: tuple[str, ...]
    style: PromptStyle = field(compare=False)
    codecs: tuple[ChatCodec, ...] = field(compare=False)
    policies: tuple[str, ...] = ()

    def speakers(self, problem: Problem, format_text: str | None = None) -> tuple[Speaker, ...]:
        """Return the speakers of a problem."""
        return speakers_of(self.style, self.codecs, problem, format_text)


def speakers_of(
    style: PromptStyle,
    codecs: Sequence[ChatCodec],
    problem: Problem,
    format_text: str | None = None,
) -> tuple[Speaker, ...]:
    """Return the speakers of a problem, each with its own prompt, in order of speaking.

    ``codecs`` are those of the models that play them.
    """
    return tuple(
        Speaker(
            agent=agent,
            name=name,
            system_prompt=system_prompt(problem, style, agent=agent, format_text=format_text),
            codec=codec,
            cue=cue(problem, style, agent=agent),
        )
        for agent, (name, codec) in enumerate(zip(style.names, codecs, strict=True))
    )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How conversations are drawn: N per problem, temperature, nucleus mass, and the formats."""

    n_samples: int
    temperature: float
    top_p: float = 1.0
    formats: tuple[Format, ...] = ()


@dataclass(frozen=True, slots=True)
class LossModel:
    """The model whose losses give R_loss.

    ``header`` is what its chat template writes before an assistant message, ``end`` what it ends
    one with.
    """

    model: Model
    header: str
    end: str

    def item(self, utterance: str) -> Item:
        """Return what the scorer takes of an utterance without its label: R_loss's header and text.

        The end of turn is part of the text; where nothing was said there is nothing to score.
        """
        text = utterance.strip()
        return self.header, text + self.end if text else ""


@dataclass(frozen=True, slots=True)
class Environments:
    """The Python environments of servers and of trainings and the scorer."""

    vllm: Environment
    train: Environment


@dataclass(frozen=True, slots=True)
class Places:
    """The devices of servers and those of the scorer, which may be the same."""

    servers: Devices
    scorer: Devices


@dataclass(frozen=True, slots=True)
class Bench:
    """What one of several trainings side by side has: its devices, and when it is to give up."""

    devices: Devices
    is_given_up: threading.Event


@dataclass(frozen=True, slots=True)
class Made:
    """What a stage made: its files by their names, what was counted, and the line to log."""

    files: tuple[str, ...]
    metrics: Mapping[str, float]
    line: str


class Device:
    """Owns what runs on the device: servers of one model, a loss scorer, or nothing.

    Other nodes serve the same model (``serving.nodes``), those of a Ray cluster by themselves.
    """

    def __init__(
        self, recipe: Recipe, devices: Devices, run: RunDir, environments: Environments
    ) -> None:
        self.devices = devices
        self._recipe = serving_recipe(recipe)
        if devices.kind == "cuda":  # a server is started as one that can sleep, or cannot
            keep = keep_of(self._recipe, devices)
            self._recipe = self._recipe.changed(serving={"keep": keep})
        self._places = split_devices(recipe, devices)
        self._run = run
        self._environments = environments
        self._running: dict[type[Any], Any] = {}
        self._vacating = threading.Lock()  # trainings side by side all ask for it
        board = board_of(recipe, run.root)
        self._nodes = Nodes(board, recipe, run.root) if board else None
        self._cluster: Cluster | None = None
        if board is not None and recipe.serving.ray is not None:
            self._cluster = Cluster(
                recipe.serving.ray,
                board,
                envs=(environments.vllm, environments.train),
                has_gpus=devices.kind == "cuda",
                log_dir=run.log_dir,
            )

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._nodes is not None:
                stack.enter_context(self._nodes)
            if self._cluster is not None:
                self._cluster.__enter__()
            stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.ExitStack() as stack:
            if self._cluster is not None:
                stack.callback(
                    self._cluster.__exit__, *exc
                )  # the last: nodes hear of the end first
            if self._nodes is not None:
                stack.callback(self._nodes.__exit__, *exc)
            for kind in list(self._running):
                stack.callback(self._stop, kind)

    def vacate(self) -> None:
        """Free the device for a training, as far as ``serving.keep`` wants it free."""
        with self._vacating, contextlib.ExitStack() as stack:
            stack.callback(self._make_room)
            stack.callback(self._stop, LossScorer)

    def others(self) -> Others | None:
        """Return the other nodes that share trainings, None where this one trains alone."""
        n = self._recipe.serving.training_nodes
        if n == 1 or self._nodes is None:
            return None
        return self._nodes.others(n, len(self.devices.gpus))

    def fleets(self, model: ModelRef) -> Fleets:
        """Return ready servers of ``model``: the running ones if they serve it, or can."""
        running = self._running.get(Fleets)
        if running is not None and running.model == model and not running.is_asleep:
            running.call_nodes()
            return cast(Fleets, running)
        check_model(model)
        if self._recipe.search is None and self._keep() != "stay":
            self._stop(LossScorer)
        if running is not None and self._keep() != "restart" and running.take(model):
            return cast(Fleets, running)
        return self._start(Fleets, model, self._places.servers, self._environments.vllm)

    def scorer(self, model: ModelRef) -> LossScorer:
        """Return the scorer of ``model``'s losses, the running one if it is."""
        running = self._running.get(LossScorer)
        if running is not None and running.model == model:
            running.call_nodes()
            return cast(LossScorer, running)
        check_model(model)
        if self._recipe.search is None:
            self._make_room()
        return self._start(LossScorer, model, self._places.scorer, self._environments.train)

    def _start(self, kind: type[T], model: ModelRef, devices: Devices, env: Environment) -> T:
        self._stop(kind)
        tenant = kind(
            model, recipe=self._recipe, devices=devices, env=env, log_dir=self._run.log_dir
        )
        if isinstance(tenant, Fleets) or self._recipe.search is None:  # while trees grow they serve
            tenant.nodes = self._nodes
        tenant.__enter__()
        self._running[kind] = tenant
        return tenant

    def _make_room(self) -> None:
        """Take the device from the servers, unless they stay."""
        fleets = self._running.get(Fleets)
        if fleets is None or fleets.is_asleep or self._keep() == "stay":
            return
        if self._keep() != "sleep" or not fleets.sleep():
            self._stop(Fleets)

    def _keep(self) -> str:
        return keep_of(self._recipe, self.devices)

    def _stop(self, kind: type[Any]) -> None:
        if running := self._running.pop(kind, None):
            running.stop()


def split_devices(recipe: Recipe, devices: Devices) -> Places:
    """Return what servers and what the scorer run on: the same, or the last GPUs for the scorer.

    Raises UsageError when what is left to the servers does not divide into groups, when their ports
    end above 65535, and when they are to sleep and cannot.
    """
    if recipe.serving.keep == "sleep" and devices.kind == "cpu":
        raise UsageError(
            "serving.keep: sleep: servers on a CPU cannot sleep; take auto, reload or stay"
        )
    n_scoring = recipe.search.scorer_gpus if recipe.search else 0
    n_serving, group = len(devices.gpus) - n_scoring, recipe.serving.tensor_parallel
    port, n_servers = recipe.serving.port, _most_servers(recipe, n_serving // group)
    if port is not None and port + n_servers - 1 > MAX_PORT:
        raise UsageError(
            f"serving.port: {port}: {n_servers} servers need as many ports from there, "
            f"which end at {MAX_PORT}; give at most {MAX_PORT + 1 - n_servers}"
        )
    if n_scoring == 0 or devices.kind == "cpu":
        return Places(devices, devices)
    if n_serving < 1 or n_serving % group:
        raise UsageError(
            f"search.scorer_gpus: {n_scoring}: leaves {max(0, n_serving)} of {len(devices.gpus)} "
            f"GPUs to servers of serving.tensor_parallel={group}; lower it or take 0"
        )
    return Places(
        servers=replace(devices, gpus=devices.gpus[:n_serving]),
        scorer=replace(devices, gpus=devices.gpus[n_serving:]),
    )


def _most_servers(recipe: Recipe, n_groups: int) -> int:
    """Return how many servers there are at most: each policy may have its own on every GPU."""
    n_policies = len(set(recipe.agents.policies))
    return n_groups if n_policies <= n_groups else n_policies * max(1, n_groups)


@dataclass(frozen=True)
class RunContext:
    """The run, its task, its models and how they are prompted, and the device.

    A mixture has one for the whole and one for each of its tasks, whose ``recipe`` is that of the
    task and ``member`` its name; of the whole the task and the style are those of the first.
    ``codecs`` are those of the models that play the agents, in order of speaking. ``bench`` is what
    a training has that goes on beside others.
    """

    recipe: Recipe
    run: RunDir
    task: Task
    codecs: tuple[ChatCodec, ...]
    style: PromptStyle
    base: Model
    loss: LossModel
    device: Device
    environments: Environments
    member: str = ""
    bench: Bench | None = None

    def learners_of(self, problem: Problem) -> tuple[Speaker, ...]:
        """Return those speakers of a problem whose words are trained on."""
        speakers = speakers_of(self.style, self.codecs, problem)
        return tuple(speakers[agent] for agent in trained_agents(self.recipe))

    def do(
        self,
        step: Step,
        stage: Callable[Concatenate["RunContext", Stage, P], Made],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stage:
        """Let the function ``stage`` make a step of the plan, unless it is finished already.

        It gets the run, the step's directory, and its inputs, which identify it. Of a mixture's
        task, the step is the one that it has in a run of that task alone (``placed``).
        """
        identity = identify(stage, args, kwargs, self.task.versions)
        name = placed(step.name, self.member)
        out = self.run.stage(name, *identity.inputs, older=identity.older)
        if out.done is None:
            made = stage(self, out, *args, **kwargs)
            done = out.finish([out.path / name for name in made.files], made.metrics)
            self.run.write_metrics()
            logger.info("%s: done in %.0f s, %s", name, done.seconds, made.line)
        return out

    def team(self, model: Model, problems: Sequence[Problem]) -> Team:
        """Return the agents who speak about ``problems``, all played by ``model``."""
        policies = self.recipe.agents.policies
        return Team(model, self.style.told(problems), self.style, self.codecs, policies)

    def members(self) -> tuple["RunContext", ...]:
        """Return what the stages of each task of a mixture share; of any other run, itself."""
        if not self.recipe.tasks:
            return (self,)
        found = []
        for name, recipe in self.recipe.members().items():
            task = get_task(name)
            style = PromptStyle.of(recipe, task)
            found.append(replace(self, recipe=recipe, task=task, style=style, member=name))
        return tuple(found)

    def log_path(self, name: str) -> Path:
        """Log file of a process of this attempt; ``name`` may be a stage's, with slashes."""
        return self.run.log_dir / f"{name.replace('/', '_')}.log"
