"""Preference training of one iteration, run inside the training environment (docs/method.md).

``accelerate launch … -m optima.training.dpo --job job.json``. The loss is DPO, with
``dpo.nll_weight`` = alpha > 0 it is RPO (paper Eq. 4):

    L = -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)) + alpha * NLL(chosen)

whose ratios are against the model the training starts from. The negative log-likelihood of a pair
is divided by that pair's own tokens, and the loss of a step is the mean over its pairs, however
they are split over forwards and processes. Pairs are the token ids of generation, so that no
template or tokenizer takes part; a pair with more than ``dpo.max_length`` tokens on either side is
counted and dropped, never cut.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from optima.training import session
from optima.training.jobs import CHECKPOINTS_DIR, BatchPlan, TrainJob, TrainResult, plan_batches
from optima.training.policy import (
    load_start,
    load_tokenizer,
    pad_of,
    prepare_model,
    read_format,
    training_dtype,
)
from optima.training.session import run_job, train_and_save, trainer_arguments
from optima.types import PreferenceRow


@dataclass(frozen=True)
class Pairs(session.Rows[PreferenceRow]):
    """Pairs of utterances after one prompt."""

    kind = PreferenceRow
    noun, limit, threshold = "pair", "dpo.max_length", "pairs.theta_diff"

    @staticmethod
    def size_of(row: PreferenceRow) -> session.Size:
        """Return its tokens: those of two rows, of which the utterances alone carry loss."""
        prompt, sides = len(row.prompt_ids), (len(row.chosen_ids), len(row.rejected_ids))
        return session.Size(prompt + max(sides), 2 * prompt + sum(sides), sum(sides))

    def dataset(self) -> Dataset:
        """Return the columns that the trainer takes as they are."""
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return Dataset.from_dict({n: [list(getattr(pair, n)) for pair in self.rows] for n in names})


class PairTrainer(DPOTrainer):
    """The library's trainer on pairs that are token ids already, with a loss of its own for Eq. 4.

    The library's likelihood is one mean over the tokens of a forward, and its step one over
    forwards: both would make the result depend on how a batch is split.
    """

    nll_weight = 0.0
    _n_pairs_of_step = 0

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        """Count the pairs of a step, over all processes; each is two rows of its batch."""
        batches, n_items = super().get_batch_samples(*args)
        n_rows = torch.tensor(sum(len(b["input_ids"]) for b in batches), device=self.args.device)
        self._n_pairs_of_step = int(self.accelerator.gather(n_rows).sum()) // 2
        return batches, n_items

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        outputs = []

        def forward(**kwargs: Any) -> Any:
            outputs.append(model(**kwargs))
            return outputs[-1]

        loss = super()._compute_loss(forward, inputs, return_outputs)
        if self.nll_weight > 0:
            n_tokens = inputs["completion_mask"][:, 1:].sum(1)
            likelihoods = outputs[0].log_probs.sum(1) / n_tokens  # 0 outside of the utterance
            loss = loss - self.nll_weight * likelihoods.chunk(2)[0].mean()
        if self.model.training:
            # The trainer divides by the forwards of the step and averages over the processes.
            n_forwards = self.current_gradient_accumulation_steps * self.args.world_size
            loss = loss * (len(inputs["input_ids"]) // 2 * n_forwards / self._n_pairs_of_step)
        return loss


def on_disk(dataset: Dataset, directory: Path) -> Dataset:
    """Return the dataset as a file that all processes read.

    The library keeps the reference's log-probabilities in a file beside it, which the first process
    writes and the others read; of a dataset in memory each looks for it in a folder of its own.
    """
    if PartialState().is_main_process:
        dataset.save_to_disk(str(directory))
    PartialState().wait_for_everyone()
    return Dataset.load_from_disk(str(directory))


def trainer_config(job: TrainJob, plan: BatchPlan, n_rows: int, has_eval: bool) -> DPOConfig:
    """Return the trainer's configuration; pairs come prepared and are never cut."""
    options = trainer_arguments(job, plan, n_rows, has_eval)
    assert job.dpo is not None
    options["beta"] = job.dpo.beta
    options["precompute_ref_log_probs"] = job.dpo.reference == "precomputed"
    return DPOConfig(**options)


def run(job: TrainJob) -> TrainResult:
    """Train and write the model; the result is returned, not written."""
    tokenizer = load_tokenizer(job)
    pairs, eval_pairs = Pairs.of(job)
    kept, dtype = read_format(job), training_dtype(job.train)
    world = PartialState().num_processes
    train = job.train
    plan = plan_batches(train.batch_size, train.micro_batch_size, world, "dpo.batch_size")
    # Made before the model is loaded: under ZeRO-3 it tells the loader to split the weights.
    arguments = trainer_config(job, plan, len(pairs.rows), bool(eval_pairs.rows))
    # An adapter is its own reference when it is switched off; otherwise the library would load
    # a second model by the name in the config, which for a merged adapter is another model. Under
    # FSDP the policy is on no GPU yet when reference log-probabilities are computed ahead.
    assert job.dpo is not None
    is_ahead = job.dpo.reference == "precomputed"
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    needs_reference = is_fsdp if is_ahead else job.train.lora is None
    place = Path(job.output_dir) / CHECKPOINTS_DIR
    trainer = PairTrainer(
        model=prepare_model(job, dtype),
        ref_model=load_start(job, dtype) if needs_reference else None,
        args=arguments,
        train_dataset=on_disk(pairs.dataset(), place / "pairs"),
        eval_dataset=on_disk(eval_pairs.dataset(), place / "eval_pairs")
        if eval_pairs.rows
        else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForPreference(pad_token_id=pad_of(tokenizer)),
    )
    trainer.nll_weight = job.dpo.nll_weight
    if is_ahead:
        trainer.ref_model = None  # its memory is the training's
    first = pairs.rows[0]
    return train_and_save(
        trainer, job, pairs, eval_pairs, kept, first.prompt_ids + first.chosen_ids
    )


if __name__ == "__main__":
    sys.exit(run_job(run))
