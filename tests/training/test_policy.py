"""What happens to a trained adapter when a training by several processes is over (e2e)."""

from pathlib import Path

import pytest

from optima.recipe.schema import LoraSection, TrainSection
from optima.training.jobs import TrainJob
from optima.types import ModelRef

pytestmark = pytest.mark.e2e


def test_first_process_merges_alone_after_a_training_by_zero3(
    smollm2: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.integrations import deepspeed

    from optima.training.policy import merge_saved

    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    before = base.get_input_embeddings().weight.detach().clone()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")

    class ZeRO3:
        """What a trainer leaves behind as the configuration of the process."""

        def is_zero3(self) -> bool:
            return True

    left = ZeRO3()
    deepspeed.set_hf_deepspeed_config(left)
    try:
        # It would load the weights in parts, and wait for processes that load theirs.
        assert deepspeed.is_deepspeed_zero3_enabled()
        job = TrainJob(
            model=ModelRef(path=str(smollm2)), rows_path="", output_dir=str(tmp_path),
            train=TrainSection(lora=LoraSection()), seed=0, device="cpu",
        )  # fmt: skip
        merge_saved(job, tmp_path / "adapter", torch.bfloat16)
    finally:
        deepspeed.unset_hf_deepspeed_config()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert torch.equal(merged.get_input_embeddings().weight, before)
    start = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.get_parameter(name), start.get_parameter(name))
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()
