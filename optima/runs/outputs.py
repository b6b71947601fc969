"""What finished stages wrote, and whether it is still there as it was written.

DONE.json names every output with its size and a digest of its bytes. Whoever uses one compares: a
file that was cut, emptied, changed or removed since is an error, never a smaller result. A file is
read for its digest once per process, as long as its size, times and inode stay the same; weights
too (about 1 s per GB, of bytes that a server is about to read anyway). Weights that no stage here
wrote have no digest; of those the size is held against what their own header says.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.bin")  # files of them; of two formats the first counts
_LARGEST_HEADER = 100_000_000  # the format's own limit, in bytes


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
    """Return the first weights in a directory that are shorter or longer than they say.

    A file without a plausible header is left to whoever loads it, unless it is empty.
    """
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError):
            return Damage(index, "is not an index of weights")
        for shard in sorted(shards):
            if not (folder / shard).is_file():
                return Damage(folder / shard, "is gone")
    for path in weight_files(folder):
        size = path.stat().st_size
        if size == 0:
            return Damage(path, "is empty")
        said = _stated_size(path) if path.suffix == ".safetensors" else None
        if said is not None and said != size:
            return Damage(path, f"has {size:,} bytes, {said:,} by its own header")
    return None


@functools.lru_cache(maxsize=100_000)
def _digest(path: str, *_: int) -> str:
    with Path(path).open("rb") as file:
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
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
