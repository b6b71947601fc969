"""Checkpoints of a training by the clock, by the real trainer on a model of a few numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from optima.training import session


class Line(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """y = a x, with the loss that the trainer asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.a * x - labels) ** 2).mean()}


def _train(tmp_path: Path, *, by_time: bool) -> list[str]:
    """Train 6 steps in two epochs and return the checkpoints that are marked as complete."""
    rows: Any = [{"x": torch.tensor(1.0), "labels": torch.tensor(2.0)} for _ in range(6)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_train_epochs=2, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=Line(), args=arguments, train_dataset=rows)
    trainer.add_callback(session.Teller(tmp_path / "progress.json", 12, 0.0, by_time=by_time))
    trainer.train()
    assert trainer.state.global_step == 6
    return sorted(path.parent.name for path in tmp_path.glob("checkpoint-*/COMPLETE"))


def test_training_shorter_than_the_interval_writes_no_checkpoint(tmp_path: Path) -> None:
    assert _train(tmp_path, by_time=True) == []


def test_checkpoint_is_written_when_the_interval_is_over_but_not_before_the_model_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CHECKPOINT_EVERY_S", 0.0)
    assert _train(tmp_path, by_time=True) == [f"checkpoint-{step}" for step in range(1, 6)]
    newest = session.last_checkpoint(tmp_path)
    assert newest == str(tmp_path / "checkpoint-5")


def test_interval_counts_from_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 5))  # the clock is read once or twice a step
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(session, "time", clock)
    monkeypatch.setattr(session, "CHECKPOINT_EVERY_S", 12.0)
    assert len(_train(tmp_path, by_time=True)) == 2


def test_recipe_that_counts_steps_is_left_to_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CHECKPOINT_EVERY_S", 0.0)
    assert _train(tmp_path, by_time=False) == []
