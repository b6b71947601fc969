"""Raw rows of a split, from native files (JSON Lines, JSON, parquet) or the dataset hub.

A line that is not a JSON object is handed on as a row with its reason, so that it is counted like
any other malformed row; a missing or unreadable file is one ``DataError``.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optima.errors import DataError
from optima.tasks.task import DataSection, HubSource, MalformedRowError, Row, Task, describe

PARQUET_BATCH = 256  # rows held at once as Python objects
_PARTS = re.compile(r"-\d+-of-(\d+)\b")  # as the hub names the files of a split
N_LISTED = 20  # names of a directory in a message
PACKED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as read, or the reason why it is none, with its place (file and line)."""

    place: str
    value: Any
    error: str | None = None

    def checked(self) -> Row:
        """Return the row; raises ``MalformedRowError`` when it is not an object of fields."""
        if self.error is not None:
            raise MalformedRowError(self.error)
        if not isinstance(self.value, Mapping):
            shown = "null" if self.value is None else describe(self.value)
            raise MalformedRowError(f"{shown} is not an object of fields")
        return self.value


def read_path(task: Task, data: DataSection, split: Literal["train", "test"]) -> Iterator[RawRow]:
    """Return the rows of a split below ``data.path``, files in sorted order."""
    files = find_files(task, data, split)
    return (row for file in files for row in read_file(file))


def find_files(task: Task, data: DataSection, split: Literal["train", "test"]) -> list[Path]:
    """Return the files of a split below ``data.path``; raises ``DataError`` when there are none."""
    folder = Path(os.path.expanduser(data.path or ""))  # noqa: PTH111  raises nothing
    if folder.is_file():
        raise DataError(
            f"data.path: {folder} is a file; set data.path={folder.parent} and name the file in "
            f"data.{split}_file={folder.name}"
        )
    if not folder.is_dir():
        raise DataError(
            f"data.path: {folder} is not a directory; name the directory with the files of "
            f"{task.name}, or leave data.path out to read the dataset hub"
        )
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:N_LISTED]) or "nothing"
    named = data.train_file if split == "train" else data.test_file
    if named is not None:
        if not (folder / named).is_file():
            what = "is a directory" if (folder / named).is_dir() else "does not exist"
            raise DataError(
                f"data.{split}_file: {folder / named} {what}; name a file, there is {there}"
            )
        return [folder / named]
    patterns = task.train_files if split == "train" else task.test_files
    for pattern in patterns:
        if files := sorted(folder.glob(pattern)):
            _check_files(files, split)
            return files
    raise DataError(
        f"data.path: {folder} has no {split} file of {task.name}; one of {', '.join(patterns)} is "
        f"expected, there is {there}: add it, or name another file in data.{split}_file"
    )


def _check_files(files: Sequence[Path], split: str) -> None:
    """Raise DataError where one of a split's files is none, or one of its parts is missing."""
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{file}: is no file (a directory, a pipe or a link to nothing); put the rows "
                f"there, or name another file in data.{split}_file"
            )
    parts = Counter((file.parent, part[1]) for file in files if (part := _PARTS.search(file.name)))
    for (folder, n), found in parts.items():
        if found < int(n):
            raise DataError(
                f"{folder}: holds {found} of the {int(n)} parts of {split} that end with -of-{n}; "
                "fetch the others"
            )


def read_file(file: Path) -> Iterator[RawRow]:
    """Yield the rows of one file by its suffix: .jsonl, .json or .parquet."""
    try:
        with file.open("rb") as stream:
            first = stream.read(2)
        if not first:
            raise DataError(f"{file}: is empty; write the rows to it, or name another file")
        if first in PACKED:
            raise DataError(f"{file}: is packed ({PACKED[first]}); unpack it")
        if file.suffix == ".parquet":
            yield from _read_parquet(file)
        elif file.suffix == ".json":
            yield from _read_json(file)
        else:
            yield from _read_lines(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def read_hub(task: Task, data: DataSection, split: Literal["train", "test"]) -> Iterator[RawRow]:
    """Return the rows of a split on the hub; raises ``DataError`` when it cannot be reached."""
    if task.hub is None:
        raise DataError(f"task: {task.name} has no dataset on the hub; set data.path")
    source = HubSource(
        dataset_id=data.hub_id or task.hub.dataset_id,
        configs=data.hub_configs or task.hub.configs,
        train_split=data.train_split or task.hub.train_split,
        test_split=data.test_split or task.hub.test_split,
        revision=data.hub_revision or (task.hub.revision if data.hub_id is None else None),
    )
    name = source.train_split if split == "train" else source.test_split
    return read_hub_split(source, name)


def read_hub_split(source: HubSource, split: str) -> Iterator[RawRow]:
    """Yield the rows of ``split`` over all configurations of ``source``."""
    try:
        import datasets  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(
            f"hub dataset {source.dataset_id}: the package datasets is not installed; "
            "pip install datasets, or set data.path to a directory with the rows"
        ) from error
    except Exception as error:  # a variable such as HF_HUB_ETAG_TIMEOUT that is no number
        raise DataError(
            f"hub dataset {source.dataset_id}: the package datasets cannot be imported "
            f"({type(error).__name__}: {error}); check the variables HF_*, or set data.path to a "
            "directory with the rows"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    for config in source.configs:
        place = f"{source.dataset_id}/{config} {split}"
        try:
            rows = datasets.load_dataset(
                source.dataset_id, config, split=split, revision=source.revision
            )
        except Exception as error:  # offline, no such id, refused, disk full: many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise DataError(
                f"hub dataset {place}: cannot be loaded ({type(error).__name__}: {reason}); check "
                "the network, data.hub_id, data.hub_configs, data.hub_revision and its splits "
                "(data.train_split, data.test_split), or set data.path to a directory with the "
                "rows"
            ) from error
        for index, row in enumerate(rows):
            yield RawRow(f"{place}[{index}]", row)


def read_json(text: bytes | str) -> Any:
    """Return what JSON of others holds; ValueError for no JSON, and for an object with a key twice.

    Python takes the last of the two, so which one was meant would go unsaid.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise ValueError(f"the key {describe(key)} is given twice in {describe(found)}")
    return found


def _read_lines(file: Path) -> Iterator[RawRow]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{file.name} line {number}"
            try:
                yield RawRow(place, read_json(line))
            except ValueError as error:  # neither UTF-8 nor JSON, or a key twice
                yield RawRow(place, None, f"is not JSON ({error})")
            except RecursionError:
                yield RawRow(place, None, "is nested too deeply")


def _read_json(file: Path) -> Iterator[RawRow]:
    """Yield the elements of a list, of the list in a field ``data``, or the one object there is."""
    try:
        value = read_json(file.read_bytes())
    except ValueError as error:
        if "Extra data" in str(error):  # JSON Lines under the name .json
            yield from _read_lines(file)
            return
        raise DataError(f"{file}: is not JSON ({error}); repair the file") from error
    except RecursionError as error:
        raise DataError(f"{file}: is nested too deeply; repair the file") from error
    if isinstance(value, Mapping):
        inner = value.get("data", value.get("Data"))
        value = inner if isinstance(inner, list) else [value]
    if not isinstance(value, list):
        raise DataError(f"{file}: {describe(value)} is not a list of rows")
    for index, row in enumerate(value):
        yield RawRow(f"{file.name}[{index}]", row)


def _read_parquet(file: Path) -> Iterator[RawRow]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(
            f"{file}: the package pyarrow is not installed; pip install pyarrow, or convert the "
            "file to JSON Lines"
        ) from error
    try:
        with parquet.ParquetFile(file) as table:
            index = 0
            for batch in table.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    yield RawRow(f"{file.name}[{index}]", row)
                    index += 1
    except (ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as parquet ({error}); write it anew") from error
