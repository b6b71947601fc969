"""What all stages of a run share, and who may use the device at a time.

One GPU (or the CPU) serves models, scores losses and trains in turn: ``Device`` hands it to one
tenant after the other and keeps a tenant as long as nobody else needs the place. Only where trees
grow, which takes rewards while it generates, servers and scorer run side by side.
"""

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from optima.conversation.tokens import ChatCodec
from optima.errors import UsageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.prompts.rendering import PromptStyle
from optima.recipe.schema import Recipe
from optima.reward import needs_losses
from optima.rundir import RunDir
from optima.serving.fleet import Fleet
from optima.serving.scorer import Item, LossScorer
from optima.stages import check_model
from optima.tasks.task import Task
from optima.types import ModelRef

logger = logging.getLogger(__name__)

MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the run: its name in tables, where it is, and a digest of how it was made."""

    label: str
    ref: ModelRef
    digest: str


class Device:
    """Owns what runs on the device: servers of one model, a loss scorer, or nothing."""

    def __init__(
        self, recipe: Recipe, devices: Devices, run: RunDir, environments: tuple[Environment, ...]
    ) -> None:
        self.devices = devices
        self._recipe = serving_recipe(recipe)
        self._places = split_devices(recipe, devices)
        self._run = run
        self._vllm_env, self._train_env = environments
        self._fleet: tuple[ModelRef, Fleet] | None = None
        self._scorer: tuple[ModelRef, LossScorer] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.vacate()

    def vacate(self) -> None:
        """Stop what runs on the device and wait until it is gone."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._stop_scorer)
            self._stop_fleet()

    def fleet(self, model: ModelRef) -> Fleet:
        """Return ready servers of ``model``, the running ones if they serve it already."""
        if self._fleet is not None and self._fleet[0] == model:
            return self._fleet[1]
        check_model(model)
        self._stop_fleet()
        if self._recipe.search is None:
            self._stop_scorer()
        fleet = Fleet(
            model,
            recipe=self._recipe,
            devices=self._places[0],
            env=self._vllm_env,
            log_dir=self._run.log_dir,
        )
        fleet.__enter__()
        self._fleet = (model, fleet)
        return fleet

    def scorer(self, model: ModelRef) -> LossScorer:
        """Return the scorer of ``model``'s losses, the running one if it is."""
        if self._scorer is not None and self._scorer[0] == model:
            return self._scorer[1]
        check_model(model)
        self._stop_scorer()
        if self._recipe.search is None:
            self._stop_fleet()
        scorer = LossScorer(
            model,
            recipe=self._recipe,
            devices=self._places[1],
            env=self._train_env,
            log_dir=self._run.log_dir,
        )
        scorer.__enter__()
        self._scorer = (model, scorer)
        return scorer

    def _stop_fleet(self) -> None:
        running, self._fleet = self._fleet, None
        if running is not None:
            running[1].stop()

    def _stop_scorer(self) -> None:
        running, self._scorer = self._scorer, None
        if running is not None:
            running[1].stop()


def serving_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe by which servers are started: they leave memory to a scorer beside them."""
    search = recipe.search
    if search is None or search.scorer_gpus or not needs_losses(recipe):
        return recipe
    share = min(search.gpu_memory_utilization, recipe.serving.gpu_memory_utilization)
    serving = recipe.serving.model_copy(update={"gpu_memory_utilization": share})
    return recipe.model_copy(update={"serving": serving})


def split_devices(recipe: Recipe, devices: Devices) -> tuple[Devices, Devices]:
    """Return what servers and what the scorer run on: the same, or the last GPUs for the scorer.

    Raises UsageError when what is left to the servers does not divide into groups, and when their
    ports end above 65535.
    """
    n_scoring = recipe.search.scorer_gpus if recipe.search else 0
    n_serving, group = len(devices.gpus) - n_scoring, recipe.serving.tensor_parallel
    port = recipe.serving.port
    if port is not None and port + n_serving // group - 1 > MAX_PORT:
        most = MAX_PORT + 1 - n_serving // group
        raise UsageError(
            f"serving.port: {port}: {n_serving // group} servers need as many ports from there, "
            f"which end at {MAX_PORT}; give at most {most}"
        )
    if n_scoring == 0 or devices.kind == "cpu":
        return devices, devices
    if n_serving < 1 or n_serving % group:
        raise UsageError(
            f"search.scorer_gpus: {n_scoring}: leaves {max(0, n_serving)} of {len(devices.gpus)} "
            f"GPUs to servers of serving.tensor_parallel={group}; lower it or take 0"
        )
    at = n_serving
    return replace(devices, gpus=devices.gpus[:at]), replace(devices, gpus=devices.gpus[at:])


@dataclass(frozen=True)
class RunContext:
    """The run, its task, its models and how they are prompted, and the device.

    ``loss_model`` is the one whose losses give R_loss, ``loss_header`` what its chat template
    writes before an assistant message, ``loss_end`` what it ends one with.
    """

    recipe: Recipe
    run: RunDir
    task: Task
    codec: ChatCodec
    style: PromptStyle
    base: Model
    loss_model: Model
    loss_header: str
    loss_end: str
    device: Device
    train_env: Environment

    def loss_item(self, utterance: str) -> Item:
        """Return what the scorer takes of an utterance without its label: R_loss's header and text.

        The end of turn is part of the text; where nothing was said there is nothing to score.
        """
        text = utterance.strip()
        return self.loss_header, text + self.loss_end if text else ""

    def log_path(self, name: str) -> Path:
        """Log file of a process of this attempt; ``name`` may be a stage's, with slashes."""
        return self.run.log_dir / f"{name.replace('/', '_')}.log"
