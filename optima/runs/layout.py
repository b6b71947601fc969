"""What a run directory holds, read: its recipe, its attempts, its stages and what they wrote.

Reading changes nothing and takes no lock. Whatever else stands in the directory is left alone: a
stage is one by the name in its own INPUTS and DONE.json, so a copy called ``iter_0.old`` is none.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from optima.errors import StageError, UsageError
from optima.records import read_record
from optima.runs.outputs import Damage, find_cut_weights, find_damage
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR
from optima.types import ModelRef, Record

_Named = TypeVar("_Named")
_Read = TypeVar("_Read")
GENERATED, DISCARDED = "tokens/generated", "tokens/discarded"  # metrics of stages
STARTED_FORMAT = "%Y-%m-%dT%H:%M:%SZ"  # of an attempt, in UTC


class StageDone(Record):
    """DONE.json of a stage: ``outputs`` and ``sizes`` have a digest and the bytes of each file."""

    schema_version: Literal[1] = 1
    stage: str
    inputs: str
    outputs: dict[str, str]
    sizes: dict[str, int] = Field(default_factory=dict)
    started_unix_s: float
    seconds: float
    metrics: dict[str, float]


def find_begun(folder: Path) -> list[Path]:
    """Return the directories in ``folder`` that are runs, also where the recipe was lost."""
    owned = {path.parent for path in folder.glob("*/LOCK") if stage_folders(path.parent)}
    return sorted(owned | {path.parent for path in folder.glob("*/recipe.yaml")})


def read_each(read: Callable[[_Named], _Read], runs: Iterable[_Named]) -> list[_Read]:
    """Return what ``read`` makes of each run; of those that it fails for, raise all lines."""
    found, errors = [], []
    for run in runs:
        try:
            found.append(read(run))
        except (StageError, UsageError) as error:
            errors.append(error)
    if errors:
        kind = next((StageError for error in errors if isinstance(error, StageError)), UsageError)
        raise kind("\n".join(dict.fromkeys(map(str, errors)))) from errors[0]
    return found


def stage_folders(root: Path) -> list[Path]:
    """Return the directories of the stages begun in ``root``, without copies under other names."""
    return [path.parent for path in root.glob("**/INPUTS") if is_stage(path.parent, root)]


def read_attempts(root: Path) -> list[dict[str, Any]]:
    """Return the attempts that provenance.json names, none where there is no such file.

    Raises StageError when it cannot be read.
    """
    path = root / "provenance.json"
    if not path.exists():
        return []
    try:
        attempts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["attempts"]
        for attempt in attempts:
            if not isinstance(attempt["devices"]["gpus"], list):
                raise TypeError("devices.gpus is not a list")
            time.strptime(attempt.get("started", "1970-01-01T00:00:00Z"), STARTED_FORMAT)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path}: cannot be read ({error}); it was damaged from outside: remove it, then run "
            "again"
        ) from error
    return attempts


def read_done(stage_path: Path) -> StageDone | None:
    """Return the DONE.json of a stage directory, None when there is none.

    Raises StageError for one that cannot be read.
    """
    remedy = "it was damaged from outside: move it away, then run again to finish the stage anew"
    return read_record(stage_path / "DONE.json", StageDone, remedy)


def finished_stages(root: Path) -> list[StageDone]:
    """Return the finished stages of a run in the order in which they were begun."""
    return [done for _, done in finished_folders(root)]


def finished_folders(root: Path) -> list[tuple[Path, StageDone]]:
    """Return the finished stages with their directories, in the order in which they were begun.

    What stands under another name than its own is a copy, and none of them.
    """
    found = (own_stage(path.parent, root) for path in root.glob("**/DONE.json"))
    stages = [(root / done.stage, done) for done in found if done is not None]
    return sorted(stages, key=lambda pair: (pair[1].started_unix_s, pair[1].stage))


def check_outputs(path: Path, done: StageDone, *, reads: bool = True) -> None:
    """Raise StageError when what a finished stage in ``path`` wrote is not there any more.

    A trained model is left out: it is checked when it is used, and may be removed before.
    """
    kept = {name: text for name, text in done.outputs.items() if not _is_model(name)}
    damage = find_damage(path, kept, done.sizes, reads=reads)
    if damage is not None:
        raise StageError(explain_damage(damage, path))


def check_run(root: Path, *, reads: bool = True) -> None:
    """Raise StageError when an output of a finished stage of a run is not as it was written.

    Without ``reads`` sizes alone are compared.
    """
    for path, done in finished_folders(root):
        check_outputs(path, done, reads=reads)


def check_model(ref: ModelRef) -> None:
    """Raise StageError when a model on this host is gone or not as it was written."""
    for text in filter(None, (ref.path, ref.adapter)):
        folder = Path(text)
        if not folder.is_dir():
            if folder.is_absolute() and folder.name == MODEL_DIR:
                raise StageError(explain_damage(Damage(folder, "is gone"), folder.parent))
            continue  # a hub's, or for whoever loads it to judge
        done = read_done(folder.parent) if folder.name == MODEL_DIR else None
        outputs = done.outputs if done else ()
        names = [name for name in outputs if _is_model(name) or name == LOGPROBS_FILE]
        damage = find_cut_weights(folder)
        if done is not None and names:
            digests = {name: done.outputs[name] for name in names}
            damage = find_damage(folder.parent, digests, done.sizes)
        if damage is not None:
            raise StageError(explain_damage(damage, folder.parent if names else folder))


def explain_damage(damage: Damage, folder: Path) -> str:
    """Return the line about a damaged file of the stage, or model, in ``folder``."""
    return (
        f"{damage.path}: {damage.what}; put it back from a copy, or move {folder} away and run "
        "again to make it anew"
    )


def is_stage(path: Path, root: Path) -> bool:
    """Tell whether a directory is a stage of the run in ``root``, finished or not, and no copy."""
    return _may_be_stage(path, path.relative_to(root).as_posix())


def own_stage(path: Path, root: Path) -> StageDone | None:
    """Return the DONE.json of a directory that is a finished stage of the run, and no copy."""
    name = path.relative_to(root).as_posix()
    done = read_done(path) if _may_be_stage(path, name) else None
    return done if done is not None and done.stage == name else None


def _is_model(name: str) -> bool:
    return name.startswith(f"{MODEL_DIR}/")


def _may_be_stage(path: Path, name: str) -> bool:
    """Tell whether a directory is not a stage moved aside, and is called as it says itself.

    One begun by a release that wrote no name into INPUTS is a copy where DONE.json names another
    stage, and that is there.
    """
    _, _, said = _read_or_empty(path / "INPUTS").partition(" ")
    if not said.strip():
        with contextlib.suppress(ValidationError):
            said = StageDone.model_validate_json(_read_or_empty(path / "DONE.json")).stage
        root = path.parents[name.count("/")]
        said = said if (root / said / "DONE.json").exists() else ""
    return ".superseded-" not in name and said.strip() in ("", name)


def read_marker(path: Path) -> str:
    """Return the digest in INPUTS; behind it stands the stage's name, except in older runs."""
    return _read_or_empty(path).partition(" ")[0]


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""
