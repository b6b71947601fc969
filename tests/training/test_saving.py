"""Weights that are no finite numbers are not written: the three checks of ``policy.save``."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optima.recipe.schema import LoraSection, TrainSection
from optima.training.jobs import TrainJob
from optima.types import ModelRef
from tests.tokenizers import write_tokenizer
from tests.training.libraries import library

torch = library("torch")
transformers = library("transformers")
accelerate = library("accelerate")
peft = library("peft")
policy = library("optima.training.policy")

ADAPTED = "base_model.model.model.layers.0.self_attn.q_proj"


def _start(directory: Path) -> Any:
    """Write a tiny model in float16 and return it as it is trained, in float32."""
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.float16).save_pretrained(directory)
    write_tokenizer(directory)
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _save(model: Any, tmp_path: Path, lora: LoraSection | None = None) -> ModelRef:
    """Save a trained model as the end of a training does."""
    accelerate.PartialState(cpu=True)
    trainer = SimpleNamespace(accelerator=accelerate.Accelerator(cpu=True), model_wrapped=model)
    job = TrainJob(
        model=ModelRef(path=str(tmp_path / "start")), rows_path="", seed=0, device="cpu",
        output_dir=str(tmp_path), train=TrainSection(dtype="float32", lora=lora),
    )  # fmt: skip
    ref: ModelRef = policy.save(trainer, job, policy.read_format(job), (1, 2, 3))
    return ref


def _adapted(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))


def _refused(name: str) -> Any:
    line = f"^training: weight {name} is not finite at the end$"
    return pytest.raises(policy.DivergenceError, match=line)


def test_weight_beyond_the_number_format_that_is_written_is_refused(tmp_path: Path) -> None:
    model = _start(tmp_path / "start")
    unused = model.model.embed_tokens.weight.data[15]  # of a token that is in no row
    unused.fill_(60_000)
    assert _save(model, tmp_path) == ModelRef(path=str(tmp_path / "model"))
    unused.fill_(70_000)  # float16 ends at 65,504
    with _refused(r"model\.embed_tokens\.weight"):
        _save(model, tmp_path)


@pytest.mark.parametrize("serve", ["adapter", "merged"])
def test_adapter_that_is_no_number_is_refused_by_the_name_it_has_in_training(
    tmp_path: Path, serve: Any
) -> None:
    model = _adapted(_start(tmp_path / "start"))
    _save(model, tmp_path, LoraSection(serve=serve))
    model.get_parameter(f"{ADAPTED}.lora_A.default.weight").data[0, 0] = math.inf
    with _refused(r"base_model.*q_proj\.lora_A\.default\.weight"):
        _save(model, tmp_path, LoraSection(serve=serve))


def test_adapter_of_finite_weights_whose_merging_leaves_the_number_format_is_refused(
    tmp_path: Path,
) -> None:
    model = _adapted(_start(tmp_path / "start"))
    for part in ("A", "B"):
        model.get_parameter(f"{ADAPTED}.lora_{part}.default.weight").data.fill_(1000.0)
    assert _save(model, tmp_path, LoraSection(serve="adapter")).adapter is not None
    with _refused(r"model\.layers\.0\.self_attn\.q_proj\.weight"):  # twice 1,000 * 1,000
        _save(model, tmp_path, LoraSection(serve="merged"))
