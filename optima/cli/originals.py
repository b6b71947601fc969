"""The option spellings of the original project's README, so that its commands can be pasted.

Options that have a counterpart are translated to it; the others are refused with what to do.
"""

import argparse
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from optima.errors import UsageError

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
    "device": "serving.device",
    "port": "serving.port",
    "num_thread": "serving.concurrency",
    "temperature": "evaluation.temperature",
}
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


def add_inference_options(parser: argparse.ArgumentParser, but: Iterable[str] = ()) -> None:
    """Do the same for inference, ``but`` for spellings that an option of the parser has."""
    names = (*TO_INFERENCE_OPTION, *TO_INFERENCE_FIELD)
    _add(parser, (name for name in names if name not in but))


def translate(options: argparse.Namespace) -> None:
    """Move the original spellings to their counterparts; UsageError for those without one."""
    _translate(options, REFUSED, TO_OPTION, TO_FIELD)
    if options.config is not None:
        options.config = [_recipe_here(path) for path in options.config]


def translate_inference(options: argparse.Namespace) -> None:
    """Do the same for the spellings of inference."""
    _translate(options, {}, TO_INFERENCE_OPTION, TO_INFERENCE_FIELD)


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
        setattr(options, target, _value_of(target, value))
    for name, field in to_field.items():
        value = getattr(options, f"original_{name}", None)
        if value is not None:
            options.overrides += _devices(value) if name == "device" else [f"{field}={value}"]


def _value_of(target: str, value: str) -> object:
    if target == "config":
        return [Path(value)]
    return Path(value) if target in PATHS else value


def _recipe_here(path: Path) -> Path:
    """Return our recipe of the same method and benchmark where the original project's is named."""
    named = _ORIGINAL_RECIPE.fullmatch(path.as_posix())
    if path.exists() or named is None:
        return path
    ours = Path("recipes") / named[1] / f"{named[2].replace('trival_qa', 'trivia_qa')}.yaml"
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
