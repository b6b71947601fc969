"""What all stages of a run share, and who may use the device at a time.

One GPU (or the CPU) serves models, scores losses and trains in turn: ``Device`` hands it to one
tenant after the other and keeps a tenant as long as nobody else needs the place.
"""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from optima.conversation.template import ChatTemplate
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.rundir import RunDir
from optima.serving.fleet import Fleet
from optima.serving.scorer import LossScorer
from optima.tasks.task import Task
from optima.types import ModelRef

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the run: its name in tables, where it is, and a digest of how it was made."""

    label: str
    ref: ModelRef
    digest: str


class Device:
    """Owns whatever runs on the device now: a fleet of servers, a loss scorer, or nothing."""

    def __init__(
        self, recipe: Recipe, devices: Devices, run: RunDir, environments: tuple[Environment, ...]
    ) -> None:
        self.devices = devices
        self._recipe = recipe
        self._run = run
        self._vllm_env, self._train_env = environments
        self._tenant: Fleet | LossScorer | None = None
        self._model: ModelRef | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.vacate()

    def vacate(self) -> None:
        """Stop what runs on the device and wait until it is gone."""
        self._tenant, self._model = None, None
        stack, self._stack = self._stack, contextlib.ExitStack()
        stack.close()

    def fleet(self, model: ModelRef) -> Fleet:
        """Return ready servers of ``model``, the running ones if they serve it already."""
        if isinstance(self._tenant, Fleet) and self._model == model:
            return self._tenant
        self.vacate()
        fleet = Fleet(
            model,
            recipe=self._recipe,
            devices=self.devices,
            env=self._vllm_env,
            log_dir=self._run.log_dir,
        )
        self._stack.enter_context(fleet)
        self._tenant, self._model = fleet, model
        return fleet

    def scorer(self, model: ModelRef) -> LossScorer:
        """Return the scorer of ``model``'s losses, the running one if it is."""
        if isinstance(self._tenant, LossScorer) and self._model == model:
            return self._tenant
        self.vacate()
        scorer = LossScorer(
            model,
            recipe=self._recipe,
            devices=self.devices,
            env=self._train_env,
            log_dir=self._run.log_dir,
        )
        self._stack.enter_context(scorer)
        self._tenant, self._model = scorer, model
        return scorer


@dataclass(frozen=True)
class RunContext:
    """The run, its task and template, and the device."""

    recipe: Recipe
    run: RunDir
    task: Task
    template: ChatTemplate
    base: Model
    device: Device
    train_env: Environment

    def log_path(self, name: str) -> Path:
        """Log file of a process of this attempt; ``name`` may be a stage's, with slashes."""
        return self.run.log_dir / f"{name.replace('/', '_')}.log"
