"""Nodes that serve beside a run, as files in a folder that all of them see.

The run writes what it wants served and a count that goes on; every node writes the servers it has
and such a count (docs/decisions/0008-many-nodes.md). Counts are compared with nothing but what they
were: without a change for ``serving.node_timeout_s``, by the clock of who waits, the other is gone.
Here stands what both sides say, and the run's side, which keeps a list of servers true to the
nodes; the node's is ``serving/agent``.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from optima.errors import OptimaError, RunBusyError, UsageError
from optima.recipe.schema import Recipe
from optima.records import disk_errors, make_folder, write_text
from optima.serving.client import MODEL_NAME, Roster, Server
from optima.serving.probe import check_completion, check_served
from optima.types import ModelRef, Record

logger = logging.getLogger(__name__)

AUTO = "auto"
BEAT_S = 1.0  # between two signs of life
_N_ASKED = 16  # servers asked at once whether they serve
_ASK_S = 30.0
_ASK_AGAIN_S = 5.0
_HUNG = 3  # calls without an answer in a row
Leaving = Callable[[Server], bool]
R = TypeVar("R", bound=Record)


class Wanted(Record):
    """What a run wants its nodes to serve; ``model`` is None while it wants nothing.

    A node serves it once it sees each of ``files`` with its size. ``generation`` grows with every
    change. ``is_over`` tells nodes to stop.
    """

    schema_version: Literal[1] = 1
    run: str
    generation: int
    recipe: Recipe
    model: ModelRef | None = None
    files: dict[str, int] = Field(default_factory=dict)
    is_over: bool = False


class Announced(Record):
    """What a node says of itself: the servers that serve ``generation``, or what is wrong."""

    schema_version: Literal[1] = 1
    beat: int
    generation: int
    urls: tuple[str, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """The folder and the files in it."""

    folder: Path

    @property
    def wanted(self) -> Path:
        """What the run wants served."""
        return self.folder / "wanted.json"

    @property
    def beat(self) -> Path:
        """The run's count."""
        return self.folder / "beat"

    @property
    def key(self) -> Path:
        """The key of all servers, which its owner alone can read."""
        return self.folder / "key"

    @property
    def lock(self) -> Path:
        """Held by the run that owns the folder."""
        return self.folder / "owner.lock"

    @property
    def announced(self) -> Path:
        """Where nodes announce themselves."""
        return self.folder / "announced"

    def node(self, name: str) -> Path:
        """Where the node of this name does."""
        return self.announced / f"{name}.json"

    def logs(self, name: str) -> Path:
        """Where the logs of a node's servers are."""
        return self.folder / "logs" / name

    def check(self, place: str) -> None:
        """Raise UsageError unless the folder is this user's alone to write to."""
        try:
            found = self.folder.stat()
        except OSError as error:
            raise UsageError(
                f"{place}: {self.folder}: cannot be read ({error.strerror}); name a folder that "
                "all nodes see"
            ) from error
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(
                f"{place}: {self.folder}: others can write to it, and what stands there is run on "
                "all nodes; take a folder of your own (chmod go-w)"
            )


def board_of(recipe: Recipe, run_dir: Path) -> Board | None:
    """Return the folder of a run's nodes, None where it has none."""
    folder = recipe.serving.nodes
    if folder is None:
        return None
    return Board((run_dir / "nodes" if folder == AUTO else Path(folder)).absolute())


def replace_text(path: Path, text: str) -> None:
    """Replace a file that is written every second, which no crash need keep."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_as(path: Path, kind: type[R]) -> R | None:
    """Return the record in a file, None where there is none yet or none that can be read."""
    with contextlib.suppress(OSError, ValidationError):
        return kind.model_validate_json(path.read_bytes())
    return None


@dataclass(slots=True)
class Pulse:
    """When a count was last seen to change; ``has_changed`` once it was."""

    count: object = None
    seen: float = field(default_factory=time.monotonic)
    has_changed: bool = False

    def note(self, count: object) -> None:
        """Take a count as it is read now; None is none."""
        if count is not None and count != self.count:
            self.has_changed = self.count is not None
            self.count, self.seen = count, time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since the last change."""
        return time.monotonic() - self.seen


@dataclass(eq=False)
class _Node:
    """A node as the run sees it; ``is_gone`` until its next sign of life."""

    announced: Announced
    pulse: Pulse = field(default_factory=Pulse)
    is_gone: bool = False
    told: str | None = None


class Nodes:
    """The run's side: a context manager that owns the folder and keeps a list of servers true.

    Raises RunBusyError when another run owns the folder, UsageError when others can write to it.
    """

    def __init__(self, board: Board, recipe: Recipe, run_dir: Path) -> None:
        self.board = board
        self._run = str(run_dir.absolute())
        self._recipe = _for_nodes(recipe)
        self._timeout_s = recipe.serving.node_timeout_s
        self._wanted = Wanted(run=self._run, generation=0, recipe=self._recipe)
        self._roster: Roster | None = None
        self._nodes: dict[str, _Node] = {}
        self._asked: dict[str, float] = {}  # when a server may be asked again
        self._n_servers = 0
        self._beat = secrets.randbelow(2**32)  # another than that of an attempt before
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._file: IO[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)
        self._pool = ThreadPoolExecutor(_N_ASKED, "ask-node")

    def __enter__(self) -> Self:
        board = self.board
        with disk_errors(board.folder):
            make_folder(board.folder, "serving.nodes", mode=0o700)
            board.check("serving.nodes")
            board.announced.mkdir(exist_ok=True)
            self._file = board.lock.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if not isinstance(error, BlockingIOError):
                raise UsageError(
                    f"serving.nodes: {board.folder}: its file system gives no locks "
                    f"({error.strerror}); name a folder on another"
                ) from error
            raise RunBusyError(
                f"serving.nodes: {board.folder}: another run has its nodes there; wait for it, or "
                "name another folder"
            ) from error
        with disk_errors(board.key):
            self._api_key = _key(board.key)
        before = read_as(board.wanted, Wanted)
        self._wanted = self._next(None, before.generation if before else 0)
        write_text(board.wanted, self._wanted.model_dump_json())
        logger.info("nodes: optima serve-node --shared %s", board.folder)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)  # what is asked has a deadline
        over = self._wanted.model_copy(update={"model": None, "files": {}, "is_over": True})
        try:
            with contextlib.suppress(OptimaError):  # then they miss the count
                write_text(self.board.wanted, over.model_dump_json())
        finally:
            if self._file is not None:
                self._file.close()

    def serve(self, model: ModelRef, roster: Roster) -> None:
        """Have the nodes serve ``model``; their servers join ``roster`` as they do, and leave it
        with the nodes.
        """
        self._change(model, roster)

    def withdraw(self, roster: Roster) -> None:
        """Take the nodes' servers from ``roster``, if it is theirs; they stay ready for more."""
        if self._roster is roster:
            with contextlib.suppress(OptimaError):  # who stops is not to be kept from it
                self._change(None, None)
        _dismiss(roster, lambda _: True, "the run takes no answers of it now")

    def _change(self, model: ModelRef | None, roster: Roster | None) -> None:
        with self._lock:
            before, self._roster = self._roster, roster
            self._wanted = self._next(model, self._wanted.generation)
            self._asked.clear()
            write_text(self.board.wanted, self._wanted.model_dump_json())
        if before is not None:
            _dismiss(before, lambda _: True, "it is to serve another model")

    def _next(self, model: ModelRef | None, generation: int) -> Wanted:
        files = {} if model is None else _sizes(model)
        return Wanted(
            run=self._run, generation=generation + 1, recipe=self._recipe, model=model, files=files
        )

    def _watch(self) -> None:
        while not self._closing.is_set():
            self._beat += 1
            try:
                replace_text(self.board.beat, str(self._beat))
                self._look()
            except OSError as error:  # of storage that may come back
                logger.warning("nodes: %s: %s", self.board.folder, error.strerror)
            self._closing.wait(BEAT_S)

    def _look(self) -> None:
        """Read what nodes say; drop servers that are no longer there, ask those that are new."""
        self._read_nodes()
        with self._lock:
            roster, wanted = self._roster, self._wanted
        if roster is None or wanted.model is None:
            return
        node_by_url = {
            url: name
            for name, node in self._nodes.items()
            if not node.is_gone and node.announced.generation == wanted.generation
            for url in node.announced.urls
        }
        _dismiss(roster, lambda s: s.base_url not in node_by_url, "its node has lost it")
        _dismiss(roster, lambda s: not s.is_alive, "it was not reached")
        _dismiss(roster, lambda s: s.n_timeouts >= _HUNG, "it gives no answers")
        there = {server.base_url for server in roster}
        now = time.monotonic()
        for url, name in node_by_url.items():
            if url not in there and self._asked.get(url, 0.0) <= now:
                self._asked[url] = now + _ASK_S + _ASK_AGAIN_S
                self._pool.submit(self._ask, url, name, wanted, roster)

    def _read_nodes(self) -> None:
        found = {
            path.stem: announced
            for path in sorted(self.board.announced.glob("*.json"))
            if (announced := read_as(path, Announced)) is not None
        }
        for name in [name for name in self._nodes if name not in found]:
            if not self._nodes[name].is_gone:
                logger.info("node %s has left", name)
            del self._nodes[name]
        for name, announced in found.items():
            node = self._nodes.setdefault(name, _Node(announced))
            was_known = node.pulse.has_changed and not node.is_gone
            node.announced = announced
            node.pulse.note(announced.beat)
            if node.pulse.silent_s() > self._timeout_s:
                self._lose(name, node)
                continue
            node.is_gone = False
            if node.pulse.has_changed and not was_known:
                logger.info("node %s is there", name)
            if announced.trouble is not None and announced.trouble != node.told:
                logger.warning("node %s: %s", name, announced.trouble)
            node.told = announced.trouble

    def _lose(self, name: str, node: _Node) -> None:
        if not node.pulse.has_changed:  # left by a node of an attempt before
            self.board.node(name).unlink(missing_ok=True)
        elif not node.is_gone:
            logger.warning(
                "node %s is lost: no sign of life for %g s (serving.node_timeout_s); what it had "
                "under way is asked again", name, self._timeout_s,
            )  # fmt: skip
        node.is_gone, node.pulse.has_changed = True, False

    def _ask(self, url: str, name: str, wanted: Wanted, roster: Roster) -> None:
        """Let a server of a node join once it generates, and is the model that is wanted."""
        assert wanted.model is not None
        self._n_servers += 1
        server = Server(1000 + self._n_servers, url, self._api_key, node=name)
        try:
            check_completion(server, MODEL_NAME, _ASK_S)
            check_served(server, MODEL_NAME, wanted.model, _ASK_S)
        except OptimaError as error:
            logger.warning("node %s: %s", name, str(error).partition("\n")[0])
            self._asked[url] = time.monotonic() + _ASK_AGAIN_S
            return
        with self._lock:
            if self._wanted is not wanted or self._closing.is_set():
                return
            roster.join(server)
        self._asked[url] = 0.0
        logger.info("node %s: %s serves too", name, url)


def _dismiss(roster: Roster, is_leaving: Leaving, why: str) -> None:
    """Have servers of nodes leave; calls under way there end and are made again."""
    for server in roster.leave(lambda s: s.node is not None and is_leaving(s)):
        server.is_alive, server.failure = False, f"node {server.node}: {why}"


def _for_nodes(recipe: Recipe) -> Recipe:
    """Return the recipe as nodes follow it: with GPUs of their own, and paths that lead there."""
    tokenizer = recipe.model.tokenizer
    if tokenizer is not None and Path(tokenizer).is_dir():
        recipe = recipe.changed(model={"tokenizer": str(Path(tokenizer).resolve())})
    return recipe.changed(serving={"gpus": None, "nodes": None})


def _sizes(model: ModelRef) -> dict[str, int]:
    """Return the bytes of each file of a model in a folder; nothing of one that a hub has."""
    folders = [Path(place) for place in filter(None, (model.path, model.adapter))]
    files = (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()))
    return {str(path): path.stat().st_size for path in files if path.is_file()}


def _key(path: Path) -> str:
    """Return the key in a file that only its owner can read, which is made if it is not there."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(16))
    return read_key(path)


def read_key(path: Path) -> str:
    """Return the key; UsageError when others can read it, or it is none."""
    key = path.read_text(encoding="utf-8").strip()
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{path}: others can read this key; remove it, then run again")
    if len(key) < 32 or not key.isalnum():
        raise UsageError(f"{path}: holds no key; remove it, then run again")
    return key
