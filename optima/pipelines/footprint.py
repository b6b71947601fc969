"""What a run will generate and store at most: tokens, and bytes on disk.

Weights are counted from their files where the model is on this host, else as the hub or its cache
knows them, else from the shape that config.json gives.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optima.conversation.loading import HUB_TIMEOUT_S, model_json
from optima.errors import ModelError, UsageError
from optima.outputs import WEIGHTS
from optima.plan import Counts, plan
from optima.recipe.schema import ModelSection, Recipe

_BYTES_PER_TOKEN = 6  # JSON Lines of generated English text, a generous figure
_OPTIMIZER_FACTOR = 6  # float32 weights and two Adam moments over bf16 weights
_BYTES_PER_PARAMETER = 2  # the bfloat16 that models are published and kept in
ESTIMATED = "estimated from config.json"  # as 16-bit weights


@dataclass(frozen=True, slots=True)
class Weights:
    """The size of a model's weights, how it is known, and whether they must still be fetched."""

    n_bytes: int
    source: str
    is_remote: bool = False


def footprint(recipe: Recipe, run_dir: Path, counts: Counts) -> Iterator[str]:
    """Yield what a run generates and stores; UsageError when the disk is too small for it."""
    talks = recipe.conversation
    most = talks.max_turns * talks.max_turn_tokens
    steps = plan(recipe, counts)
    n_tokens = most * sum(step.n_conversations for step in steps)
    yield f"tokens     at most {n_tokens:,} generated ({most:,} a conversation)"
    weights = find_weights(recipe.model)
    if weights is None:
        yield "disk       not estimated: neither files nor config.json say how large the model is"
        return
    yield f"weights    {in_gib(weights.n_bytes)} ({weights.source})"
    n_models = sum(step.kind == "train" and not step.is_trial for step in steps)
    checkpoints = recipe.train.save_total_limit * weights.n_bytes
    if recipe.train.lora is None:
        checkpoints *= _OPTIMIZER_FACTOR
    # The bound on tokens is far above what agents say; a tenth is still several times the paper's.
    needed = n_models * weights.n_bytes + checkpoints + n_tokens * _BYTES_PER_TOKEN // 10
    stored = sum(path.lstat().st_size for path in run_dir.rglob("*") if path.is_file())
    needed = max(0, needed - stored)  # a run that goes on has some of it already
    place = existing_parent(run_dir)
    free = shutil.disk_usage(place).free
    yield f"disk       about {in_gib(needed)} of {in_gib(free)} free in {place}"
    if needed > free:
        raise UsageError(
            f"--run-dir {run_dir}: about {in_gib(needed)} needed, {in_gib(free)} free in {place}; "
            "free some or give another --run-dir"
        )
    if weights.is_remote:
        yield from _cache(recipe.model, weights)


def existing_parent(path: Path) -> Path:
    """Return the path itself or the nearest folder above it that exists."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def read_config(model: ModelSection) -> dict[str, Any]:
    """Return the model's config.json; ModelError when it has none that can be read."""
    place = f"model.path={model.path}"
    config = model_json(model.path, "config.json", model.revision, place=place)
    if not config:
        raise ModelError(f"{place}: has no config.json; fetch the model again")
    return config


def context_window(model: ModelSection) -> int | None:
    """Return the tokens a prompt may have; ModelError when more are asked for than there are."""
    longest = read_config(model).get("max_position_embeddings")
    asked = model.max_model_len
    if isinstance(longest, int) and asked is not None and asked > longest:
        raise ModelError(
            f"model.max_model_len: {asked}: {model.path} has {longest} positions; lower it"
        )
    return asked or (longest if isinstance(longest, int) else None)


def find_weights(model: ModelSection) -> Weights | None:
    """Return the size of the model's weights, None when nothing says it."""
    folder = Path(model.path)
    if folder.is_dir():
        local = _of_files({path.name: path.stat().st_size for path in folder.iterdir()})
        return Weights(local, "files in model.path") if local else _of_shape(read_config(model))
    cached = _cached_weights(model)
    if cached:
        return Weights(cached, "in the hub's cache on this host")
    remote = _hub_weights(model)
    if remote:
        return Weights(remote, "as the hub says", is_remote=True)
    shape = _of_shape(read_config(model))
    return shape and Weights(shape.n_bytes, shape.source, is_remote=True)


def n_parameters(config: Mapping[str, Any]) -> int | None:
    """Return the parameters of a dense decoder with gated layers, None for other shapes."""
    try:
        width, n_layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        n_heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
        vocabulary = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError):
        return None
    head = int(config.get("head_dim") or width // n_heads)
    n_shared = int(config.get("num_key_value_heads") or n_heads)
    attention = 2 * width * head * n_heads + 2 * width * head * n_shared
    embeddings = vocabulary * width * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + n_layers * (attention + 3 * width * inner + 2 * width) + width


def _of_shape(config: Mapping[str, Any]) -> Weights | None:
    n = n_parameters(config)
    return (n and Weights(n * _BYTES_PER_PARAMETER, ESTIMATED)) or None


def _of_files(size_by_name: Mapping[str, int]) -> int:
    """Return the bytes of the weight files; where there are two formats, of the one that counts."""
    for pattern in WEIGHTS:
        sizes = [n for name, n in size_by_name.items() if Path(name).match(pattern)]
        if sizes:
            return sum(sizes)
    return 0


def _cached_weights(model: ModelSection) -> int:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, OSError, ValueError):
        folder = Path(snapshot_download(model.path, revision=model.revision, local_files_only=True))
        index = folder / "model.safetensors.index.json"
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        if index.is_file():  # some of its files may still be missing
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return _of_files(sizes) if names <= sizes.keys() else 0
        return _of_files(sizes)
    return 0


def _hub_weights(model: ModelSection) -> int:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(
            model.path, revision=model.revision, files_metadata=True, timeout=HUB_TIMEOUT_S
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        return 0
    files = info.siblings or ()
    return _of_files({f.rfilename: f.size or 0 for f in files if "/" not in f.rfilename})


def _cache(model: ModelSection, weights: Weights) -> Iterator[str]:
    """Yield what is fetched first; UsageError when the hub's cache has no room for it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = existing_parent(Path(HF_HUB_CACHE))
    free = shutil.disk_usage(place).free
    yield f"fetched    {in_gib(weights.n_bytes)} of {model.path} into {HF_HUB_CACHE}"
    if weights.n_bytes > free:
        raise UsageError(
            f"model.path={model.path}: {in_gib(weights.n_bytes)} to fetch, {in_gib(free)} free in "
            f"{place}; free some or set HF_HOME to a larger disk"
        )


def check_run_dir(run_dir: Path) -> None:
    """Raise UsageError when the directory cannot be made or written to."""
    place = existing_parent(run_dir)
    if not place.is_dir():
        raise UsageError(f"--run-dir {run_dir}: {place} is a file, no directory; give another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"--run-dir {run_dir}: {place} cannot be written to; give another")


def in_gib(n_bytes: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{n_bytes / 2**30:.1f} GiB"
