"""The option spellings of the original project's README, so that its commands can be pasted.

Options that have a counterpart are translated to it; the others are refused with what to do. Where
the original's programs of inference mean something else by a value than we do, it is their meaning
that counts, and the log says so: ``--device N`` is the first of several GPUs with a server each,
``--num_thread`` counts the conversations over all servers, and of the tasks of information exchange
the first 1,000 test problems are asked.
"""

import argparse
import contextlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from optima.errors import UsageError
from optima.processes.devices import detect_devices
from optima.recipe.schema import Recipe, ServingSection
from optima.records import check_path
from optima.rundir import check_same_recipe
from optima.serving.fleet import gpu_groups
from optima.tasks import SPELLINGS, get_task

logger = logging.getLogger(__name__)

# original option -> option of this command
TO_OPTION = {
    "train_config_path": "config",
    "vllm_env": "vllm_env",
    "alignment_env": "train_env",
    "output_path": "run_dir",
    "output_root_path": "run_dir",
}
# original option -> recipe field
TO_FIELD = {
    "model_path": "model.path",
    "dataset_type": "task",
    "device": "serving.device",
    "port": "serving.port",
    "num_thread": "serving.concurrency",
    "temperature": "sampling.temperature",
}
# The same for inference.
TO_INFERENCE_OPTION = {
    "model_root_path": "model_root",
    "model_path": "model",
    "dataset_type": "task",
    "vllm_env": "vllm_env",
    "output_path": "output",
    "output_root_path": "output",
}
TO_INFERENCE_FIELD = {
    "tokenizer_path": "model.tokenizer",
    "port": "serving.port",
    "temperature": "evaluation.temperature",
}
# What is more than another name: --device becomes fields, --num_thread the recipe's, once read.
OF_SERVERS = ("device", "num_thread")
# original option -> what to do instead
REFUSED = {
    "model_root_path": "it belongs to inference; for training give --model_path or model.path=DIR",
    "tokenizer_path": "a model is trained with its own tokenizer; remove the option",
}
_ORIGINAL_RECIPE = re.compile(r"(?:.*/)?train/(sft|dpo|sft_dpo)_recipes/(\w+)\.yaml")
PATHS = ("run_dir", "model_root", "output")  # options that hold a path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the original spellings for training, hidden from --help."""
    _add(parser, (*TO_OPTION, *TO_FIELD, *REFUSED))


def add_inference_options(
    parser: argparse.ArgumentParser, *, n_gpus: int, but: Iterable[str] = ()
) -> None:
    """Do the same for inference, ``but`` for spellings that an option of the parser has.

    The original's program starts a server on each of ``n_gpus`` GPUs, from ``--device`` on.
    """
    names = (*TO_INFERENCE_OPTION, *TO_INFERENCE_FIELD, *OF_SERVERS)
    _add(parser, (name for name in names if name not in but))
    parser.set_defaults(original_n_gpus=n_gpus)


def translate(options: argparse.Namespace) -> None:
    """Move the original spellings to their counterparts; UsageError for those without one."""
    _translate(options, REFUSED, TO_OPTION, TO_FIELD)
    if options.config is not None:
        options.config = [_recipe_here(path) for path in options.config]


def translate_inference(options: argparse.Namespace) -> None:
    """Do the same for the spellings of inference."""
    has_own_output = options.output is not None
    _translate(options, {}, TO_INFERENCE_OPTION, TO_INFERENCE_FIELD)
    options.is_original_output = options.output is not None and not has_own_output
    if options.original_device is not None:
        options.overrides += _servers(options.original_device, options.original_n_gpus)
    task = options.original_dataset_type
    n_first = None if task is None else get_task(task).n_original_test
    if n_first is not None:
        fields = {override.partition("=")[0] for override in options.overrides}
        if options.limit is None and fields.isdisjoint(("data.first_test", "data.n_test")):
            logger.info(
                "--dataset_type %s: the first %d test problems, as in the original; "
                "data.first_test=null asks all", task, n_first,
            )  # fmt: skip
            options.overrides.append(f"data.first_test={n_first}")


def share_threads(options: argparse.Namespace, recipe: Recipe) -> Recipe:
    """Return the recipe with ``--num_thread`` conversations in flight over all of its servers."""
    given = options.original_num_thread
    if given is None:
        return recipe
    with contextlib.suppress(ValueError):
        if (n_threads := int(given)) >= 1:
            serving = recipe.serving
            n_servers = len(serving.endpoints) or len(gpu_groups(recipe, detect_devices(serving)))
            each = max(1, n_threads // n_servers)
            logger.info(
                "--num_thread %d: conversations over all servers: %d for each of %d",
                n_threads, each, n_servers,
            )  # fmt: skip
            changed = serving.model_copy(update={"concurrency": each})
            return recipe.model_copy(update={"serving": changed})
    raise UsageError(f"--num_thread {given}: must be a whole number of at least 1")


def free_output(options: argparse.Namespace, recipe: Recipe, output: Path, name: str) -> Path:
    """Return where results go: beside ``output`` where an earlier pasted command wrote to it.

    The original's README gives one and the same path to both of its programs.
    """
    if not options.is_original_output:
        return output
    try:
        check_same_recipe(output, recipe)
    except UsageError:
        aside = output.with_name(f"{output.name}-{recipe.task}-{name}")
        logger.warning("%s holds the results of another command; writing to %s", output, aside)
        return aside
    return output


def _servers(device: str, n_gpus: int) -> list[str]:
    """Return the overrides for ``--device``, where one bare number is the first of ``n_gpus``."""
    if not device.strip().isdecimal():
        return _devices(device)
    first = int(device)
    gpus = list(range(first, first + n_gpus))
    there = detect_devices(ServingSection()).gpus
    found = [gpu for gpu in gpus if gpu in there]
    logger.info("--device %s: a server on each GPU from %d to %d", device, first, gpus[-1])
    if found and found != gpus:
        logger.warning("--device %s: of these GPUs this host has %s; taking them", device, found)
        gpus = found
    return ["serving.device=cuda", f"serving.gpus={gpus}".replace(" ", "")]


def _add(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    for name in names:
        parser.add_argument(f"--{name}", dest=f"original_{name}", help=argparse.SUPPRESS)


def _translate(
    options: argparse.Namespace,
    refused: Mapping[str, str],
    to_option: Mapping[str, str],
    to_field: Mapping[str, str],
) -> None:
    for name, remedy in refused.items():
        if getattr(options, f"original_{name}") is not None:
            raise UsageError(f"--{name}: is no option here: {remedy}")
    for name, target in to_option.items():
        value = getattr(options, f"original_{name}")
        if value is None:
            continue
        if getattr(options, target) is not None:
            raise UsageError(f"--{name}: says the same as --{target.replace('_', '-')}; give one")
        setattr(options, target, _value_of(name, target, value))
    for name, field in to_field.items():
        value = getattr(options, f"original_{name}", None)
        if value is not None:
            options.overrides += _devices(value) if name == "device" else [f"{field}={value}"]


def _value_of(name: str, target: str, value: str) -> object:
    if target == "config":
        return [Path(value)]
    if target not in PATHS:
        return value
    check_path(value, f"--{name}")
    return Path(value)


def _recipe_here(path: Path) -> Path:
    """Return our recipe of the same method and benchmark where the original project's is named."""
    named = _ORIGINAL_RECIPE.fullmatch(path.as_posix())
    if path.exists() or named is None:
        return path
    ours = Path("recipes") / named[1] / f"{SPELLINGS.get(named[2], named[2])}.yaml"
    logger.warning("%s is not here, taking %s", path, ours)
    return ours


def _devices(value: str) -> list[str]:
    """Return the overrides for ``cpu``, ``cuda``, ``cuda:1`` or a list of indices ``0,1``."""
    if value in ("auto", "cpu", "cuda"):
        return [f"serving.device={value}"]
    indices = value.removeprefix("cuda:").split(",")
    if not all(index.strip().isdecimal() for index in indices):
        raise UsageError(f"--device: {value!r}: must be cpu, cuda, cuda:N or N,M,...")
    return ["serving.device=cuda", f"serving.gpus=[{','.join(indices)}]"]
