"""A run is a directory that one process owns; this module is its layout.

    recipe.yaml  provenance.json  metrics.jsonl  LOCK  logs/attempt_N/  <part>/<stage>/DONE.json

A stage is finished when its DONE.json, written last, names the digest of the inputs it was made
from, and what it wrote. Resume skips what is finished, and refuses what was changed since.

What a stage has cost so far stands beside it in SPENT.json, rewritten every second, so that the
account of a stage counts every attempt, however the one before it ended.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Self

from pydantic import ValidationError

from optima.errors import RecipeError, RunBusyError, StageError, UsageError
from optima.plan import PROBLEMS, kind_of
from optima.progress import PROGRESS_FILE
from optima.recipe.loading import dump_recipe, flat, load_recipe
from optima.recipe.schema import Recipe
from optima.records import (
    check_path,
    clear_temporaries,
    disk_errors,
    make_folder,
    move_aside,
    write_text,
)
from optima.runs.layout import (
    DISCARDED,
    GENERATED,
    StageDone,
    check_outputs,
    file_digest,
    find_below,
    find_files,
    finished_stages,
    read_done,
    read_marker,
    stage_folders,
    weight_files,
)
from optima.seeding import digest
from optima.types import Record

logger = logging.getLogger(__name__)

# What may differ between two attempts of a run: where it runs and when it gives up, not what it
# computes.
RESUMABLE_SECTIONS = ("serving",)
RESUMABLE_FIELDS = (
    *("conversation.max_error_rate", "select.min_share", "pairs.min_share"),
    "policies.endpoint",  # where a policy is served, not what it is
)
SPENT_FILE = "SPENT.json"
ACCOUNT_S = 1.0  # between two accounts of an open stage; a SIGKILL loses at most as much


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
    def digest(self) -> str:
        """Identify what the stage made; an input of the stages after it."""
        if self.done is None:
            raise StageError(f"stage {self.name}: used before it finished")
        return digest(*(f"{k}={v}" for k, v in sorted(self.done.outputs.items())))

    def finish(
        self, outputs: Iterable[Path] = (), metrics: Mapping[str, float] | None = None
    ) -> StageDone:
        """Write DONE.json with the digests of ``outputs`` (files; of a directory, its files).

        Seconds are those of all attempts. Where ``metrics`` say what was generated, what is in no
        record is added as ``tokens/discarded``.
        """
        spent, figures = self.spent(), dict(metrics or {})
        if GENERATED in figures:
            figures[DISCARDED] = float(spent.n_tokens)
        files = find_files(self.path, outputs)
        done = StageDone(
            stage=self.name,
            inputs=self.inputs,
            outputs={name: file_digest(path) for name, path in files.items()},
            sizes={name: path.stat().st_size for name, path in files.items()},
            started_unix_s=round(self.started, 3),
            seconds=spent.seconds,
            metrics=figures,
        ).sealed()
        write_text(self.path / "DONE.json", done.model_dump_json(indent=1) + "\n")
        self.done = done
        (self.path / SPENT_FILE).unlink(missing_ok=True)
        return done


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
        check_path(self.root, "--run-dir")
        make_folder(self.root, "--run-dir")
        check_unowned(self.root)
        with disk_errors(self.root):
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
        try:
            with disk_errors(self.root / "LOCK"):
                self._lock.truncate(0)
                self._lock.write(f"{os.getpid()}\n")
                self._lock.flush()
            self._check_recipe()
            for folder in (self.root, *stage_folders(self.root)):
                clear_temporaries(folder)
            self.attempt = 1 + newest_attempt(self.root)
            with disk_errors(self.log_dir):
                self.log_dir.mkdir(parents=True)
        except BaseException:
            with contextlib.suppress(OSError):  # what it could not write a moment ago
                self._lock.close()
            raise
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
        return logs_of(self.root, self.attempt)

    def stage(self, name: str, *inputs: str, older: Iterable[Sequence[str]] = ()) -> Stage:
        """Return the stage ``name`` (such as ``iter_0/generate``).

        It is finished if it was made from the same ``inputs``, or from one of ``older``, which are
        the same as releases of before wrote them. A stage made from others is moved aside
        (``NAME.superseded-1``) and starts over; an unfinished one with the same inputs resumes, and
        so does one whose DONE.json cannot be read. Raises StageError when what a finished one wrote
        is not there any more; a trained model is checked when it is used.
        """
        path = self.root / name
        key = digest(name, *inputs)
        with disk_errors(path), self._accounting:
            self._open.pop(name, None)
            done, marker = self._finished(path), path / "INPUTS"
            made_from = read_marker(marker)
            found = {made_from, done.inputs if done else ""}  # of which one may be damaged
            if found.isdisjoint({key, *(digest(name, *texts) for texts in older)}):
                done = None
                if os.path.lexists(path):
                    _supersede(path)
            path.mkdir(parents=True, exist_ok=True)
            if made_from != key or not marker.exists():  # from now on by the present way
                write_text(marker, f"{key} {name}\n")
            stage = Stage(name=name, path=path, inputs=key, done=done)
            if done is None:
                stage.before = read_spent(path)
                self._open[name] = stage
        if done is not None:
            check_outputs(path, done)
            (path / SPENT_FILE).unlink(missing_ok=True)  # of an attempt killed while it finished
        return stage

    def write_metrics(self) -> None:
        """Rewrite metrics.jsonl from the finished stages, in the order in which they ran."""
        with self._accounting:  # stages may end at once
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

    def _finished(self, path: Path) -> StageDone | None:
        try:
            return read_done(path)
        except StageError as error:
            logger.warning("%s", error)
            return None

    def _check_recipe(self) -> None:
        path = self.root / "recipe.yaml"
        if path.exists():
            check_same_recipe(self.root, self.recipe)
        write_text(path, dump_recipe(self.recipe))


def newest_attempt(root: Path) -> int:
    """Return the number of a run's newest attempt, 0 before the first."""
    names = (path.name for path in (root / "logs").glob("attempt_*"))
    numbers = (int(name[8:]) for name in names if re.fullmatch(r"attempt_[0-9]{1,9}", name))
    return max(numbers, default=0)


def logs_of(root: Path, attempt: int) -> Path:
    """Return where the logs of an attempt are, one file per process."""
    return root / "logs" / f"attempt_{attempt}"


def check_unowned(root: Path) -> None:
    """Raise UsageError where a run would write over files in ``root`` that are no run's, or between
    those of a model or of another run's stages.

    A run has LOCK from its beginning; of stages that were begun it may be lost.
    """
    if (root / "LOCK").exists() or _has_begun(root):
        return
    own = ("recipe.yaml", "provenance.json", "metrics.jsonl", "plan.json", "results.json")
    if found := [name for name in own if (root / name).is_file()]:
        raise UsageError(
            f"{root}: holds {found[0]}, which would be written over and is of no run here; give "
            "another directory, or move it away"
        )
    what = "a model" if (root / "config.json").is_file() or weight_files(root) else ""
    if next(find_below(root, "INPUTS"), None) is not None:
        what = "stages of another run"
    if what:
        raise UsageError(
            f"{root}: holds {what}, where a run has a directory of its own; give another"
        )


def check_same_recipe(root: Path, recipe: Recipe) -> None:
    """Raise UsageError when ``root`` holds a run of another recipe.

    RESUMABLE_SECTIONS and RESUMABLE_FIELDS may differ.
    A directory in which no stage was begun, as after a start with wrong input, holds none.
    """
    if not _has_begun(root):
        check_unowned(root)
        return
    stored = flat(read_recipe(root).model_dump())
    given = flat(recipe.model_dump())
    differing = [
        key
        for key in sorted(stored.keys() | given.keys())
        if stored.get(key) != given.get(key)
        and key.split(".")[0] not in RESUMABLE_SECTIONS
        and re.sub(r"^tasks\.\d+\.|(?<=^policies\.)\w+\.", "", key) not in RESUMABLE_FIELDS
    ]
    if differing:
        raise UsageError(
            f"{root}: holds a run of another recipe (differs in {', '.join(differing)}); give "
            "another directory, or the same recipe"
        )


def _has_begun(root: Path) -> bool:
    """Tell whether a stage was begun; reading problems that came to nothing is none."""
    return any(
        kind_of(path.relative_to(root).as_posix()) != PROBLEMS or (path / "DONE.json").exists()
        for path in stage_folders(root)
    )


def read_spent(stage_path: Path) -> Spent:
    """Return what the attempts of an unfinished stage spent so far."""
    try:
        return Spent.model_validate_json((stage_path / SPENT_FILE).read_bytes())
    except (OSError, ValidationError):
        return Spent()


def _supersede(path: Path) -> None:
    """Rename a stage made from other inputs, or what else has its name; remove one without work."""
    is_empty = path.is_dir() and not any(
        p.name not in ("INPUTS", SPENT_FILE, PROGRESS_FILE) and not p.name.startswith(".")
        for p in path.iterdir()
    )
    if is_empty:
        shutil.rmtree(path)
        return
    aside = move_aside(path)
    logger.warning("%s: is not a stage of these inputs; moved to %s", path, aside.name)


def read_recipe(root: Path) -> Recipe:
    """Return the recipe of the run in ``root``; UsageError, one line, when it cannot be read."""
    try:
        return load_recipe(root / "recipe.yaml")
    except RecipeError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(
            error.__cause__, FileNotFoundError | IsADirectoryError
        ):
            error.__cause__.filename = os.fspath(root / "recipe.yaml")
            raise error.__cause__ from None  # no permission, a failing disk: it may be whole
        reason = " ".join(str(error).split("\n")[0].split())
        raise UsageError(
            f"{reason}; it is damaged or of another release: put it back from a copy, or remove it "
            "and give the command that began the run again"
        ) from error
