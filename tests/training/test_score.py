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


@pytest.mark.e2e
def test_losses_of_rows_equal_a_naive_forward_with_and_without_an_adapter(
    smollm2: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    rows = [tokenizer(HEADER + text, add_special_tokens=False).input_ids for text in TEXTS[:2]]

    def naive(model: object) -> list[list[float]]:
        each = []
        for row in rows:
            ids = torch.tensor([row])
            with torch.no_grad():
                logs = model(ids).logits[0, :-1].log_softmax(-1)  # type: ignore[operator]
            each.append((-logs.gather(1, ids[0, 1:, None])[:, 0]).tolist())
        return each

    plain = naive(model)
    options = {"device": "cpu", "dtype": torch.float32}
    found = score.Scorer(str(smollm2), **options).row_losses(rows)
    assert [len(one) for one in found] == [len(row) - 1 for row in rows]
    for one, expected in zip(found, plain, strict=True):
        assert one == pytest.approx(expected, rel=1e-4, abs=1e-5)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    merged = naive(adapted)
    found = score.Scorer(str(smollm2), adapter=str(tmp_path / "adapter"), **options).row_losses(
        rows
    )
    assert found[0] == pytest.approx(merged[0], rel=1e-3, abs=1e-4)
    assert found[0] != pytest.approx(plain[0], rel=1e-2)
