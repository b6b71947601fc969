"""Supervised fine-tuning of one iteration, run inside the training environment (docs/method.md).

``accelerate launch … -m optima.training.sft --job job.json``. Rows are the token ids of generation
with the spans that carry loss, so that no template, tokenizer or mask of the library takes part.
Rows over ``train.max_length`` are counted and dropped, never cut. A training that was killed
continues from its last complete checkpoint.
"""

import sys
from dataclasses import dataclass

from accelerate import PartialState
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from optima.training import session
from optima.training.jobs import BatchPlan, TrainJob, TrainResult, plan_batches
from optima.training.policy import (
    load_tokenizer,
    pad_of,
    prepare_model,
    read_format,
    training_dtype,
)
from optima.training.session import run_job, train_and_save, trainer_arguments
from optima.types import TrainingRow

IGNORED = -100


@dataclass(frozen=True)
class Rows(session.Rows[TrainingRow]):
    """Rows of conversations."""

    kind = TrainingRow

    @staticmethod
    def size_of(row: TrainingRow) -> session.Size:
        """Return its tokens; the first has nothing before it and is never trained."""
        n = len(row.input_ids)
        return session.Size(n, n, sum(stop - max(1, start) for start, stop in row.trained))

    def dataset(self) -> Dataset:
        """Return the columns that the trainer takes as they are."""
        return Dataset.from_dict(
            {
                "input_ids": [list(row.input_ids) for row in self.rows],
                "labels": [labels(row) for row in self.rows],
            }
        )


def labels(row: TrainingRow) -> list[int]:
    """Return the token ids, -100 where no loss is taken."""
    found = [IGNORED] * len(row.input_ids)
    for start, stop in row.trained:
        found[start:stop] = row.input_ids[start:stop]
    return found


def prepare_data(job: TrainJob, rows: Rows) -> tuple[Dataset, BatchPlan]:
    """Return the training set, packed if asked for, and how a step is split.

    ``batch_size`` counts conversations' rows also when rows are packed: a step then takes the
    number of packs that holds as many on average.
    """
    data, train, world = rows.dataset(), job.train, PartialState().num_processes
    batch, micro = train.batch_size, train.micro_batch_size
    if train.batching == "packing":
        packed = pack_dataset(data, train.max_length, "bfd")
        per_pack = len(data) / len(packed)
        batch = max(1, round(batch / per_pack / world)) * world
        micro, data = max(1, round(micro / per_pack)), packed
    return data, plan_batches(batch, micro, world)


def trainer_config(job: TrainJob, plan: BatchPlan, n_rows: int, has_eval: bool) -> SFTConfig:
    """Return the trainer's configuration; rows come prepared and are never cut."""
    options = trainer_arguments(job, plan, n_rows, has_eval)
    options["dataset_kwargs"] = {"skip_prepare_dataset": True}
    if job.train.batching == "length_grouped":
        if "train_sampling_strategy" in SFTConfig.__dataclass_fields__:
            options["train_sampling_strategy"] = "group_by_length"
        else:
            options["group_by_length"] = True
    return SFTConfig(**options)


def run(job: TrainJob) -> TrainResult:
    """Train and write the model; the result is returned, not written."""
    tokenizer = load_tokenizer(job)
    rows, eval_rows = Rows.of(job)
    kept = read_format(job)
    data, plan = prepare_data(job, rows)
    # Made before the model is loaded: under ZeRO-3 it tells the loader to split the weights.
    arguments = trainer_config(job, plan, len(data), bool(eval_rows.rows))
    trainer = SFTTrainer(
        model=prepare_model(job, training_dtype(job.train)),
        args=arguments,
        train_dataset=data,
        eval_dataset=eval_rows.dataset() if eval_rows.rows else None,
        processing_class=tokenizer,
        # It pads by length, not by comparing ids, so a pad that equals the stop token is safe.
        data_collator=DataCollatorForLanguageModeling(
            pad_token_id=pad_of(tokenizer), padding_free=job.train.batching == "packing"
        ),
    )
    return train_and_save(trainer, job, rows, eval_rows, kept, rows.rows[0].input_ids)


if __name__ == "__main__":
    sys.exit(run_job(run))
