"""The scoring worker against a naive forward of the same model, one text at a time."""

from pathlib import Path

import pytest

from tests.training.libraries import library

torch = library("torch")
transformers = library("transformers")
score = library("optima.training.score")

HEADER = "<|im_start|>assistant\n"
TEXTS = ("Alice: The lamp is in Århus. 🙂", "Bob: <A>Oslo</A>", "x", "Alice: yes " * 30)


@pytest.mark.e2e
@pytest.mark.parametrize("batch_tokens", [16, 300, 16384])
def test_worker_equals_a_naive_forward(smollm2: Path, batch_tokens: int) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    expected = []
    n_header = len(tokenizer(HEADER, add_special_tokens=False).input_ids)
    for text in TEXTS:
        ids = tokenizer(HEADER + text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        each = -logs.gather(1, ids[0, 1:, None])[:, 0]
        expected.append(float(each[n_header - 1 :].mean()))
    scorer = score.Scorer(str(smollm2), device="cpu", dtype=torch.float32)
    items = [(HEADER, text) for text in TEXTS] + [(HEADER, "")]
    losses = scorer.losses(items, batch_tokens)
    assert losses[-1] is None
    assert losses[:-1] == pytest.approx(expected, rel=1e-4)
