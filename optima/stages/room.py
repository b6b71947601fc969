"""What a run will take at most, and whether there is room for it: tokens, disk, memory of GPUs.

Weights are counted from their files where the model is on this host, else as the hub or its cache
knows them, else from the shape that config.json gives. Of a training are counted weights,
gradients and the two moments of AdamW, as ``training/jobs`` spreads them; adapters, activations
and what the libraries take come on top, so what fits here may still be too much; what does not fit
here never trains.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optima.conversation.loading import HUB_TIMEOUT_S, ModelFiles
from optima.errors import EnvironmentNotFoundError, StageError, UsageError
from optima.plan import Counts, Step, iterations, plan, trained_policies
from optima.processes.devices import Devices, free_memory, gpu_memory
from optima.processes.environment import Environment, package_versions
from optima.recipe.schema import LoraSection, ModelSection, Recipe
from optima.reward import needs_losses
from optima.runs.layout import WEIGHTS, own_starts, placed_model, read_done
from optima.training.jobs import n_processes, plan_batches, resolve_parallelism
from optima.training.launch import n_devices
from optima.types import EndpointRef

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


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a run generates and loads, in lines, and the bytes that it still stores, if known."""

    lines: tuple[str, ...]
    n_bytes: int | None


def footprint(recipe: Recipe, run_dir: Path, *counts: Counts) -> Footprint:
    """Return what a run takes; ``counts`` are those of each of its tasks."""
    members = recipe.members().values()
    most = [one.conversation.max_turns * one.conversation.max_turn_tokens for one in members]
    n_tokens = sum(
        n * step.n_conversations
        for one, n, count in zip(members, most, counts, strict=True)
        for step in plan(one, count)
    )
    lines = [f"tokens     at most {n_tokens:,} generated ({max(most):,} a conversation)"]
    lora, made, trained = recipe.train.lora, dict[str, int](), trained_models(recipe)
    for name, model in {"": recipe.model, **own_models(recipe)}.items():
        weights, of = find_weights(model), f" of policy {name}" if name else ""
        if weights is None:
            return Footprint(tuple(lines), None)
        lines.append(f"weights    {in_gib(weights.n_bytes)}{of} ({weights.source})")
        if weights.is_remote:
            lines += _cache(model, weights)
        made[model.path] = weights.n_bytes
        if lora is not None and lora.serve == "adapter" and model in trained.values():
            made[model.path] = adapter_bytes(read_config(model), lora.rank) or weights.n_bytes
            lines.append(f"adapters   {in_gib(made[model.path])} each{of} (rank {lora.rank})")
    checkpoints = recipe.train.save_total_limit * max(made[one.path] for one in trained.values())
    if lora is None or lora.serve == "adapter":
        checkpoints *= _OPTIMIZER_FACTOR
    models = sum(made[trained[step.policy].path] for step in _trainings(recipe))
    stored = sum(
        path.lstat().st_size
        for path in run_dir.rglob("*")
        if path.is_file() and ".superseded-" not in str(path.relative_to(run_dir))
    )
    # The bound on tokens is far above what agents say; a tenth is still several times the paper's.
    needed = max(0, models + checkpoints + n_tokens * _BYTES_PER_TOKEN // 10 - stored)
    return Footprint(tuple(lines), needed)


def check_disk(needed: int | None, run_dir: Path) -> str:
    """Return what is to be said of the disk; UsageError when it is too small for these bytes."""
    if needed is None:
        return "disk       not estimated: neither files nor config.json tell the model's size"
    free = shutil.disk_usage(place := existing_parent(run_dir)).free
    if needed > free:
        raise UsageError(
            f"--run-dir {run_dir}: about {in_gib(needed)} needed, {in_gib(free)} free in {place}; "
            "free some or give another --run-dir"
        )
    return f"disk       about {in_gib(needed)} of {in_gib(free)} free in {place}"


def own_models(recipe: Recipe) -> dict[str, ModelSection]:
    """Return the models of policies that begin as another whole one than ``model.path``."""
    base = placed_model(recipe.model.path)
    return {
        name: recipe.model.model_copy(update={"path": start.path, "revision": None})
        for name, start in own_starts(recipe).items()
        if not isinstance(start, EndpointRef) and start.path != base
    }


def trained_models(recipe: Recipe) -> dict[str, ModelSection]:
    """Return what each training of a run starts from, or starts an adapter over, by policy."""
    own = own_models(recipe)
    return {name: own.get(name, recipe.model) for name in trained_policies(recipe) or ("",)}


def existing_parent(path: Path) -> Path:
    """Return the path itself or the nearest folder above it that exists."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def read_config(model: ModelSection) -> dict[str, Any]:
    """Return the model's config.json; ModelError when it has none that can be read."""
    return ModelFiles(model.path, model.revision).config()


def find_weights(model: ModelSection) -> Weights | None:
    """Return the size of the model's weights, None when nothing says it."""
    folder = Path(model.path)
    if folder.is_dir():
        local = _of_files({path.name: path.stat().st_size for path in folder.iterdir()})
        return Weights(local, "its files") if local else _of_shape(read_config(model))
    cached = _cached_weights(model)
    if cached:
        return Weights(cached, "in the hub's cache on this host")
    remote = _hub_weights(model)
    if remote:
        return Weights(remote, "as the hub says", is_remote=True)
    shape = _of_shape(read_config(model))
    return shape and replace(shape, is_remote=True)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The sizes of a dense decoder with gated layers; ``queries`` and ``keys`` of all heads."""

    width: int
    n_layers: int
    inner: int
    vocabulary: int
    queries: int
    keys: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Shape | None":
        """Return the shape that config.json gives, None where it is another."""
        try:
            width, n_layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
            n_heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
            vocabulary = int(config["vocab_size"])
            head = int(config.get("head_dim") or width // n_heads)
            n_shared = int(config.get("num_key_value_heads") or n_heads)
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
            return None
        if min(width, n_layers, inner, vocabulary, head, n_shared) <= 0:
            return None
        return cls(width, n_layers, inner, vocabulary, head * n_heads, head * n_shared)

    def linear(self) -> tuple[tuple[int, int], ...]:
        """Return inputs and outputs of the linear maps of a layer: q, k, v, o; gate, up, down."""
        d, inner, queries, keys = self.width, self.inner, self.queries, self.keys
        attention = ((d, queries), (d, keys), (d, keys), (queries, d))
        return (*attention, (d, inner), (d, inner), (inner, d))


def n_parameters(config: Mapping[str, Any]) -> int | None:
    """Return the parameters of a dense decoder with gated layers, None for other shapes."""
    shape = _Shape.of(config)
    if shape is None:
        return None
    embeddings = shape.vocabulary * shape.width
    embeddings *= 1 if config.get("tie_word_embeddings") else 2
    each = sum(n * m for n, m in shape.linear()) + 2 * shape.width
    return embeddings + shape.n_layers * each + shape.width


def adapter_bytes(config: Mapping[str, Any], rank: int) -> int | None:
    """Return the bytes of an adapter on all linear maps, kept as float32; None as above."""
    shape = _Shape.of(config)
    if shape is None:
        return None
    return _WIDTHS["float32"] * shape.n_layers * rank * sum(n + m for n, m in shape.linear())


def _of_shape(config: Mapping[str, Any]) -> Weights | None:
    return Weights(n * _BYTES_PER_PARAMETER, ESTIMATED) if (n := n_parameters(config)) else None


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

    wrong = (ValueError, KeyError, TypeError, AttributeError)  # of an index that is none
    with contextlib.suppress(LocalEntryNotFoundError, OSError, *wrong):
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


def in_gib(n_bytes: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{n_bytes / 2**30:.1f} GiB"


_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
_MAX_GPUS = 64  # of one host, beyond any
_MARGIN = 6 * 2**30
_STATES = 16  # bytes a parameter: float32 weights, gradients and moments, or what ZeRO keeps
# What may help where memory lacks, in the words of a recipe: fields of ``train``.
_LORA: dict[str, object] = {"lora": LoraSection()}
_SPREAD: dict[str, object] = {"parallelism": "auto"}
_REMEDIES: dict[str, dict[str, object]] = {
    "train.lora={}": _LORA,
    "train.optimizer_state_dtype=model": {"optimizer_state_dtype": "model"},
    "train.parallelism=auto": _SPREAD,
    "train.lora={} with train.parallelism=auto": _LORA | _SPREAD,
}


def _trainings(recipe: Recipe) -> tuple[Step, ...]:
    return tuple(step for step in plan(recipe) if step.kind == "train" and not step.is_trial)


def is_trained(recipe: Recipe, run_dir: Path) -> bool:
    """Tell whether a run has finished all its trainings, so that nothing has to fit any more."""
    try:
        return all(read_done(run_dir / step.name) is not None for step in _trainings(recipe))
    except StageError:  # damaged: it is made anew
        return False


def check_fit(recipe: Recipe, devices: Devices, env: Environment) -> Iterator[str]:
    """Yield what each GPU holds in training, nothing without GPUs.

    Raises UsageError (or a kind of it) when batches cannot be split over the devices, the training
    environment ``env`` lacks what splits the model, or no GPU has the memory.
    """
    n_nodes = recipe.serving.training_nodes
    check_batches(recipe, n_nodes * n_devices(devices))
    check_nodes(recipe, devices)
    if devices.kind == "cpu":
        return
    n_gpus = n_nodes * len(devices.gpus)
    way = resolve_parallelism(recipe.train, n_gpus)
    if way == "zero3" and "deepspeed" not in package_versions(env, ("deepspeed",)):
        raise EnvironmentNotFoundError(
            f"--train-env: {env.prefix}: holds no deepspeed, by which {n_gpus} GPUs share a "
            "training; install it there, or take train.parallelism=fsdp"
        )
    there, n = gpu_memory(devices), count_trained(recipe)
    if there is None or n is None:
        return
    needed = bytes_per_gpu(recipe, n, n_gpus)
    left, place, remedy = there, "there", ""
    if recipe.serving.keep == "stay" and needed <= there:
        left = int(there * (1 - serving_recipe(recipe).serving.gpu_memory_utilization))
        place, remedy = "left by servers that stay", "serving.keep=reload, or "
    if needed > left:
        raise UsageError(
            f"train: weights, gradients and optimizer states of {n / 1e9:.1f} billion parameters "
            f"take at least {in_gib(needed)} on each GPU, of {in_gib(left)} {place}; "
            f"take {remedy}{_remedies(recipe, n, n_gpus, left)}"
        )
    yield f"memory     training takes at least {in_gib(needed)} of {in_gib(left)} on each GPU"


def serving_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe by which servers are started: they leave memory to a scorer beside them."""
    search = recipe.search
    if search is None or search.scorer_gpus or not needs_losses(recipe):
        return recipe
    share = min(search.gpu_memory_utilization, recipe.serving.gpu_memory_utilization)
    return recipe.changed(serving={"gpu_memory_utilization": share})


def keep_of(recipe: Recipe, devices: Devices) -> Literal["restart", "reload", "sleep", "stay"]:
    """Return what ``serving.keep`` comes to; by itself, servers sleep or stay where is room."""
    keep = recipe.serving.keep
    if keep != "auto":
        return keep
    if devices.kind == "cuda":
        return "sleep" if _is_room_beside_sleepers(recipe, devices) else "reload"
    n, free = count_trained(recipe), free_memory()
    has_room = n is not None and free is not None and free >= room_for_training(recipe, n)
    return "stay" if has_room else "reload"


def _is_room_beside_sleepers(recipe: Recipe, devices: Devices) -> bool:
    """Return whether twice what a training holds, and 6 GiB, fit beside servers asleep (2 GiB).
    Servers of adapters gain nothing by sleep: they are started anew after it."""
    lora, n, there = recipe.train.lora, count_trained(recipe), gpu_memory(devices)
    if n is None or there is None or (lora is not None and lora.serve == "adapter"):
        return False
    n_gpus = recipe.serving.training_nodes * len(devices.gpus)
    return 2 * bytes_per_gpu(recipe, n, n_gpus) + _MARGIN <= there


def room_for_training(recipe: Recipe, n_parameters: int) -> int:
    """Return the bytes a training on the CPU surely does with: thrice what it holds, and 6 GiB.

    One of a model of 135M, which holds 2 GiB, was seen to take 8.
    """
    return 3 * bytes_per_gpu(recipe, n_parameters, 1) + _MARGIN


def check_nodes(recipe: Recipe, devices: Devices) -> None:
    """Raise UsageError when a training cannot be shared by as many nodes as the recipe says."""
    n = recipe.serving.training_nodes
    if n > 1 and devices.kind == "cpu":
        raise UsageError(
            f"serving.training_nodes: {n}: a training on CPUs is not shared by nodes; take 1"
        )
    if n > 1 and recipe.train.parallelism == "none":
        raise UsageError(
            f"serving.training_nodes: {n}: train.parallelism=none keeps a training on one GPU; "
            "take another, or one node"
        )


def check_batches(recipe: Recipe, n_devices: int) -> None:
    """Raise RecipeError when the devices do not divide the batch of a training to come."""
    for field, size in _batch_sizes(recipe).items():
        plan_batches(size, size, n_processes(recipe.train, n_devices), field)


def _batch_sizes(recipe: Recipe) -> dict[str, int]:
    """Return the batches of a run's trainings by their fields; packed rows make batches anew."""
    sizes = {}
    if recipe.train.batching != "packing":
        if recipe.cold_start is not None:
            sizes["cold_start.batch_size"] = recipe.cold_start.batch_size
        if any(made.training == "sft" for made in iterations(recipe)):
            sizes["train.batch_size"] = recipe.train.batch_size
    if recipe.dpo is not None:
        sizes["dpo.batch_size"] = recipe.dpo.batch_size
    return sizes


def count_trained(recipe: Recipe) -> int | None:
    """Return the parameters of the largest model that is trained, None where nothing tells."""
    counts = [count_parameters(model) or 0 for model in trained_models(recipe).values()]
    return max(counts) if all(counts) else None


def count_parameters(model: ModelSection) -> int | None:
    """Return the parameters of a model by the size of its files, rather too few than too many."""
    weights = find_weights(model)
    if weights is None:
        return None
    config = read_config(model)
    kept = str(config.get("dtype") or config.get("torch_dtype"))
    return weights.n_bytes // (2 if weights.source == ESTIMATED else _WIDTHS.get(kept, 4))


def bytes_per_gpu(recipe: Recipe, n_parameters: int, n_gpus: int) -> int:
    """Return what each GPU holds at least in the largest training of a run."""
    train, dpo = recipe.train, recipe.dpo
    way = resolve_parallelism(train, n_gpus)
    width = _WIDTHS[train.dtype]
    is_float32 = train.optimizer_state_dtype == "float32"
    each = 4 * width
    if train.lora is not None:
        each = width
    elif is_float32 or way == "zero3":
        each = _STATES
    if dpo is not None and dpo.reference == "live" and train.lora is None:
        each += 4 if is_float32 and way != "zero3" else width
    return n_parameters * each // (n_gpus if way in ("zero3", "fsdp") else 1)


def _remedies(recipe: Recipe, n_parameters: int, n_gpus: int, there: int) -> str:
    """Return what would make the training fit, each by itself."""

    def fits(recipe: Recipe, n_gpus: int) -> bool:
        return bytes_per_gpu(recipe, n_parameters, n_gpus) <= there

    def changed(fields: dict[str, object]) -> Recipe:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=fields)})

    found = [name for name, fields in _REMEDIES.items() if fits(changed(fields), n_gpus)]
    if "train.lora={}" in found or "train.parallelism=auto" in found:
        found = [name for name in found if " with " not in name]
    if recipe.dpo is not None:
        ahead = recipe.dpo.model_copy(update={"reference": "precomputed"})
        if fits(recipe.model_copy(update={"dpo": ahead}), n_gpus):
            found.append("dpo.reference=precomputed")
    is_spread = recipe.train.parallelism in ("auto", "zero3", "fsdp")
    more, sizes = recipe if is_spread else changed(_SPREAD), _batch_sizes(recipe).values()
    for n in range(n_gpus + 1, _MAX_GPUS + 1):
        if fits(more, n) and not any(size % n for size in sizes):
            found.append(f"{n} GPUs" + ("" if is_spread else " with train.parallelism=auto"))
            break
    return ", or ".join([*found, "a smaller model"])
