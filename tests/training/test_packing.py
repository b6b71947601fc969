"""Packed rows must not see each other: their losses are those of the rows one by one."""

from pathlib import Path

import pytest

from tests.training.libraries import library

torch = library("torch")
transformers = library("transformers")
trl = library("trl.trainer.sft_trainer")
data_utils = library("trl.data_utils")
datasets = library("datasets")

TEXTS = ("Alice: The lamp is in Oslo, I think.", "Bob: No. It is in Riga.", "Alice: Riga, then.")


@pytest.mark.e2e
def test_losses_of_packed_rows_are_those_of_single_rows(smollm2: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    rows = [tokenizer(text).input_ids for text in TEXTS]
    packed = data_utils.pack_dataset(
        datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}), 64, "bfd"
    )
    assert len(packed) == 1
    collator = trl.DataCollatorForLanguageModeling(pad_token_id=2, padding_free=True)
    single = total = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            single += float(model(ids, labels=ids).loss) * (len(row) - 1)
            total += len(row) - 1
        together = float(model(**collator([packed[0]]), use_cache=False).loss)
    assert together == pytest.approx(single / total, rel=1e-4)
