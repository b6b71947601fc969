"""Loading and saving the weights of a model: full, or with a LoRA adapter over them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from optima.errors import ModelError
from optima.training.jobs import SftJob
from optima.types import ModelRef

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; a missing padding token becomes the end-of-sequence token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the tokenizer cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: ModelRef,
    dtype: torch.dtype | str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model; an adapter it refers to is merged in."""
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.path}: the model cannot be loaded: {error}") from error
    if model.adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, model.adapter).merge_and_unload()
    return loaded


def stored_dtype(path: str, *, default: torch.dtype) -> torch.dtype:
    """Return the number format in which a model's weights are kept on disk."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return default
    settings = json.loads(config.read_text())
    name = settings.get("dtype") or settings.get("torch_dtype")
    return DTYPES.get(str(name), default)


def save_weights(trainer: Any, tokenizer: Any, job: SftJob, directory: Path) -> ModelRef:
    """Write what vLLM needs to serve the trained model; every process must call it.

    Adapters are merged into the weights unless the recipe serves them as adapters. The weights
    are kept in the number format of the model that the training started from.
    """
    final = Path(job.output_dir) / "model"
    lora = job.train.lora
    dtype = stored_dtype(job.model.path, default=DTYPES[job.train.dtype])
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers sharded weights
    if not trainer.is_world_process_zero():
        return ModelRef(path=str(final))
    model = trainer.accelerator.unwrap_model(trainer.model)
    directory.mkdir(parents=True)
    tokenizer.save_pretrained(directory)
    if lora is None:
        _save_full(model, {name: _cast(value, dtype) for name, value in state.items()}, directory)
        return ModelRef(path=str(final))
    if lora.serve == "adapter":
        model.save_pretrained(directory, state_dict=state)
        return ModelRef(path=job.model.path, adapter=str(final))
    adapter = directory / "adapter"
    model.save_pretrained(adapter, state_dict=state)
    base = load_model(
        job.model, dtype, revision=job.revision, trust_remote_code=job.trust_remote_code
    )
    from peft import PeftModel

    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    for file in adapter.iterdir():
        file.unlink()
    adapter.rmdir()
    _save_full(merged.to(dtype), None, directory)
    return ModelRef(path=str(final))


def _save_full(model: Any, state: dict[str, torch.Tensor] | None, directory: Path) -> None:
    if state is not None:
        model.config.dtype = next(iter(state.values())).dtype
    model.config.use_cache = True  # off while training with gradient checkpointing
    if model.generation_config is not None:
        model.generation_config.use_cache = True
    model.save_pretrained(directory, state_dict=state)


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.detach().to("cpu", dtype) if value.is_floating_point() else value.detach().cpu()
