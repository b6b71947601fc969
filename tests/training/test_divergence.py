"""Trainings that go bad: what notices it, and (e2e) that nothing of a lost model is left."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optima.conversation.loading import load_codec
from optima.errors import StageError
from optima.processes.devices import Devices
from optima.processes.environment import resolve_environment
from optima.recipe.schema import DpoSection, LoraSection, TrainSection
from optima.training.jobs import TrainJob, TrainResult
from optima.training.launch import run_training
from optima.types import ModelRef
from tests.templates import CHATML
from tests.tokenizers import tiny_tokenizer, write_tokenizer
from tests.training.libraries import library
from tests.training.rows import pair_row, training_row, write_rows

torch = library("torch")
policy = library("optima.training.policy")
session = library("optima.training.session")


def _log(watch: Any, history: list[dict[str, float]], step: int) -> None:
    """Tell ``watch`` of the last entry, as the trainer does once it stands in the history."""
    state = SimpleNamespace(global_step=step, log_history=history)
    watch.on_log(None, state, None, logs=history[-1])


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figure_that_is_no_finite_number_ends_the_training_with_its_step(
    name: str, value: float
) -> None:
    watch = session.Watch(10.0)
    _log(watch, [{"loss": 2.0, "grad_norm": 1.0}], 1)
    with pytest.raises(policy.DivergenceError, match=f"{name} of step 7 is {value}"):
        _log(watch, [{"loss": 2.0}, {name: value}], 7)


@pytest.mark.parametrize(("name", "step"), [("eval_loss", 0), ("loss", 1)])
def test_loss_that_is_no_number_from_the_start_is_the_start_models(name: str, step: int) -> None:
    with pytest.raises(StageError, match="before anything was trained: check the weights") as got:
        _log(session.Watch(10.0), [{name: math.nan}], step)
    assert not isinstance(got.value, policy.DivergenceError)


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_loss_that_explodes_ends_the_training(name: str) -> None:
    watch = session.Watch(4.0)
    _log(watch, [{name: 2.0}, {name: 8.0}], 2)  # four times the start, not more
    with pytest.raises(policy.DivergenceError, match=f"{name} of step 3 is 8.1 after 2 at the"):
        _log(watch, [{name: 2.0}, {name: 8.0}, {name: 8.1}], 3)
    # A loss near zero may grow many times: what counts is at least one nat.
    _log(watch, [{name: 0.01}, {name: 4.0}], 2)
    with pytest.raises(policy.DivergenceError):
        _log(watch, [{name: 0.01}, {name: 4.1}], 2)


def test_weights_that_are_no_numbers_are_named() -> None:
    good, bad = torch.ones(2, dtype=torch.bfloat16), torch.tensor([1.0, math.inf])
    policy.check_weights({"a": good, "ids": torch.ones(2, dtype=torch.int64)})
    with pytest.raises(policy.DivergenceError, match=r"weight b\.c is not finite"):
        policy.check_weights({"a": good, "b.c": bad})


# Decay by (1 - learning_rate * weight_decay) = -9 a step: weights leave float32 within 42 steps.
LOSING: dict[str, object] = {
    "learning_rate": 1.0, "weight_decay": 10.0, "scheduler": "constant", "epochs": 12.5,
}  # fmt: skip


def _model(directory: Path, *, poison: str | None = None) -> Path:
    """Write a model of random weights; those of the parameter ``poison`` are no numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny_tokenizer().get_vocab_size(), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if poison is not None:
        model.get_parameter(poison).data.fill_(math.nan)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(CHATML)
    return directory


def _job(model: Path, tmp_path: Path, kind: str, **train: object) -> TrainJob:
    codec = load_codec(str(model))
    make = training_row if kind == "sft" else pair_row
    rows = write_rows(tmp_path / "rows.jsonl", [make(codec, k) for k in range(8)])  # type: ignore[arg-type]
    section = {
        "epochs": 2.0, "batch_size": 2, "micro_batch_size": 2, "gradient_checkpointing": False,
        "max_length": 256, "batching": "plain", "dtype": "float32", "save_steps": 1,
        "warmup_ratio": 0.0, **train,
    }  # fmt: skip
    return TrainJob(
        model=ModelRef(path=str(model)), rows_path=str(rows), output_dir=str(tmp_path / "out"),
        train=TrainSection.model_validate(section), seed=1, device="cpu",
        dpo=DpoSection() if kind == "dpo" else None,
    )  # fmt: skip


def _train(job: TrainJob, tmp_path: Path) -> TrainResult:
    return run_training(
        job,
        env=resolve_environment(None, "train"),
        devices=Devices("cpu"),
        log_path=tmp_path / "train.log",
    )


def _assert_nothing_is_left(tmp_path: Path) -> None:
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"job.json", "accelerate.json", "inputs.sha256", "progress.json"}


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_training_that_loses_the_model_fails_with_step_and_remedy_and_leaves_nothing(
    tmp_path: Path, kind: str
) -> None:
    # Logged at the first step and at the last, when checkpoints of lost weights were saved.
    model = _model(tmp_path / "model")
    job = _job(model, tmp_path, kind, **LOSING, logging_steps=50, save_steps=20)
    remedy = "lower learning_rate of " + ("train" if kind == "sft" else "dpo")
    with pytest.raises(StageError, match=rf"loss of step 50 is nan; .*{remedy}") as caught:
        _train(job, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    _assert_nothing_is_left(tmp_path)  # so the next attempt starts over
    healed = job.model_copy(update={"train": job.train.model_copy(update={"learning_rate": 1e-4})})
    assert Path(_train(healed, tmp_path).model.path, "model.safetensors").is_file()


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_start_model_of_weights_that_are_no_numbers_is_named(tmp_path: Path, kind: str) -> None:
    model = _model(tmp_path / "model", poison="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(StageError, match=r"of step 1 is nan, before anything was trained: check"):
        _train(_job(model, tmp_path, kind), tmp_path)
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_training_whose_loss_explodes_fails_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    model = _model(tmp_path / "model")
    job = _job(model, tmp_path, kind, learning_rate=1.0, max_loss_growth=2.0)
    with pytest.raises(StageError, match=r"more than train\.max_loss_growth=2 allows; the model"):
        _train(job, tmp_path)
    _assert_nothing_is_left(tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("lora", [None, LoraSection()])
def test_weights_that_no_log_told_of_are_not_written(
    tmp_path: Path, lora: LoraSection | None
) -> None:
    # Logged at the first step only, whose loss is computed before the weights are lost.
    model = _model(tmp_path / "model")
    job = _job(model, tmp_path, "sft", **LOSING, logging_steps=100, save_steps=100, lora=lora)
    with pytest.raises(StageError, match=r"weight .* is not finite at the end; the model would"):
        _train(job, tmp_path)
    _assert_nothing_is_left(tmp_path)


def _more_than_there_is(_: TrainJob) -> TrainResult:
    torch.empty(2**50)
    raise AssertionError


def _more_than_the_gpu_has(_: TrainJob) -> TrainResult:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 266.00 MiB. GPU 0 has a total capacity of 140 GiB."
    )


@pytest.mark.parametrize(
    ("run", "kind", "line"),
    [
        (
            _more_than_there_is,
            "sft",
            r"error: training: out of memory \(for 4503599627370496 bytes\); end what else uses "
            r"it, or lower train\.micro_batch_size \(it is 2\), or take "
            r"train\.gradient_checkpointing=true, or take train\.lora={}, or lower "
            r"train\.max_length \(it is 256\)",
        ),
        (
            _more_than_the_gpu_has,
            "dpo",
            r"error: training: out of memory \(for 266\.00 MiB\); .* dpo\.micro_batch_size \(.*",
        ),
    ],
)
def test_training_without_the_memory_says_what_makes_a_step_smaller(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
    kind: str,
    line: str,
) -> None:
    for patch in ("avoid_cudnn_attention", "score_trained_positions_only"):  # of a whole process
        monkeypatch.setattr(f"optima.training.session.{patch}", lambda: None)
    job = _job(_model(tmp_path / "model"), tmp_path, kind)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    assert session.run_job(run, ["--job", str(path)]) == 1
    assert re.fullmatch(line, capfd.readouterr().out.splitlines()[-1])
