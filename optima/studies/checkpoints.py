"""The models below a directory, in the order in which they were made."""

import json
import re
from dataclasses import replace
from pathlib import Path

from optima.errors import ModelError, StageError, UsageError
from optima.records import check_path
from optima.runs.files import INPUTS, RECIPE
from optima.runs.layout import WEIGHTS, check_model, is_stage, read_done, weight_files
from optima.seeding import digest
from optima.stages.context import Model
from optima.types import ModelRef

_CONFIGURATIONS = ("config.json", "adapter_config.json")
_NUMBER = re.compile(r"(\d+)")
_TRIAL = re.compile(r"/influence/group_\d+/train/model/")


def find_models(root: Path) -> tuple[Model, ...]:
    """Return the models in ``root`` and below it: whole models and LoRA adapters.

    In a run directory they are called as in its table and come in the order of training; elsewhere
    they are called by their paths and sorted by them, numbers as numbers. What a training left
    behind for itself (hidden directories, checkpoints) is none, nor is a trial of a selection by
    influence that was interrupted.

    Raises UsageError when there is no such directory or no model in it, ModelError for one without
    its weights.
    """
    if not root.is_dir():
        raise UsageError(
            f"--model-root {root}: is not a directory; give a run or a folder of models"
        )
    found = [
        path.parent
        for name in _CONFIGURATIONS
        for path in root.rglob(name)
        if not _is_private(path.relative_to(root)) and not _is_copy(path.parent)
    ]
    if not found:
        raise UsageError(
            f"--model-root {root}: holds no model (no {' or '.join(_CONFIGURATIONS)} below it); "
            "give a run that has trained one, or a folder of models"
        )
    folders = sorted(set(found), key=lambda path: _order(root, path))
    return tuple(read_model(path, _label(root, path)) for path in folders)


def name_model(spec: str, label: str) -> Model:
    """Return a model given by directory or hub id, or the last one trained in a run's directory.

    Raises ModelError for a directory without a model, and for what cannot be a hub id.
    """
    check_path(spec, "--model")
    path = Path(spec)
    if path.is_dir():
        if not any((path / name).is_file() for name in _CONFIGURATIONS):
            if (path / RECIPE).is_file():
                return replace(find_models(path)[-1], label=label)
            raise ModelError(
                f"{spec}: holds no model (no {' or '.join(_CONFIGURATIONS)}); name the directory "
                "with its files, or a run"
            )
        return read_model(path, label)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        raise ModelError(f"{spec}: is neither a directory nor a hub id such as org/name; give one")
    return Model(label, ModelRef(path=spec), digest(spec))


def read_model(path: Path, label: str) -> Model:
    """Return the model in a directory; ModelError when its weights or its base are missing."""
    weights = weight_files(path)
    if not weights:
        raise ModelError(
            f"{path}: has a configuration and no weights ({' or '.join(WEIGHTS)}); it was not "
            "written to its end: remove it, or resume the run that was writing it"
        )
    try:
        check_model(ModelRef(path=str(path.absolute())))
    except StageError as error:
        raise ModelError(str(error)) from error
    sizes = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in weights]
    made = digest(str(path.resolve()), *sizes)
    adapter = path / "adapter_config.json"
    if not adapter.is_file():
        return Model(label, ModelRef(path=str(path.resolve())), made)
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{adapter}: names no base model, so it is not a LoRA adapter; put it back from a "
            "copy, or remove it where the weights are merged"
        ) from error
    return Model(label, ModelRef(path=str(base), adapter=str(path.resolve())), made)


def _is_private(path: Path) -> bool:
    return any(
        part.startswith((".", "checkpoint-")) or part == "checkpoints" or ".superseded-" in part
        for part in path.parts[:-1]
    ) or bool(_TRIAL.search(path.as_posix()))


def _is_copy(path: Path) -> bool:
    """Tell whether a trained model lies in a run under another name than its stage's own."""
    stage = path.resolve().parent
    run = next((place for place in stage.parents if (place / RECIPE).is_file()), None)
    return run is not None and (stage / INPUTS).exists() and not is_stage(stage, run)


def _label(root: Path, path: Path) -> str:
    """Return ``iter_0`` for ``iter_0/train/model``, else the path below the root."""
    parts = path.relative_to(root).parts
    if parts[1:] == ("train", "model"):
        return parts[0]
    return "/".join(parts) or path.resolve().name


def _order(root: Path, path: Path) -> tuple[float, list[int | str]]:
    done = read_done(path.parent) if path != root else None
    words = _NUMBER.split(str(path.relative_to(root)))
    return (
        done.started_unix_s if done else 0.0,
        [int(word) if word.isdigit() else word for word in words],
    )
