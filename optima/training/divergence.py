"""Noticing that a training has lost its model, before anything of that model is written."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from optima.errors import StageError

_WATCHED = ("loss", "grad_norm", "eval_loss")
LEAST_LOSS = 1.0  # nats: a loss near zero may grow many times before anything is lost


class DivergenceError(StageError):
    """The training has lost the model, and with it what its checkpoints hold."""


class Watch(TrainerCallback):
    """Ends a training whose loss or gradient is no finite number, or whose loss explodes.

    Every process is told every logged figure, so that all of them end.
    """

    def __init__(self, max_growth: float) -> None:
        self._max_growth = max_growth

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Raise DivergenceError for figures of a lost model, StageError if it came like that."""
        step, figures = state.global_step, logs or {}
        for name in _WATCHED:
            value = float(figures.get(name, 0.0))
            if math.isfinite(value):
                continue
            if step == 0 or (
                step == 1 and name == "loss"
            ):  # computed from the weights as they came
                raise StageError(
                    f"training: {name} of step {step} is {value}, before anything was trained: "
                    "check the weights of the model it starts from, or train in "
                    "train.dtype=float32"
                )
            raise DivergenceError(f"training: {name} of step {step} is {value}")
        for name in ("loss", "eval_loss"):
            if name not in figures:
                continue
            start = float(next(entry[name] for entry in state.log_history if name in entry))
            if figures[name] > self._max_growth * max(start, LEAST_LOSS):
                raise DivergenceError(
                    f"training: {name} of step {step} is {figures[name]:.4g} after {start:.4g} at "
                    f"the start, more than train.max_loss_growth={self._max_growth:g} allows"
                )


def check_weights(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise DivergenceError when a weight that is about to be written is no finite number."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise DivergenceError(f"training: weight {name} is not finite at the end")
