"""Records on disk that survive whatever ends the process that writes them.

Whole files are written under a temporary name, synced and renamed; files of records that grow are
appended to and lose at most a torn last line to a crash.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Self, TypeVar

from pydantic import ValidationError

from optima.errors import StageError
from optima.types import Record

R = TypeVar("R", bound=Record)


def write_text(path: Path, text: str) -> None:
    """Write a whole file so that a crash leaves either the old content or the new."""
    with disk_errors(path), atomic_writer(path) as file:
        file.write(text)


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write one JSON line per record, atomically; return how many."""
    n = 0
    with disk_errors(path), atomic_writer(path) as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            n += 1
    return n


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a JSON Lines file one by one; StageError names a line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_record(line, kind, f"{path}:{number}")


def parse_record(line: bytes, kind: type[R], place: str) -> R:
    """Return the record of a line; StageError names its ``place`` when it is none."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise StageError(
            f"{place}: no {kind.__name__} record ({reason}); remove the line or "
            "the stage's directory, then run again"
        ) from error


class RecordAppender:
    """Appends records to a file that survives crashes: a torn last line is cut on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            repair_tail(path)
            self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with disk_errors(self.path), contextlib.closing(self._file):
            self._file.flush()
            os.fsync(self._file.fileno())

    def append(self, record: Record) -> None:
        """Append one record; it is with the kernel when this returns, so a SIGKILL keeps it."""
        with disk_errors(self.path):
            self._file.write(record.model_dump_json().encode() + b"\n")
            self._file.flush()


def repair_tail(path: Path) -> int:
    """Cut a last line that a crash left without its newline; return the bytes cut."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
    return size - end


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[str]]:
    """Open a temporary file beside ``path``; sync it and rename it on success."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one clear StageError; nothing finished is lost."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "the disk quota is used up; free some space",
            errno.EROFS: "the file system is read-only; give another --run-dir",
            errno.EACCES: "no permission to write; give another --run-dir",
            errno.EFBIG: "the file-size limit is reached; raise it (ulimit -f)",
        }
        if error.errno not in reasons:
            raise
        raise StageError(f"{path}: {reasons[error.errno]}, then run again to go on") from error
