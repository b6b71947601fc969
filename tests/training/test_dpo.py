"""Real preference trainings of the 135M model on the CPU (e2e)."""

import math
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.errors import StageError
from optima.processes.devices import Devices
from optima.processes.environment import resolve_environment
from optima.recipe.schema import DpoSection, LoraSection, TrainSection
from optima.records import read_records
from optima.training.jobs import TrainJob, TrainResult
from optima.training.launch import run_training
from optima.types import ModelRef, PreferenceRow
from tests.training.rows import pair_row, write_rows

pytestmark = pytest.mark.e2e


def _job(model: ModelRef, tmp_path: Path, dpo: DpoSection, **train: object) -> TrainJob:
    options: dict[str, object] = {
        "learning_rate": 2e-5,
        "epochs": 2.0,
        "batch_size": 4,
        "micro_batch_size": 4,
        "gradient_checkpointing": False,
        "max_length": 128,
        **train,
    }
    codec = load_codec(model.path)
    rows = [pair_row(codec, k) for k in range(12)]
    return TrainJob(
        model=model,
        rows_path=str(write_rows(tmp_path / "rows.jsonl", rows)),
        eval_rows_path=str(write_rows(tmp_path / "eval.jsonl", rows[:2])),
        output_dir=str(tmp_path / "out"),
        train=TrainSection.model_validate(options),
        dpo=dpo,
        seed=5,
        device="cpu",
    )


def _train(model: ModelRef, tmp_path: Path, dpo: DpoSection, **train: object) -> TrainResult:
    return run_training(
        _job(model, tmp_path, dpo, **train),
        env=resolve_environment(None, "train"),
        devices=Devices("cpu"),
        log_path=tmp_path / "train.log",
    )


@pytest.mark.parametrize(("reference", "weight"), [("precomputed", 0.0), ("live", 2.0)])
def test_dpo_starts_at_its_own_reference_and_learns_to_prefer(
    smollm2: Path, tmp_path: Path, reference: str, weight: float
) -> None:
    dpo = DpoSection.model_validate({"nll_weight": weight, "reference": reference, "beta": 0.5})
    result = _train(ModelRef(path=str(smollm2)), tmp_path, dpo)
    assert (result.n_rows, result.n_eval_rows, result.n_dropped_rows) == (12, 2, 0)
    assert result.n_steps == 6
    # While policy and reference are one model both ratios are 0: that part is -log sigmoid(0).
    # The negative log-likelihood of the chosen comes to it with its weight.
    likelihood = _negative_log_likelihood(smollm2, tmp_path / "eval.jsonl")
    assert likelihood > 0.5  # nats per token of a text that the model never saw
    expected = math.log(2) + weight * likelihood
    assert result.eval_loss_before is not None
    assert result.eval_loss_before == pytest.approx(expected, abs=0.02, rel=0.02)
    assert result.eval_loss is not None
    likelihood = _negative_log_likelihood(Path(result.model.path), tmp_path / "eval.jsonl")
    assert result.eval_loss - weight * likelihood < 0.3
    assert result.figures["rewards/margins"] > 1
    saved = Path(result.model.path)
    assert (saved / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()
    assert (saved / "model.safetensors").stat().st_size < 300e6


def _negative_log_likelihood(model_path: Path, rows_path: Path) -> float:
    """Return the mean over pairs of each chosen utterance's mean per token, by plain forwards."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    means = []
    for pair in read_records(rows_path, PreferenceRow):
        ids = torch.tensor([pair.prompt_ids + pair.chosen_ids])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        each = -logs.gather(1, ids[0, 1:, None])[:, 0]
        means.append(float(each[len(pair.prompt_ids) - 1 :].mean()))
    return sum(means) / len(means)


def test_served_adapter_goes_on_being_trained_against_a_copy_of_itself(
    smollm2: Path, tmp_path: Path
) -> None:
    lora = LoraSection.model_validate({"serve": "adapter"})
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    dpo = DpoSection(nll_weight=0.0, beta=0.5)
    start = ModelRef(path=str(smollm2))
    first = _train(start, tmp_path / "first", dpo, lora=lora, learning_rate=1e-3)
    assert first.model.adapter is not None
    assert first.eval_loss is not None
    assert first.eval_loss < 0.3
    second = _train(first.model, tmp_path / "second", dpo, lora=lora, epochs=0.1)
    assert second.eval_loss_before == pytest.approx(math.log(2), abs=0.02)
    assert second.model.adapter is not None
    files = {path.name for path in Path(second.model.adapter).iterdir()}
    assert "adapter_model.safetensors" in files
    assert "ref" not in files  # the copy that training refers to is no part of the model


def test_pairs_that_are_too_long_are_counted_and_no_pairs_are_an_error(
    smollm2: Path, tmp_path: Path
) -> None:
    training = pytest.importorskip("optima.training.dpo")
    # How such an error leaves the process is the same for all trainings: see test_sft.
    job = _job(ModelRef(path=str(smollm2)), tmp_path, DpoSection(), max_length=16)
    with pytest.raises(StageError, match=r"no pair to train on \(12 are longer"):
        training.run(job)
