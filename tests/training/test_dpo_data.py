"""What the trainer of preferences is given: loss, lengths and masks; no model is loaded."""

from pathlib import Path
from typing import Any

from optima.conversation.loading import load_codec
from optima.recipe.schema import DpoSection, TrainSection
from optima.training.jobs import TrainJob
from optima.types import ModelRef
from tests.training.libraries import library
from tests.training.rows import pair_row, write_rows

dpo = library("optima.training.dpo")
parallelism = library("optima.training.jobs")


def _job(smollm2: Path, tmp_path: Path, section: DpoSection, max_length: int = 64) -> TrainJob:
    codec = load_codec(str(smollm2))
    rows = [pair_row(codec, k, " no" * n) for k, n in enumerate((1, 20, 200))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return TrainJob(
        model=ModelRef(path=str(smollm2)), rows_path=str(path), output_dir=str(tmp_path),
        train=TrainSection(max_length=max_length, optimizer_state_dtype="model"), dpo=section,
        seed=1, device="cpu",
    )  # fmt: skip


def _pairs(job: TrainJob) -> Any:
    return dpo.Pairs.read(job.rows_path, job.train.max_length)


def test_pairs_that_fit_are_whole_and_the_others_are_counted(smollm2: Path, tmp_path: Path) -> None:
    everything = _pairs(_job(smollm2, tmp_path, DpoSection(), max_length=4096))
    fitting = _pairs(_job(smollm2, tmp_path, DpoSection()))
    assert (len(everything.rows), everything.n_dropped) == (3, 0)
    assert fitting.n_dropped == 1
    assert fitting.rows == everything.rows[:2]  # none is cut
    assert fitting.n_tokens == sum(
        2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in fitting.rows
    )


def test_batch_carries_loss_on_the_utterances_alone(smollm2: Path, tmp_path: Path) -> None:
    pairs = _pairs(_job(smollm2, tmp_path, DpoSection()))
    collator = dpo.DataCollatorForPreference(pad_token_id=2)  # the stop token of this model
    batch = collator(list(pairs.dataset()))
    ids, mask = batch["input_ids"].tolist(), batch["completion_mask"].tolist()
    n = len(pairs.rows)
    for i, pair in enumerate(pairs.rows):
        for row, utterance in ((i, pair.chosen_ids), (n + i, pair.rejected_ids)):
            trained = [t for t, m in zip(ids[row], mask[row], strict=True) if m]
            assert tuple(trained) == utterance  # the stop token at its end is no padding
            n_prompt = len(pair.prompt_ids)
            assert tuple(ids[row][:n_prompt]) == pair.prompt_ids
            assert not any(mask[row][:n_prompt])


def test_configuration_is_plain_dpo_with_the_recipes_beta(smollm2: Path, tmp_path: Path) -> None:
    # The likelihood of the chosen is added by our own loss: see test_losses.
    job = _job(smollm2, tmp_path, DpoSection(nll_weight=0.5, beta=0.3))
    plan = parallelism.plan_batches(4, 2, 1)
    config = dpo.trainer_config(job, plan, 3, False)
    assert config.loss_type == ["sigmoid"]
    assert config.loss_weights is None
    assert config.beta == 0.3
    assert config.max_length is None  # the library cuts nothing
    assert config.precompute_ref_log_probs
    assert config.optim == "adamw_torch"
