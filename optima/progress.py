"""How far a stage under way is: one record, which its terminal, `optima status` and the page tell.

``progress.json`` in the folder of a stage is replaced while the stage works and says nothing once
it is finished. A training writes its own from its process; what talks, grows or compares counts
with a ``Meter``. ``servers_N.json`` beside the logs of an attempt is there while servers are.
"""

import contextlib
import datetime
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pydantic import ValidationError
from tqdm import tqdm

from optima.types import Record

if TYPE_CHECKING:
    from optima.conversation.dialogue import Completion, Generate, Request

PROGRESS_FILE = "progress.json"
SERVERS_FILE = "servers_{}.json"  # of each fleet, by the index of its first server
Unit = Literal["conversations", "rounds", "problems", "steps"]
_TOLD_S = 0.5  # between two changes of what is told


class Progress(Record):
    """``n_done`` of ``n_total`` units are done; None is what a stage of its kind has not.

    ``tokens_per_s`` are generated, or trained on, since this attempt went to work; ``score`` is the
    mean R_task in [0, 1] of what it has judged so far, for the eye alone; ``loss`` that of a
    training's last step, in nats. ``seconds_left`` is an estimate for this stage.
    """

    n_done: int
    n_total: int
    unit: Unit
    tokens_per_s: float | None = None
    n_errors: int | None = None
    score: float | None = None
    loss: float | None = None
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        """The share that is done, in [0, 1]."""
        return min(1.0, self.n_done / max(1, self.n_total))

    def text(self) -> str:
        """Return all of it in words."""
        parts = [f"{self.n_done:,} of {self.n_total:,} {self.unit}"]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.n_errors is not None:
            parts.append(f"{self.n_errors:,} error{'' if self.n_errors == 1 else 's'}")
        if self.score is not None:
            parts.append(f"score {100 * self.score:.1f}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


class ServerState(Record):
    """A server now; ``trouble`` says why it is not alive, None while it starts.

    ``log`` is the name of its file beside the record, None where it writes none there.
    """

    name: str
    url: str
    is_alive: bool
    trouble: str | None = None
    log: str | None = None


class Serving(Record):
    """The servers of a fleet, and the model that they serve."""

    model: str
    is_asleep: bool
    servers: tuple[ServerState, ...]

    @property
    def n_alive(self) -> int:
        """How many take calls, or will once they are awake."""
        return sum(server.is_alive for server in self.servers)

    def lines(self, folder: Path) -> list[str]:
        """Return it in words, a line for all and one for each that is in trouble.

        ``folder`` is where the record and the logs are.
        """
        state = "asleep" if self.is_asleep else "alive"
        n = len(self.servers)
        lines = [f"{self.n_alive} of {n} {state}, of {self.model}, logs in {folder}"]
        for server in self.servers:
            if server.trouble is not None:
                log = "" if server.log is None else f"; see {folder / server.log}"
                lines.append(f"{server.name}: {server.trouble.partition(chr(10))[0]}{log}")
        return lines


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(max(0.0, seconds))))


def read_progress(folder: Path) -> Progress | None:
    """Return how far the stage in a folder is; None where it does not say, or not in full."""
    try:
        return Progress.model_validate_json((folder / PROGRESS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None  # it is written anew before long


def read_serving(logs: Path) -> tuple[Serving, ...]:
    """Return the servers that an attempt with these logs has, by fleets; () where it has none."""
    found = []
    for path in sorted(logs.glob(SERVERS_FILE.format("*"))):
        with contextlib.suppress(OSError, ValidationError):  # written anew before long, or gone
            found.append(Serving.model_validate_json(path.read_bytes()))
    return tuple(found)


def tell(path: Path, record: Record) -> None:
    """Replace a file for whoever looks; a full disk is left to those who write results."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(record.model_dump_json() + "\n", encoding="utf-8")
        temporary.replace(path)


class Bar:
    """A bar on the terminal with the words of a progress beside it; nothing elsewhere."""

    def __init__(self, name: str, *, leave: bool = True) -> None:
        self._bar = tqdm(
            desc=name, leave=leave, disable=not sys.stderr.isatty(),
            bar_format="{desc} |{bar:20}| {percentage:.0f} %{postfix}",
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Show where a stage is now."""
        self._bar.total, self._bar.n = progress.n_total, progress.n_done
        self._bar.set_postfix_str(progress.text())


class Meter:
    """Counts what a stage has done, and tells of it on the terminal and in the stage's folder.

    ``n_before`` of ``n_total`` were done by earlier attempts. The clock runs inside the context.
    Any thread may count.
    """

    def __init__(
        self, name: str, folder: Path, unit: Unit, n_total: int, n_before: int = 0
    ) -> None:
        self._name, self._folder, self._unit = name, folder, unit
        self._n_total, self._n_before, self._n_done = n_total, n_before, n_before
        self._n_tokens: int | None = None
        self._n_errors: int | None = None
        self._scores, self._n_scores = 0.0, 0
        self._started = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        tell(folder / PROGRESS_FILE, self.progress())  # in place of an earlier attempt's

    def __enter__(self) -> Self:
        self._bar = Bar(self._name)
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._tell(is_last=True)
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def counting(self, generate: "Generate") -> "Generate":
        """Return ``generate`` with its tokens counted."""
        self._n_tokens = 0

        async def counted(request: "Request", preferred: object) -> "Completion":
            completion = await generate(request, preferred)
            self.count(n_tokens=completion.n_tokens)
            return completion

        return counted

    def count(self, n_done: int = 0, *, n_tokens: int = 0, n_errors: int | None = None) -> None:
        """Count so many units, tokens and errors more."""
        with self._lock:
            self._n_done += n_done
            if n_tokens:
                self._n_tokens = (self._n_tokens or 0) + n_tokens
            if n_errors is not None:
                self._n_errors = (self._n_errors or 0) + n_errors
        self._tell()

    def count_score(self, score: float) -> None:
        """Count an R_task in [0, 1] into the mean."""
        with self._lock:
            self._scores += score
            self._n_scores += 1

    def progress(self) -> Progress:
        """Return how far the stage is now."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        n_new = self._n_done - self._n_before
        return Progress(
            n_done=self._n_done,
            n_total=self._n_total,
            unit=self._unit,
            tokens_per_s=None if self._n_tokens is None else self._n_tokens / seconds,
            n_errors=self._n_errors,
            score=self._scores / self._n_scores if self._n_scores else None,
            seconds_left=(self._n_total - self._n_done) * seconds / n_new if n_new else None,
        )

    def _tell(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if now - self._told < _TOLD_S and not is_last:
            return
        self._told = now
        progress = self.progress()
        if self._bar is not None:
            self._bar.show(progress)
        tell(self._folder / PROGRESS_FILE, progress)
