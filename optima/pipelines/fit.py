"""Whether a run's trainings fit its GPUs: known before anything is generated.

Counted are weights, gradients and the two moments of AdamW, as ``training/jobs`` spreads
them. Adapters, activations and what the libraries take come on top, so what fits here may still be
too much; what does not fit here never trains.
"""

from collections.abc import Iterator
from pathlib import Path

from optima.errors import EnvironmentNotFoundError, StageError, UsageError
from optima.pipelines.footprint import ESTIMATED, find_weights, in_gib, read_config
from optima.plan import COLD_START, iterations
from optima.processes.devices import Devices, gpu_memory
from optima.processes.environment import Environment, package_versions
from optima.recipe.schema import LoraSection, ModelSection, Recipe
from optima.stages import read_done
from optima.training.jobs import n_processes, plan_batches, resolve_parallelism
from optima.training.launch import n_devices

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
_MAX_GPUS = 64  # of one host, beyond any
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


def is_trained(recipe: Recipe, run_dir: Path) -> bool:
    """Tell whether a run has finished all its trainings, so that nothing has to fit any more."""
    labels = [COLD_START] if recipe.cold_start else []
    labels += [iteration.label for iteration in iterations(recipe)]
    try:
        return all(read_done(run_dir / label / "train") is not None for label in labels)
    except StageError:  # damaged: it is made anew
        return False


def check_fit(recipe: Recipe, devices: Devices, env: Environment) -> Iterator[str]:
    """Yield what each GPU holds in training, nothing without GPUs.

    Raises UsageError (or a kind of it) when batches cannot be split over the devices, the training
    environment ``env`` lacks what splits the model, or no GPU has the memory.
    """
    check_batches(recipe, n_devices(devices))
    if devices.kind == "cpu":
        return
    n_gpus = len(devices.gpus)
    way = resolve_parallelism(recipe.train, n_gpus)
    if way == "zero3" and "deepspeed" not in package_versions(env, ("deepspeed",)):
        raise EnvironmentNotFoundError(
            f"--train-env: {env.prefix}: holds no deepspeed, by which {n_gpus} GPUs share a "
            "training; install it there, or take train.parallelism=fsdp"
        )
    there, n = gpu_memory(devices), count_parameters(recipe.model)
    if there is None or n is None:
        return
    needed = bytes_per_gpu(recipe, n, n_gpus)
    if needed > there:
        raise UsageError(
            f"train: weights, gradients and optimizer states of {n / 1e9:.1f} billion parameters "
            f"take at least {in_gib(needed)} on each GPU, of {in_gib(there)} there; "
            f"take {_remedies(recipe, n, n_gpus, there)}"
        )
    yield f"memory     training takes at least {in_gib(needed)} of {in_gib(there)} on each GPU"


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
