"""What of a recipe reaches the trainers of the library."""

from typing import Any

import pytest

from optima.recipe.schema import TrainSection
from optima.training.jobs import BatchPlan, TrainJob
from optima.types import ModelRef


def options(**train: object) -> dict[str, Any]:
    arguments = pytest.importorskip("optima.training.session")
    job = TrainJob(
        model=ModelRef(path="m"), rows_path="r", output_dir="/o", device="cpu", seed=1,
        train=TrainSection.model_validate(train),
    )  # fmt: skip
    found: dict[str, Any] = arguments.trainer_arguments(job, BatchPlan(2, 4), 80, has_eval=True)
    return found


def test_trackers_are_those_of_the_recipe_and_none_by_default() -> None:
    assert options()["report_to"] == "none"
    assert options(report_to=("wandb", "mlflow"))["report_to"] == ["wandb", "mlflow"]


def test_checkpoints_come_at_the_asked_interval_with_a_limit() -> None:
    by_step = options(save_steps=7, save_total_limit=3)
    assert (by_step["save_strategy"], by_step["save_steps"]) == ("steps", 7)
    assert by_step["save_total_limit"] == 3
    assert options()["save_strategy"] == "no"  # then by the clock, session.Teller


def test_rows_per_step_and_number_format_are_those_of_plan_and_recipe() -> None:
    found = options(dtype="float32", optimizer_state_dtype="float32", learning_rate=3e-6)
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 8
    assert not found["bf16"]
    assert options()["bf16"]  # bfloat16 over float32 masters
    assert not options(optimizer_state_dtype="model")["bf16"]
    assert found["learning_rate"] == 3e-6
    assert found["max_length"] is None  # rows come tokenised and are never cut


def test_warm_up_is_the_share_of_the_steps_as_written() -> None:
    # 80 rows, 2 a forward, 4 forwards a step: 10 steps an epoch; 0.29 of 100 steps is 29.
    assert options(epochs=10.0, warmup_ratio=0.29)["warmup_steps"] == 29
    assert options(epochs=1.0)["warmup_steps"] == 1
