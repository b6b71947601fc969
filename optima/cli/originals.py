"""The option spellings of the original project's README, so that its commands can be pasted.

The words of a command line are rewritten before they are read: a spelling that has a counterpart
becomes it, the others are refused with what to do. Where the original's programs of inference mean
something else by a value than we do, it is their meaning that counts, and the log says so:
``--device N`` is the first of several GPUs with a server each, ``--num_thread`` counts the
conversations over all servers, and of the tasks of information exchange the first 1,000 test
problems are asked.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optima.errors import UsageError

if TYPE_CHECKING:
    from optima.recipe.schema import Recipe

logger = logging.getLogger(__name__)

_ORIGINAL_RECIPE = re.compile(r"(?:.*/)?train/(sft|dpo|sft_dpo)_recipes/(\w+)\.yaml")
_PATHS = ("--run-dir", "--model-root")  # options that hold a path


@dataclass(frozen=True, slots=True)
class Spellings:
    """Original options, without their dashes: the option or the recipe's field that each is.

    For the ``refused`` ones the text says what to do instead.
    """

    options: Mapping[str, str]
    fields: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)


TRAINING = Spellings(
    options={
        "train_config_path": "--config",
        "vllm_env": "--vllm-env",
        "alignment_env": "--train-env",
        "output_path": "--run-dir",
        "output_root_path": "--run-dir",
    },
    fields={
        "model_path": "model.path",
        "dataset_type": "task",
        "device": "serving.device",
        "port": "serving.port",
        "num_thread": "serving.concurrency",
        "temperature": "sampling.temperature",
    },
    refused={
        "model_root_path": "it belongs to inference; for training give --model_path or "
        "model.path=DIR",
        "tokenizer_path": "a model is trained with its own tokenizer; remove the option",
    },
)
# --num_thread, --output_path and --output_root_path are options of these programs, not shown.
INFERENCE = Spellings(
    options={
        "model_root_path": "--model-root",
        "model_path": "--model",
        "dataset_type": "--task",
        "vllm_env": "--vllm-env",
    },
    fields={
        "tokenizer_path": "model.tokenizer",
        "device": "serving.gpus",
        "port": "serving.port",
        "temperature": "evaluation.temperature",
    },
)
# The program of votes has --temperature itself.
CONSISTENCY = Spellings(
    INFERENCE.options, {key: INFERENCE.fields[key] for key in ("tokenizer_path", "device", "port")}
)


def translate(words: list[str]) -> list[str]:
    """Return the words of a training with the original spellings as what they are here."""
    return _translate(words, TRAINING, _devices)[0]


def translate_infer(words: list[str]) -> list[str]:
    """Do the same for inference, which starts a server on each of 4 GPUs."""
    return _translate_inference(words, INFERENCE, 4)


def translate_multi_sc(words: list[str]) -> list[str]:
    """Do the same for votes, which take 8 GPUs."""
    return _translate_inference(words, CONSISTENCY, 8)


def recipe_here(path: Path) -> Path:
    """Return our recipe of the same method and benchmark where the original project's is named."""
    from optima.tasks import SPELLINGS

    named = _ORIGINAL_RECIPE.fullmatch(path.as_posix())
    if path.exists() or named is None:
        return path
    ours = Path("recipes") / named[1] / f"{SPELLINGS.get(named[2], named[2])}.yaml"
    logger.warning("%s is not here, taking %s", path, ours)
    return ours


def share_threads(n_threads: int | None, recipe: "Recipe") -> "Recipe":
    """Return the recipe with ``--num_thread`` conversations in flight over all of its servers."""
    if n_threads is None:
        return recipe
    from optima.processes.devices import detect_devices
    from optima.serving.command import gpu_groups

    serving = recipe.serving
    n_servers = len(serving.endpoints) or len(gpu_groups(recipe, detect_devices(serving)))
    each = max(1, n_threads // n_servers)
    logger.info(
        "--num_thread %d: conversations over all servers: %d for each of %d",
        n_threads, each, n_servers,
    )  # fmt: skip
    return recipe.changed(serving={"concurrency": each})


def free_output(output: Path, recipe: "Recipe", name: str) -> Path:
    """Return where the results of a pasted command go: beside ``output`` if another wrote there.

    The original's README gives one and the same path to both of its programs.
    """
    from optima.runs.directory import check_same_recipe

    try:
        check_same_recipe(output, recipe)
    except UsageError:
        aside = output.with_name(f"{output.name}-{recipe.task}-{name}")
        logger.warning("%s holds the results of another command; writing to %s", output, aside)
        return aside
    return output


def _translate_inference(words: list[str], spellings: Spellings, n_gpus: int) -> list[str]:
    made, given = _translate(words, spellings, lambda device: _servers(device, n_gpus))
    if {"--num_thread", "serving.concurrency"} <= {word.partition("=")[0] for word in words}:
        raise UsageError("--num_thread: says the same as serving.concurrency; give one")
    task = given.get("dataset_type")
    if task is None:
        return made
    from optima.tasks import get_task

    n_first = get_task(task).n_original_test
    if n_first is None:
        return made
    fields = {word.partition("=")[0] for word in made}
    if fields.isdisjoint(("--limit", "data.first_test", "data.n_test")):
        logger.info(
            "--dataset_type %s: the first %d test problems, as in the original; "
            "data.first_test=null asks all", task, n_first,
        )  # fmt: skip
        return [*made, f"data.first_test={n_first}"]
    return made


def _translate(
    words: Sequence[str], spellings: Spellings, devices: Callable[[str], list[str]]
) -> tuple[list[str], dict[str, str]]:
    """Return the words with what the original spellings come to, and their values by name."""
    kept, given = _take(words, {*spellings.options, *spellings.fields, *spellings.refused})
    for name, remedy in spellings.refused.items():
        if name in given:
            raise UsageError(f"--{name}: is not an option here: {remedy}")
    taken = {word.partition("=")[0] for word in kept}
    made = []
    for name, option in spellings.options.items():
        if name not in given:
            continue
        if option in taken:
            raise UsageError(f"--{name}: says the same as {option}; give one")
        taken.add(option)
        if option in _PATHS:
            from optima.records import check_path

            check_path(given[name], f"--{name}")
        made.append(f"{option}={given[name]}")
    for name, key in spellings.fields.items():
        if name in given:
            value = given[name]
            found = devices(value) if name == "device" else [f"{key}={value}"]
            if doubled := taken.intersection(word.partition("=")[0] for word in found):
                raise UsageError(f"--{name}: says the same as {min(doubled)}; give one")
            made += found
    end = kept.index("--") if "--" in kept else len(kept)
    return [*kept[:end], *made, *kept[end:]], given


def _take(words: Sequence[str], names: set[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words without the options called ``names``, and the values of these."""
    kept: list[str] = []
    given: dict[str, str] = {}
    left = iter(words)
    for word in left:
        option, has_value, value = word.partition("=")
        name = option.removeprefix("--")
        if word == "--":
            return [*kept, word, *left], given
        if not option.startswith("--") or name not in names:
            kept.append(word)
            continue
        given[name] = value if has_value else next(left, "--")
        if not has_value and given[name].startswith("--"):
            raise UsageError(f"{option}: expected one argument")
    return kept, given


def _servers(device: str, n_gpus: int) -> list[str]:
    """Return the overrides for ``--device``, where one bare number is the first of ``n_gpus``."""
    if not device.strip().isdecimal():
        return _devices(device)
    from optima.processes.devices import detect_devices
    from optima.recipe.schema import ServingSection

    first = int(device)
    gpus = list(range(first, first + n_gpus))
    there = detect_devices(ServingSection()).gpus
    found = [gpu for gpu in gpus if gpu in there]
    logger.info("--device %s: a server on each GPU from %d to %d", device, first, gpus[-1])
    if found and found != gpus:
        logger.warning("--device %s: of these GPUs this host has %s; taking them", device, found)
        gpus = found
    return ["serving.device=cuda", f"serving.gpus={gpus}".replace(" ", "")]


def _devices(value: str) -> list[str]:
    """Return the overrides for ``cpu``, ``cuda``, ``cuda:1`` or a list of indices ``0,1``."""
    if value in ("auto", "cpu", "cuda"):
        return [f"serving.device={value}"]
    indices = value.removeprefix("cuda:").split(",")
    if not all(index.strip().isdecimal() for index in indices):
        raise UsageError(f"--device: {value!r}: must be cpu, cuda, cuda:N or N,M,...")
    return ["serving.device=cuda", f"serving.gpus=[{','.join(indices)}]"]
