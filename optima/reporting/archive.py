"""Every conversation of some runs, indexed for a reader who picks a few out of 100,000.

One pass over the record files of each run gives a row per conversation: a few numbers to filter and
sort by. The conversations themselves stay on disk until a chunk of them is asked for; a chunk holds
all that was said about some problems, in every stage, so that one chunk shows a problem across
iterations. Runs are only read, and may be going on: what is not there yet is left out.
"""

import base64
import gzip
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, get_args

import orjson

from optima.plan import placed
from optima.runs.files import PROBLEMS, SPLITS, Talk, n_spoken, parsed, raw_lines
from optima.runs.reader import Run
from optima.seeding import rng
from optima.types import StopReason

if TYPE_CHECKING:
    from numpy.typing import NDArray

STOPS: tuple[StopReason, ...] = get_args(StopReason)
CHUNK_BYTES = 400_000  # of JSON; about 10 ms to unpack and parse
TITLE_CHARS = 120
# Bits of the column ``flags``.
ANSWERED, CHOSEN, FAULTY, FAILED, JUDGED = 1, 2, 4, 8, 16
_KINDS = {
    "problem": "<u4", "source": "<u2", "n": "<u2", "stop": "<u1", "flags": "<u1",
    "turns": "<u2", "tokens": "<u4", "task": "<f4", "reward": "<f4",
}  # fmt: skip
_PLACES = {"n_bytes": "<i8", "said_at": "<i8", "reward_at": "<i8", "losses_at": "<i8"}


@dataclass(frozen=True, slots=True)
class Source:
    """One stage in which agents conversed; ``run`` is the index of its run."""

    run: int
    talk: Talk


class _Row(NamedTuple):
    """A conversation: the values of its columns, the bytes of its record, and where that stands.

    ``said_at``, ``reward_at`` and ``losses_at`` are offsets, -1 where there is none.
    """

    problem: int
    source: int
    n: int
    stop: int
    flags: int
    turns: int
    tokens: int
    task: float
    reward: float
    n_bytes: int
    said_at: int
    reward_at: int
    losses_at: int


class StaleError(Exception):
    """A record file was written anew since it was indexed; index the runs again."""


class Archive:
    """Rows, columns and chunks of the conversations of ``runs``.

    Rows are in the order of problems, then of sources, then of samples. ``columns`` has one value
    per row: ``problem`` (an index of ``problems``), ``source``, ``n``, ``stop`` (index into STOPS),
    ``flags``, ``turns``, ``tokens``, and ``task`` and ``reward``, which are NaN where nothing was
    judged. With ``n_most``, problems are drawn at random (seeded) until that many conversations
    are there; ``n_left_out`` counts the others.
    """

    def __init__(self, runs: Sequence[Run], *, n_most: int | None = None) -> None:
        self.runs = tuple(runs)
        self.sources = tuple(Source(i, talk) for i, run in enumerate(runs) for talk in run.talks)
        self._inodes = [one.talk.conversations.stat().st_ino for one in self.sources]
        self.problems = Problems(runs)
        self.n_left_out = 0
        found = self._scanned()
        n_by_problem = dict(zip(*_counted(found["problem"]), strict=True))
        kept = self._sample(n_by_problem, n_most)
        chosen = _ordered(found, kept)
        self.columns: dict[str, NDArray[Any]] = {name: found[name][chosen] for name in _KINDS}
        self._places = {name: found[name][chosen] for name in _PLACES}
        self.chunk_starts: list[int] = []
        start, size = 0, CHUNK_BYTES
        for problem in kept:
            if size >= CHUNK_BYTES:
                self.chunk_starts.append(start)
                size = 0
            end = start + n_by_problem[problem]
            size += int(self._places["n_bytes"][start:end].sum()) + self.problems.size(problem)
            start = end

    def __len__(self) -> int:
        return len(self.columns["problem"])

    @property
    def n_chunks(self) -> int:
        """How many chunks ``chunk`` gives."""
        return len(self.chunk_starts)

    def chunk(self, number: int) -> bytes:
        """Return a chunk as JSON: its problems by index, and a row per conversation.

        A row holds the stored records as they are: ``c`` the conversation, ``r`` its reward and
        ``l`` its losses (null where there are none). Raises StaleError.
        """
        start, end = [*self.chunk_starts, len(self)][number : number + 2]
        named = ("said_at", "reward_at", "losses_at")
        places = zip(*(self._places[name][start:end].tolist() for name in named), strict=True)
        with ExitStack() as stack:
            files: dict[Path, IO[bytes]] = {}

            def line(path: Path, offset: int) -> bytes:
                if offset < 0:
                    return b"null"
                if path not in files:
                    files[path] = stack.enter_context(path.open("rb"))
                files[path].seek(offset)
                return files[path].readline().strip()

            lines = []
            for source, at in zip(self.columns["source"][start:end].tolist(), places, strict=True):
                talk = self.sources[source].talk
                if talk.conversations.stat().st_ino != self._inodes[source]:
                    raise StaleError(str(talk.conversations))
                paths = (talk.conversations, talk.rewards, talk.losses)
                lines.append(b'{"c":%b,"r":%b,"l":%b}' % tuple(map(line, paths, at)))
            shown = sorted({*self.columns["problem"][start:end].tolist()})
            problems = {str(p): self.problems.read(p) for p in shown}
        return b'{"problems":%b,"rows":[%b]}' % (orjson.dumps(problems), b",".join(lines))

    def header(self) -> dict[str, Any]:
        """Return what a page needs before any conversation is asked for, JSON types only."""
        return {
            "sources": [
                {"run": run, "name": talk.name, "label": talk.label, "kind": talk.kind}
                for run, talk in ((one.run, one.talk) for one in self.sources)
            ],
            "stops": STOPS,
            "n": len(self),
            "n_left_out": self.n_left_out,
            "columns": {
                name: [values.dtype.str[1:], packed(values.tobytes())]
                for name, values in self.columns.items()
            },
            "titles": packed(orjson.dumps(self.problems.titles)),
            "chunks": self.chunk_starts,
        }

    def _scanned(self) -> "dict[str, NDArray[Any]]":
        """Return the columns of all conversations in the order of their sources.

        Arrays of numbers, not objects: those of a million conversations take 60 MB, not 500.
        """
        import numpy as np

        kinds = [np.dtype(kind) for kind in (*_KINDS.values(), *_PLACES.values())]
        columns: list[Any] = [array(kind.char) for kind in kinds]
        appends = [column.append for column in columns]
        for index, source in enumerate(self.sources):
            for row in _scan(index, source.talk, self.problems):
                for append, value in zip(appends, row, strict=True):
                    append(value)
        return {
            name: np.frombuffer(column, kind) if column else np.empty(0, kind)
            for name, column, kind in zip(_Row._fields, columns, kinds, strict=True)
        }

    def _sample(self, n_by_problem: Mapping[int, int], n_most: int | None) -> list[int]:
        """Return the problems that are kept, in order."""
        n_all = sum(n_by_problem.values())
        if n_most is None or n_all <= n_most:
            return sorted(n_by_problem)
        drawn = sorted(n_by_problem)
        rng(0, "archive").shuffle(drawn)
        kept, n = [], 0
        for problem in drawn:
            if n + n_by_problem[problem] <= n_most:
                kept.append(problem)
                n += n_by_problem[problem]
        self.n_left_out = n_all - n
        return sorted(kept)


class Problems:
    """The problems of several runs by index; a problem may be dealt differently in each run.

    ``titles`` are the beginnings of their questions, ``index_by_id`` the indices of all.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.index_by_id: dict[str, int] = {}
        self.titles: list[str] = []
        self._places: list[dict[int, tuple[Path, int, int]]] = []
        for run, one in enumerate(runs):
            for split in SPLITS:
                path = one.root / placed(PROBLEMS, one.task) / split
                for offset, raw in raw_lines(path):
                    record = parsed(raw, path)
                    index = self.index(record["problem_id"], record["question"])
                    self._places[index][run] = (path, offset, len(raw))

    def index(self, problem_id: str, question: str = "") -> int:
        """Return the index of a problem, which is added if it is new."""
        index = self.index_by_id.setdefault(problem_id, len(self.titles))
        if index == len(self.titles):
            self.titles.append(" ".join(question.split())[:TITLE_CHARS])
            self._places.append({})
        return index

    def size(self, index: int) -> int:
        """Return the bytes of its records."""
        return sum(size for _, _, size in self._places[index].values())

    def read(self, index: int) -> dict[str, Any]:
        """Return a problem: question, golds, and what each agent is told in each run."""
        versions: list[dict[str, Any]] = []
        version_by_run: dict[str, int] = {}
        whole: dict[str, Any] = {"question": self.titles[index], "golds": [], "task": ""}
        for run, (path, offset, _) in self._places[index].items():
            with path.open("rb") as file:
                file.seek(offset)
                record = orjson.loads(file.readline())
            whole = {key: record[key] for key in ("question", "golds", "task")}
            version = {"contexts": record["contexts"], "evidence": record["evidence"]}
            if version not in versions:
                versions.append(version)
            version_by_run[str(run)] = versions.index(version)
        return {**whole, "versions": versions, "version_by_run": version_by_run}


def packed(content: bytes) -> str:
    """Return bytes as base64 of gzip, the same for the same bytes."""
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _counted(problems: "NDArray[Any]") -> tuple[list[int], list[int]]:
    """Return the problems that there are, and how many conversations each has."""
    import numpy as np

    found, counts = np.unique(problems, return_counts=True)
    return found.tolist(), counts.tolist()


def _ordered(columns: "Mapping[str, NDArray[Any]]", kept: Sequence[int]) -> "NDArray[Any]":
    """Return the places of the conversations about the problems kept: by problem, source and n."""
    import numpy as np

    order = np.lexsort([columns[name] for name in ("n", "source", "problem")])
    chosen: NDArray[Any] = order[np.isin(columns["problem"][order], kept)]
    return chosen


def _scan(source: int, talk: Talk, problems: Problems) -> Iterator[_Row]:
    """Yield a row of each conversation that is there."""
    rewards, losses = raw_lines(talk.rewards), raw_lines(talk.losses)
    selected = (parsed(raw, talk.selected) for _, raw in raw_lines(talk.selected))
    chosen = {(record["problem_id"], record["n"]) for record in selected}
    for offset, raw in raw_lines(talk.conversations):
        record = parsed(raw, talk.conversations)
        key = (record["problem_id"], record["n"])
        reward_at, reward = _beside(next(rewards, None), key, talk.rewards)
        losses_at, _ = _beside(next(losses, None), key, talk.losses)
        total = reward.get("total")
        flags = (
            ANSWERED * (record["answer"] is not None)
            + CHOSEN * (key in chosen)
            + FAULTY * bool(record["faults"])
            + FAILED * (record["error"] is not None)
            + JUDGED * bool(reward)
        )
        yield _Row(
            problem=problems.index(key[0]),
            source=source,
            n=key[1],
            stop=STOPS.index(record["stop_reason"]),
            flags=flags,
            turns=len(record["turns"]),
            tokens=n_spoken(record),
            task=reward.get("task", math.nan),
            reward=math.nan if total is None else total,
            n_bytes=len(raw),
            said_at=offset,
            reward_at=reward_at,
            losses_at=losses_at,
        )


def _beside(
    line: tuple[int, bytes] | None, key: tuple[str, int], path: Path
) -> tuple[int, dict[str, Any]]:
    """Return (offset, record) of a line if it is about ``key``, else (-1, {})."""
    if line is not None:
        offset, raw = line
        record = parsed(raw, path)
        if (record["problem_id"], record["n"]) == key:
            return offset, record
    return -1, {}
