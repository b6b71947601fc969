"""What a run directory holds, read: its attempts, its stages, and whether what they wrote is there.

Reading changes nothing and takes no lock. Whatever else stands in the directory is left alone: a
stage is one by the name in its own INPUTS and DONE.json, so a copy called ``iter_0.old`` is none.

DONE.json names every output with its size and a digest of its bytes, and has a checksum of itself.
Whoever uses one compares: a file that was cut, emptied, changed or removed since is an error, never
a smaller result. A file is read for its digest once per process, as long as its size, times and
inode stay the same; weights too (about 1 s per GB, of bytes that a server is about to read anyway).
Weights that no stage here wrote have no digest; of those the size is held against what their own
header says.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from optima import seeding
from optima.errors import StageError, UsageError
from optima.recipe.schema import Recipe
from optima.recipe.sections import base_url
from optima.records import naming, read_record
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR
from optima.types import EndpointRef, ModelRef, Record

logger = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.bin")  # files of them; of two formats the first counts
_LARGEST_HEADER = 100_000_000  # the format's own limit, in bytes
_LARGEST_POINTER, _LFS_POINTER = 1024, b"version https://git-lfs"  # what a clone without LFS holds
_Named = TypeVar("_Named")
_Read = TypeVar("_Read")
GENERATED, DISCARDED = "tokens/generated", "tokens/discarded"  # metrics of stages
STARTED_FORMAT = "%Y-%m-%dT%H:%M:%SZ"  # of an attempt, in UTC


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what its stage wrote, and what is the matter with it."""

    path: Path
    what: str


def find_files(folder: Path, outputs: Iterable[Path]) -> dict[str, Path]:
    """Return the files that ``outputs`` are, or hold where they are directories, by their names.

    Names are relative to ``folder``; hidden files are left out.
    """
    found: dict[str, Path] = {}
    for output in outputs:
        inside = (
            sorted(p for p in output.rglob("*") if p.is_file()) if output.is_dir() else [output]
        )
        for path in inside:
            name = path.relative_to(folder)
            if not any(part.startswith(".") for part in name.parts):
                found[name.as_posix()] = path
    return found


def file_digest(path: Path) -> str:
    """Identify the bytes of a file; they are read once per process."""
    found = path.stat()
    return _digest(
        os.fspath(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def find_damage(
    folder: Path, digests: Mapping[str, str], sizes: Mapping[str, int], *, reads: bool = True
) -> Damage | None:
    """Return the first output in ``folder`` that is not as it was written.

    ``digests`` and ``sizes`` are those it was written with, by name (older stages have no sizes).
    Without ``reads`` sizes alone are compared.
    """
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return Damage(path, "is gone")
        size, was = path.stat().st_size, sizes.get(name)
        if was is not None and size != was:
            return Damage(path, f"has {size:,} bytes, {was:,} when it was written")
        if reads and file_digest(path) != digest:
            return Damage(path, "has changed since it was written")
    return None


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in a directory."""
    return sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))


def find_cut_weights(folder: Path) -> Damage | None:
    """Return what keeps the weights in a directory from being loaded, of files gone or cut.

    Of two formats the first that is there counts, as for those who load it. A file without a
    plausible header is left to them, unless it is empty or a pointer of Git LFS.
    """
    for pattern in WEIGHTS:
        indices, files = sorted(folder.glob(f"{pattern}.index.json")), sorted(folder.glob(pattern))
        if indices or files:
            found = (*map(_missing_shard, indices), *map(_cut, files))
            return next(filter(None, found), None)
    return Damage(folder, f"has no weights ({' or '.join(WEIGHTS)})")


def _missing_shard(index: Path) -> Damage | None:
    """Return the first file that an index of weights names and that is not beside it."""
    try:
        shards = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Damage(index, "is not an index of weights")
    if any(Path(shard).name != shard for shard in shards):
        return Damage(index, "names files that are not beside it")
    missing = (index.with_name(shard) for shard in sorted(shards))
    return next((Damage(path, "is gone") for path in missing if not path.is_file()), None)


def _cut(path: Path) -> Damage | None:
    """Return what is the matter with a file of weights, as far as its size and beginning tell."""
    if not path.is_file():
        return Damage(path, "is no file" if path.exists() else "is a link to nothing")
    size = path.stat().st_size
    if size == 0:
        return Damage(path, "is empty")
    if size <= _LARGEST_POINTER and path.read_bytes().startswith(_LFS_POINTER):
        return Damage(path, "is a pointer of Git LFS, without the weights (`git lfs pull`)")
    said = _stated_size(path) if path.suffix == ".safetensors" else None
    if said is not None and said != size:
        return Damage(path, f"has {size:,} bytes, {said:,} by its own header")
    return None


@functools.lru_cache(maxsize=100_000)
def _digest(path: str, *_: int) -> str:
    with naming(Path(path)), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


def _stated_size(path: Path) -> int | None:
    """Return the size that the header of a safetensors file gives; None where there is none."""
    with path.open("rb") as file:
        start = file.read(8)
        n_header = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= n_header <= _LARGEST_HEADER:
            return None
        header = file.read(n_header)
    if header[:1] not in (b"{", b""):
        return None
    if len(header) < n_header:
        return 8 + n_header  # at least: the file ends inside its header
    try:
        tensors: dict[str, Any] = json.loads(header)
        ends = [row["data_offsets"][1] for key, row in tensors.items() if key != "__metadata__"]
        return 8 + n_header + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


class StageDone(Record):
    """DONE.json of a stage: ``outputs`` and ``sizes`` have a digest and the bytes of each file.

    ``checksum`` is of all the rest, empty in those that earlier releases wrote.
    """

    schema_version: Literal[1] = 1
    stage: str
    inputs: str
    outputs: dict[str, str]
    sizes: dict[str, int] = Field(default_factory=dict)
    started_unix_s: float
    seconds: float
    metrics: dict[str, float]
    checksum: str = ""

    @model_validator(mode="before")
    @classmethod
    def _is_as_written(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("checksum", "") not in ("", _checksum(tree)):
            raise ValueError("it has changed since it was written")
        return tree

    def sealed(self) -> "StageDone":
        """Return the same with its checksum."""
        return self.model_copy(update={"checksum": _checksum(json.loads(self.model_dump_json()))})


def _checksum(tree: Mapping[str, Any]) -> str:
    """Identify what stands in a DONE.json, by values and not by letters."""
    return seeding.digest(
        json.dumps({k: v for k, v in tree.items() if k != "checksum"}, sort_keys=True)
    )


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
    return [path.parent for path in find_below(root, "INPUTS") if is_stage(path.parent, root)]


def find_below(root: Path, name: str) -> Iterator[Path]:
    """Yield what is called ``name`` in ``root`` and below, of no folder that is a link.

    Raises OSError for a folder that cannot be looked into; one that goes meanwhile is none.
    """

    def fail(error: OSError) -> None:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise error

    for folder, folders, names in os.walk(root, onerror=fail):
        if name in names or name in folders:
            yield Path(folder, name)


def read_attempts(root: Path) -> list[dict[str, Any]]:
    """Return the attempts that provenance.json names, none where there is no such file.

    Raises StageError when it cannot be read.
    """
    path = root / "provenance.json"
    if not os.path.lexists(path):
        return []
    try:
        with naming(path):
            text = path.read_text(encoding="utf-8")
        attempts: list[dict[str, Any]] = json.loads(text)["attempts"]
        for attempt in attempts:
            if not isinstance(attempt["devices"]["gpus"], list):
                raise TypeError("devices.gpus is not a list")
            time.strptime(attempt.get("started", "1970-01-01T00:00:00Z"), STARTED_FORMAT)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    found = (own_stage(path.parent, root) for path in find_below(root, "DONE.json"))
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

    Without ``reads`` sizes alone are compared. What lies where evaluations do and is none of this
    run's, such as one that was renamed, is named in a warning, as tables leave it out.
    """
    begun = {path.relative_to(root).parts[:2] for path in stage_folders(root)}
    for path in sorted(root.glob("evaluate/[!.]*")):
        if path.relative_to(root).parts not in begun and ".superseded-" not in path.name:
            _warn_of_foreign(path)
    for path, done in finished_folders(root):
        check_outputs(path, done, reads=reads)


@functools.cache  # a live page looks again and again
def _warn_of_foreign(path: Path) -> None:
    logger.warning("%s: is no evaluation of this run, and left out", path)


def own_starts(recipe: Recipe) -> dict[str, ModelRef]:
    """Return what policies begin as that do not begin as ``model.path``, by their names."""
    starts: dict[str, ModelRef] = {}
    base = placed_model(recipe.model.path)
    for name, section in recipe.policies.items():
        if section.endpoint is not None:
            starts[name] = EndpointRef(
                path=base if section.path is None else placed_model(section.path),
                policy=name,
                url=base_url(section.endpoint),
                name=section.model,
            )
        elif section.path is not None:
            starts[name] = ref_in(Path(section.path), base)
    return starts


def placed_model(path: str) -> str:
    """Return where a model is: the whole path of a directory, or the id of one of a hub."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def ref_in(folder: Path, base: str) -> ModelRef:
    """Return the model in a directory: an adapter over ``base``, or a whole one."""
    place = placed_model(str(folder))
    if (folder / "adapter_config.json").is_file():
        return ModelRef(path=base, adapter=place)
    return ModelRef(path=place)


def check_model(ref: ModelRef) -> None:
    """Raise StageError when a model on this host is gone or not as it was written."""
    for text in ref.places:
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
        if damage is not None and not names:  # of any origin
            raise StageError(
                f"{damage.path}: {damage.what}; fetch the model again, or put it back from a copy"
            )
        if damage is not None:
            raise StageError(explain_damage(damage, folder.parent))


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

    A copy is called otherwise in INPUTS and in DONE.json, of which one may be damaged. One begun by
    a release that wrote no name into INPUTS is a copy where DONE.json names another stage, and that
    is there.
    """
    said = _read_or_empty(path / "INPUTS").partition(" ")[2].strip()
    if said != name:
        done = ""
        with contextlib.suppress(ValidationError):
            done = StageDone.model_validate_json(_read_or_empty(path / "DONE.json")).stage
        root = path.parents[name.count("/")]
        if done == name or not (said or (done and (root / done / "DONE.json").exists())):
            said = name
    return ".superseded-" not in name and said == name


def read_marker(path: Path) -> str:
    """Return the digest in INPUTS; behind it stands the stage's name, except in older runs."""
    return _read_or_empty(path).partition(" ")[0]


def _read_or_empty(path: Path) -> str:
    try:
        with naming(path):
            return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            return ""
        raise
