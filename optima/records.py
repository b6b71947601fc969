"""Records on disk that survive whatever ends the process that writes them.

Whole files are written under a temporary name, synced and renamed; files of records that grow are
appended to and lose at most a torn last line to a crash.
"""

import contextlib
import errno
import importlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from pydantic import ValidationError

from optima.errors import OptimaError, StageError, UsageError
from optima.types import Record

R = TypeVar("R", bound=Record)
NAME_BYTES = 255  # the most that Linux takes
_IN_ITS_PLACE = (errno.EISDIR, errno.ELOOP)  # no file, but a directory, a link to itself
_DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
THEN = ", then run again to go on"  # after what a writer is told to do
PATH_BYTES = 3840  # Linux takes 4,095; what stands below needs some


def write_text(path: Path, text: str) -> None:
    """Write a whole file so that a crash leaves either the old content or the new."""
    with atomic_writer(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file of bytes like ``write_text``."""
    with atomic_writer(path) as file:
        file.buffer.write(content)


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write one JSON line per record, atomically; return how many."""
    n = 0
    with atomic_writer(path) as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            n += 1
    return n


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a JSON Lines file one by one; StageError names a line that is not one.

    A line ends at a line feed and nowhere else: texts may hold other characters that Python takes
    for ends of lines, such as U+2028 and U+0085.
    """
    with naming(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_record(line, kind, f"{path}:{number}")


def parse_record(line: bytes, kind: type[R], place: str) -> R:
    """Return the record of a line; StageError names its ``place`` when it is none."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise StageError(
            f"{place}: not a {kind.__name__} record ({reason}); put the file back "
            "or move its directory away, then run again"
        ) from error


def read_record(path: Path, kind: type[R], remedy: str) -> R | None:
    """Return the one record that a file holds, None where there is no file.

    Raises StageError, which ends with ``remedy``, when it is none; what the disk refuses is raised
    as it is, since what lies there may be whole.
    """
    try:
        with naming(path):
            return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        if isinstance(error, OSError) and error.errno not in _IN_ITS_PLACE:
            raise
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise StageError(f"{path}: cannot be read ({reason}); {remedy}") from error


class RecordAppender:
    """Appends records to a file that survives crashes: a torn last line is cut on opening.

    What is no file, such as ``/dev/stdout`` or a named pipe, is written into.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            self._is_file = path.is_file() or not path.exists()
            if self._is_file:
                repair_tail(path)
            self._file = path.open("ab" if self._is_file else "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with disk_errors(self.path), contextlib.closing(self._file):
            self._file.flush()
            if self._is_file:
                os.fsync(self._file.fileno())

    def append(self, record: Record) -> None:
        """Append one record; it is with the kernel when this returns, so a SIGKILL keeps it."""
        with disk_errors(self.path):
            self._file.write(record.model_dump_json().encode() + b"\n")
            self._file.flush()


def check_holds(path: Path, kind: type[R], option: str) -> None:
    """Raise UsageError where a user's file, if there is one, holds more than whole records.

    So nothing else is added to, and no line of it is cut as one that a crash has torn.
    """
    if not path.is_file():
        return
    try:
        for _ in read_records(path, kind):
            pass
        content = path.read_bytes()
    except StageError as error:
        place, reason = str(error).removeprefix(f"{path}:").split("; ")[0].split(": ", 1)
        raise UsageError(
            f"{option} {path}: line {place}: {reason}; name another file, or remove the line"
        ) from error
    if content and not content.endswith(b"\n"):
        raise UsageError(
            f"{option} {path}: its last line has no end; add one, or name another file"
        )


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
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """Open a temporary file beside ``path``; sync it and rename it on success.

    What is no file, such as ``/dev/stdout`` or a named pipe, is written into and stays what it is.
    Raises StageError when the disk refuses it.
    """
    if is_stream(path):
        with disk_errors(path), path.open("w", encoding="utf-8") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # a disk that went read-only says so below us
                temporary.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Tell whether what is written there goes somewhere else, as to a pipe."""
    return path.parent in _DEVICES or (path.exists() and not path.is_file() and not path.is_dir())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of reading name the file; the system says it only of one that does not open."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one clear StageError; nothing finished is lost."""
    try:
        yield
    except OSError as error:
        said = explain_disk_error(error, path)
        if said is None:
            raise
        raise StageError(said) from error


def explain_disk_error(error: OSError, path: Path | None = None) -> str | None:
    """Say in one line what the disk refused and what helps; None for any other error.

    ``path`` is what was written, where the error itself does not know it.
    """
    reasons = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EROFS: "the file system is read-only; make it writable, or give another directory",
        errno.EPERM: "not permitted; permit it, or give another directory",
        errno.EFBIG: "the file-size limit is reached; raise it (ulimit -f)",
        errno.EIO: "the disk gives an input/output error; check it, or give another directory",
        errno.ESTALE: "the network file system lost it; mount it again",
        errno.ENXIO: "the device is gone; attach it again, or give another directory",
        errno.ENODEV: "the device is gone; attach it again, or give another directory",
        errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
        errno.ENFILE: "too many open files on this host; close some",
        errno.ENOTDIR: "a file stands where a directory belongs; move it away",
        errno.EEXIST: "a file stands where a directory belongs; move it away",
        errno.EISDIR: "a directory stands where a file belongs; move it away",
        errno.EBUSY: "it is in use by the system; give another",
        errno.ELOOP: "it is a link to itself; remove it, or give another directory",
        errno.ETIMEDOUT: "the file system does not answer; check it, or give another directory",
        errno.EHOSTDOWN: "the network file system is down; mount it again",
    }
    named = error.filename2 or error.filename
    place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
    if path is not None and place is not None and place.name.startswith(f".{path.name}."):
        place = path  # the error knows the temporary name
    reason = reasons.get(error.errno or 0)
    if error.errno == errno.EACCES:
        reason = f"{_denied(place)}; give it, or give another directory"
    if error.errno == errno.ENOENT and place is not None and not place.parent.exists():
        reason = "its folder does not exist; make it"
    if reason is None:
        return None
    if error.errno == errno.ENOSPC and place is not None and has_no_inodes(place):
        reason = "the disk has no inodes left; remove some files"
    return f"{place or 'standard output'}: {reason}{THEN}"


def _denied(path: Path | None) -> str:
    """Say what this user lacks, and at which folder above the path, which is all one can see."""
    parents = () if path is None else reversed(path.absolute().parents)
    closed = next((place for place in parents if not os.access(place, os.X_OK)), None)
    is_closed = closed is not None and os.access(closed, os.F_OK)
    return "no permission" + (f" (user {_user()} may not enter {closed})" if is_closed else "")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # in a container
        return str(os.geteuid())


def has_no_inodes(path: Path) -> bool:
    """Tell whether the file system of ``path`` counts files and has room for none."""
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    with contextlib.suppress(OSError):
        found = os.statvfs(place)
        return found.f_files > 0 and found.f_favail == 0
    return False


def make_folder(path: Path, option: str, mode: int = 0o777) -> None:
    """Make a directory that an option names; UsageError where it can be none."""
    with disk_errors(path):
        try:
            path.mkdir(mode, parents=True, exist_ok=True)
        except PermissionError as error:
            raise UsageError(
                f"{option} {path}: {_denied(path)}; give it, or give another"
            ) from error
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise UsageError(
                f"{option} {path}: cannot be a directory ({error.strerror}); give another"
            ) from error


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a temporary directory, which stays only where a failure may name a log in it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    except BaseException as error:
        if not isinstance(error, OptimaError) or isinstance(error, UsageError):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def move_aside(path: Path) -> Path:
    """Rename a file or directory to ``NAME.superseded-N``, the first that is free; return it."""
    n = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.superseded-{n}")):
        n += 1
    return path.rename(aside)


def clear_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in a directory: ``.NAME.PID.tmp`` of no process."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def check_path(path: str | Path, option: str) -> None:
    """Raise UsageError for what can name no directory or file of ours, whatever is there.

    That is nothing, a line break or another control character, bytes that are not UTF-8, a link to
    itself, what lies in a folder that this user may not enter, a name of over 255 bytes, or a path
    of over 4,095.
    """
    text = os.fspath(path)
    shown = text.encode("utf-8", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)
    place = f"{option} {shown if len(shown) <= 60 else f'{shown[:57]}...'}"
    if not text.strip():
        raise UsageError(f"{option} {text!r}: is empty; name a directory or file")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise UsageError(f"{place}: has a line break or control character; give another name")
    try:
        names = [name.encode() for name in text.split("/")]
    except UnicodeEncodeError as error:
        raise UsageError(f"{place}: is not UTF-8 text; give another name") from error
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            Path(path).stat()
        except PermissionError as error:
            raise UsageError(f"{place}: {_denied(Path(path))}; give it, or give another") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UsageError(
                    f"{place}: is a link to itself; remove it, or give another"
                ) from error
    if max(map(len, names)) > NAME_BYTES:
        raise UsageError(f"{place}: a name in it has over {NAME_BYTES} bytes; give a shorter one")
    if len(os.fsencode(os.path.abspath(text))) > PATH_BYTES:  # noqa: PTH100  no link is followed
        raise UsageError(f"{place}: has over {PATH_BYTES} bytes; give a shorter one")


def rows_to_frame(rows: list[dict[str, Any]]) -> Any:
    """Return lines of a table as a pandas data frame; UsageError where pandas is not installed."""
    try:
        return importlib.import_module("pandas").DataFrame(rows)  # nothing else of ours needs it
    except ImportError as error:
        raise UsageError(
            "pandas: is not installed here; `pip install pandas`, or go through evaluation(label)"
        ) from error
