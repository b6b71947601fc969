"""Model directories: weights as servers take them, and the files that servers need beside them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig

# What a served model has beside weights and config, copied unchanged, so that every iteration
# tokenises, renders and stops exactly as the first.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
)
_ID_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


def local_companions(model: str, revision: str | None = None) -> Path:
    """Return a directory that holds the model's companions; a hub id's are downloaded."""
    if Path(model).is_dir():
        return Path(model)
    patterns = ["config.json", *COMPANIONS]
    return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))


def token_ids(config: Any) -> dict[str, Any]:
    """Return the special token ids of a model config, which trainers overwrite."""
    return {name: getattr(config, name, None) for name in _ID_NAMES}


def cast_weights(
    weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights in a number format; tied ones stay one tensor, so are written once."""
    cast_by_place: dict[tuple[int, torch.Size], torch.Tensor] = {}
    result = {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), weight.shape)
        if place not in cast_by_place:
            cast_by_place[place] = weight.to(dtype) if weight.is_floating_point() else weight
        result[name] = cast_by_place[place]
    return result


def save_model_dir(
    model: Any, state_dict: Mapping[str, torch.Tensor] | None, start: Path, output: Path
) -> None:
    """Write weights, config and the start model's companions into ``output`` (which is new)."""
    # Some models ship generation settings that save_pretrained refuses; the file is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(output, state_dict=state_dict)
    copy_companions(start, output)


def set_dtype(output: Path, dtype: torch.dtype) -> None:
    """Say in config.json what the weights are kept in; saving wrote what they were trained in."""
    path = output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_companions(start: Path, output: Path) -> None:
    """Copy the tokenizer, chat template and generation config from the directory ``start``."""
    for pattern in COMPANIONS:
        for path in sorted(start.glob(pattern)):
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copy2(path, output / path.name)
