"""A run is a directory that one process owns; this module is its layout.

    recipe.yaml  provenance.json  metrics.jsonl  LOCK  logs/attempt_N/  <part>/<stage>/DONE.json

A stage is finished when its DONE.json, written last, names the digest of the inputs it was made
from. Resume skips what is finished.

What a stage has cost so far stands beside it in SPENT.json, rewritten every second, so that the
account of a stage counts every attempt, however the one before it ended.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self

from pydantic import ValidationError

from optima.errors import RunBusyError, StageError, UsageError
from optima.recipe.loading import dump_recipe, load_recipe
from optima.recipe.schema import Recipe
from optima.records import disk_errors, write_text
from optima.seeding import digest
from optima.types import Record

# What may differ between two attempts of a run: where it runs and when it gives up, not what it
# computes.
RESUMABLE_SECTIONS = ("serving",)
RESUMABLE_FIELDS = ("conversation.max_error_rate", "select.min_share", "pairs.min_share")
SPENT_FILE = "SPENT.json"
ACCOUNT_S = 1.0  # between two accounts of an open stage; a SIGKILL loses at most as much
GENERATED, DISCARDED = "tokens/generated", "tokens/discarded"


class StageDone(Record):
    """DONE.json of a stage."""

    schema_version: Literal[1] = 1
    stage: str
    inputs: str
    outputs: dict[str, str]
    started_unix_s: float
    seconds: float
    metrics: dict[str, float]


class Spent(Record):
    """SPENT.json of an unfinished stage: what all its attempts took.

    ``n_tokens`` are tokens that were generated and stand in no record: those of conversations under
    way and of those that an interruption or a failure took back.
    """

    schema_version: Literal[1] = 1
    seconds: float = 0.0
    n_tokens: int = 0


@dataclass
class Stage:
    """One stage of a run: its directory, whether it is finished, and how it is finished.

    ``before`` is what its earlier attempts spent.
    """

    name: str
    path: Path
    inputs: str
    done: StageDone | None
    started: float = field(default_factory=time.time)
    before: Spent = field(default_factory=Spent)
    n_tokens: int = 0

    def count_unkept(self, n: int) -> None:
        """Count ``n`` generated tokens; once a record holds them, count them back with ``-n``."""
        self.n_tokens += n

    def spent(self) -> Spent:
        """Return what all attempts of the stage took until now."""
        return Spent(
            seconds=round(self.before.seconds + time.time() - self.started, 3),
            n_tokens=self.before.n_tokens + self.n_tokens,
        )

    def write_spent(self) -> None:
        """Write SPENT.json; a full disk is left to those who write results."""
        temporary = self.path / f".{SPENT_FILE}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):
            temporary.write_text(self.spent().model_dump_json() + "\n", encoding="utf-8")
            temporary.replace(self.path / SPENT_FILE)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics the stage was finished with; empty before."""
        return dict(self.done.metrics) if self.done else {}

    @property
    def output_digest(self) -> str:
        """Identify what the stage made; an input of the stages after it."""
        if self.done is None:
            raise StageError(f"stage {self.name}: used before it finished")
        return digest(*(f"{k}={v}" for k, v in sorted(self.done.outputs.items())))

    def finish(
        self, outputs: Iterable[Path] = (), metrics: Mapping[str, float] | None = None
    ) -> None:
        """Write DONE.json: digests of ``outputs`` (files; of a directory, its files' sizes).

        Seconds are those of all attempts. Where ``metrics`` say what was generated, what is in no
        record is added as ``tokens/discarded``.
        """
        spent, figures = self.spent(), dict(metrics or {})
        if GENERATED in figures:
            figures[DISCARDED] = float(spent.n_tokens)
        done = StageDone(
            stage=self.name,
            inputs=self.inputs,
            outputs={str(p.relative_to(self.path)): _content_digest(p) for p in outputs},
            started_unix_s=round(self.started, 3),
            seconds=spent.seconds,
            metrics=figures,
        )
        write_text(self.path / "DONE.json", done.model_dump_json(indent=1) + "\n")
        self.done = done
        (self.path / SPENT_FILE).unlink(missing_ok=True)


class RunDir:
    """A run directory, owned by this process while the context is open.

    Raises RunBusyError when another process owns it, and UsageError when it holds a run of
    another recipe (see ``check_same_recipe``).
    """

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root = root
        self.recipe = recipe
        self.attempt = 0
        self._lock: IO[str] | None = None
        self._open: dict[str, Stage] = {}
        self._accounting = threading.Lock()
        self._closing = threading.Event()
        self._accountant = threading.Thread(target=self._account, name="account", daemon=True)

    def __enter__(self) -> Self:
        with disk_errors(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
                raise UsageError(
                    f"--run-dir {self.root}: cannot be a directory ({error.strerror}); give another"
                ) from error
            self._lock = (self.root / "LOCK").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise RunBusyError(
                f"--run-dir {self.root}: owned by process {owner}, which is still running; wait "
                "for it, or give another --run-dir"
            ) from error
        except OSError as error:
            self._lock.close()
            raise UsageError(
                f"--run-dir {self.root}: its file system gives no locks ({error.strerror}), which "
                "keep two processes out of one run; give a --run-dir on another (a local disk, or "
                "Lustre mounted with -o flock)"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        try:
            self._check_recipe()
        except BaseException:
            self._lock.close()
            raise
        self.attempt = 1 + max((int(p.name.split("_")[1]) for p in self._attempts()), default=0)
        with disk_errors(self.root):
            self.log_dir.mkdir(parents=True)
        self._accountant.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._accountant.join()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def log_dir(self) -> Path:
        """Logs of this attempt, one file per process."""
        return self.root / "logs" / f"attempt_{self.attempt}"

    def stage(self, name: str, *inputs: str) -> Stage:
        """Return the stage ``name`` (such as ``iter_0/generate``).

        It is finished if its DONE.json names the same ``inputs``; a stage made from other inputs
        is moved out of the way and starts over; an unfinished one with the same inputs resumes.
        """
        path = self.root / name
        key = digest(name, *inputs)
        done = read_done(path)
        marker = path / "INPUTS"
        if done is not None and done.inputs != key:
            done = None
        is_foreign = done is None and path.exists() and _read_or_empty(marker) != key
        with disk_errors(self.root), self._accounting:
            self._open.pop(name, None)
            if is_foreign:
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                write_text(marker, key)
            stage = Stage(name=name, path=path, inputs=key, done=done)
            if done is None:
                stage.before = read_spent(path)
                self._open[name] = stage
        return stage

    def write_metrics(self) -> None:
        """Rewrite metrics.jsonl from the finished stages, in the order in which they ran."""
        lines = [
            json.dumps({"stage": done.stage, "seconds": done.seconds, **done.metrics})
            for done in finished_stages(self.root)
        ]
        write_text(self.root / "metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _account(self) -> None:
        """Write what unfinished stages spend, every second and when the run ends."""
        is_closing = False
        while not is_closing:
            is_closing = self._closing.wait(ACCOUNT_S)
            with self._accounting:
                self._open = {n: stage for n, stage in self._open.items() if stage.done is None}
                for stage in self._open.values():
                    stage.write_spent()

    def _attempts(self) -> Iterator[Path]:
        return (self.root / "logs").glob("attempt_*")

    def _check_recipe(self) -> None:
        path = self.root / "recipe.yaml"
        if not path.exists():
            write_text(path, dump_recipe(self.recipe))
            return
        check_same_recipe(self.root, self.recipe)
        write_text(path, dump_recipe(self.recipe))


def check_same_recipe(root: Path, recipe: Recipe) -> None:
    """Raise UsageError when ``root`` holds a run of another recipe.

    RESUMABLE_SECTIONS and RESUMABLE_FIELDS may differ.
    A directory in which no stage was begun, as after a start with wrong input, holds none.
    """
    if not _has_begun(root):
        return
    stored = _flat(load_recipe(root / "recipe.yaml").model_dump())
    given = _flat(recipe.model_dump())
    differing = [
        key
        for key in sorted(stored.keys() | given.keys())
        if stored.get(key) != given.get(key)
        and key.split(".")[0] not in RESUMABLE_SECTIONS
        and key not in RESUMABLE_FIELDS
    ]
    if differing:
        raise UsageError(
            f"{root}: holds a run of another recipe (differs in {', '.join(differing)}); give "
            "another directory, or the same recipe"
        )


def _has_begun(root: Path) -> bool:
    """Tell whether a stage was begun; reading problems that came to nothing is none."""
    stages = (mark.parent for mark in root.glob("**/INPUTS"))
    return any(path != root / "problems" or read_done(path) is not None for path in stages)


def read_attempts(root: Path) -> list[dict[str, Any]]:
    """Return the attempts that provenance.json names, none where there is no such file.

    Raises StageError when it cannot be read.
    """
    path = root / "provenance.json"
    if not path.exists():
        return []
    try:
        attempts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["attempts"]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{path}: cannot be read ({error}); it was damaged from outside: remove it, then run "
            "again"
        ) from error
    return attempts


def read_done(stage_path: Path) -> StageDone | None:
    """Return the DONE.json of a stage directory; None when there is none or it is unreadable."""
    try:
        return StageDone.model_validate_json((stage_path / "DONE.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def finished_stages(root: Path) -> list[StageDone]:
    """Return the finished stages of a run in the order in which they were begun."""
    found = (read_done(path.parent) for path in root.glob("**/DONE.json"))
    return sorted((done for done in found if done is not None), key=lambda d: d.started_unix_s)


def read_spent(stage_path: Path) -> Spent:
    """Return what the attempts of an unfinished stage spent so far."""
    try:
        return Spent.model_validate_json((stage_path / SPENT_FILE).read_bytes())
    except (OSError, ValidationError):
        return Spent()


def _read_or_empty(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _content_digest(path: Path) -> str:
    if path.is_dir():
        sizes = (f"{p.relative_to(path)}:{p.stat().st_size}" for p in sorted(path.rglob("*")))
        return digest(*sizes)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = repr(value)
    return flat
