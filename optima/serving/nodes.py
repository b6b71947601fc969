"""The run's side of its nodes: what they are to do, and a list of servers that is true to them.

It speaks with them by files (``serving/board``) and asks a server of theirs whether it serves the
right model before any turn is asked of it.
"""

import contextlib
import fcntl
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from optima.errors import OptimaError, RunBusyError, ServerError, StageError, UsageError
from optima.recipe.schema import Recipe
from optima.records import disk_errors, make_folder, write_text
from optima.serving.board import (
    BEAT_S,
    Announced,
    Board,
    Pulse,
    Training,
    Wanted,
    make_key,
    node_address,
    read_as,
    replace_text,
)
from optima.serving.client import Roster, Server, served_name
from optima.serving.probe import ask, check_completion, check_served
from optima.training.jobs import Machines, Others
from optima.types import ModelRef

logger = logging.getLogger(__name__)

SCORE_PATH = "/score"  # of a node that computes losses
_N_ASKED = 16  # servers asked at once whether they serve
_ASK_S = 30.0
_ASK_AGAIN_S = 5.0
_HUNG = 3  # calls without an answer in a row
Leaving = Callable[[Server], bool]


@dataclass(eq=False)
class _Node:
    """A node as the run sees it; ``is_gone`` until its next sign of life."""

    announced: Announced
    pulse: Pulse = field(default_factory=Pulse)
    is_gone: bool = False
    told: str | None = None


class Nodes:
    """The run's side: a context manager that owns the folder and keeps a list of servers true.

    Raises RunBusyError when another run owns the folder, UsageError when others can write to it or
    this node has no address at which the others find it for a training.
    """

    def __init__(self, board: Board, recipe: Recipe, run_dir: Path) -> None:
        self.board = board
        self._run = str(run_dir.absolute())
        self._recipe = _for_nodes(recipe)
        self._timeout_s = recipe.serving.node_timeout_s
        self._address = ""
        if recipe.serving.training_nodes > 1:  # before any work is done
            given = recipe.serving.training_address
            self._address = node_address(given, "serving.training_address")
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
            self._api_key = make_key(board.key)
        before = read_as(board.wanted, Wanted)
        if before is not None:
            self._wanted = before
        self._wanted = self._next()
        write_text(board.wanted, self._wanted.model_dump_json())
        logger.info("nodes: optima serve-node --shared %s", board.folder)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)  # what is asked has a deadline
        nothing: dict[str, object] = {"model": None, "files": {}, "training": None}
        over = self._wanted.model_copy(update={**nothing, "is_over": True})
        try:
            with contextlib.suppress(OptimaError):  # then they miss the count
                write_text(self.board.wanted, over.model_dump_json())
        finally:
            if self._file is not None:
                self._file.close()

    def serve(self, model: ModelRef, roster: Roster, *, is_scored: bool = False) -> None:
        """Have the nodes serve ``model``, or compute losses under it.

        Their servers join ``roster`` as they do, and leave it with the nodes. Nothing changes where
        that is what they do.
        """
        now = self._wanted
        if self._roster is roster and (now.model, now.is_scored) == (model, is_scored):
            return
        self._change(self._next(model, is_scored=is_scored), roster)

    def withdraw(self, roster: Roster) -> None:
        """Take the nodes' servers from ``roster``, if it is theirs; they stay ready for more."""
        if self._roster is roster:
            with contextlib.suppress(OptimaError):  # who stops is not to be kept from it
                self._change(self._next())
        _dismiss(roster, lambda _: True, "the run takes no answers of it now")

    def rest(self) -> None:
        """Want nothing of the nodes; they keep what they serve."""
        self._change(self._next())

    @property
    def start_timeout_s(self) -> float:
        """How long a node may take to be there when it is needed."""
        return self._recipe.serving.start_timeout_s

    def others(self, n_machines: int, n_gpus: int) -> Others:
        """Return the nodes that share trainings with this one, ``n_machines`` in all."""
        return _Party(self, Machines(n_machines, 0, self._address), n_gpus)

    def there(self) -> list[str]:
        """Return the names of the nodes that are there."""
        return sorted(
            name for name, node in list(self._nodes.items())
            if node.pulse.has_changed and not node.is_gone
        )  # fmt: skip

    def train(self, training: Training) -> None:
        """Have nodes take part in a training, until something else is wanted."""
        self._change(self._next(training=training))

    def why_not_trained(self, nodes: Collection[str]) -> str | None:
        """Return why one of these nodes does not train, None while all do or are done."""
        generation, there = self._wanted.generation, self.there()
        for name in nodes:
            node = self._nodes.get(name)
            if node is None or name not in there:
                return f"node {name} is lost"
            said = node.announced
            if said.generation == generation and said.trouble is not None:
                return f"node {name}: {said.trouble}"
        return None

    def _change(self, wanted: Wanted, roster: Roster | None = None) -> None:
        with self._lock:
            before, self._roster = self._roster, roster
            self._wanted = wanted
            self._asked.clear()
            write_text(self.board.wanted, wanted.model_dump_json())
        if before is not None:
            _dismiss(before, lambda _: True, "it is to do something else")

    def _next(
        self,
        model: ModelRef | None = None,
        *,
        is_scored: bool = False,
        training: Training | None = None,
    ) -> Wanted:
        return Wanted(
            run=self._run,
            generation=self._wanted.generation + 1,
            recipe=self._recipe,
            model=model,
            files={} if model is None else _sizes(model),
            is_scored=is_scored,
            training=training,
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
            if wanted.is_scored:
                if ask(server, "GET", SCORE_PATH, None, _ASK_S)[0] != 200:
                    raise ServerError(f"{url}: does not score")
            else:
                check_completion(server, served_name(wanted.model), _ASK_S)
                check_served(server, wanted.model, _ASK_S)
        except OptimaError as error:
            logger.warning("node %s: %s", name, str(error).partition("\n")[0])
            self._asked[url] = time.monotonic() + _ASK_AGAIN_S
            return
        with self._lock:
            if self._wanted is not wanted or self._closing.is_set():
                return
            roster.join(server)
        self._asked[url] = 0.0
        logger.info("node %s: %s %s too", name, url, "scores" if wanted.is_scored else "serves")


@dataclass(eq=False)
class _Party:
    """The nodes that take part in a training."""

    nodes: Nodes
    machines: Machines
    n_gpus: int
    _names: tuple[str, ...] = ()

    def start(self, output: Path, kind: str, port: int) -> None:
        """Have the first nodes that are there start their part.

        Raises StageError when too few come within ``serving.start_timeout_s``.
        """
        n, timeout_s = self.machines.n - 1, self.nodes.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while len(there := self.nodes.there()) < n:
            if time.monotonic() > deadline:
                raise StageError(
                    f"serving.training_nodes: {n + 1}: {len(there)} came beside this one "
                    f"within {timeout_s:g} s (serving.start_timeout_s); start more (optima "
                    "serve-node), or lower it and run again"
                )
            time.sleep(BEAT_S)
        self._names = tuple(there[:n])
        logger.info("training with nodes %s", ", ".join(self._names))
        training = Training.model_validate(
            {
                "folder": str(output.absolute()),
                "kind": kind,
                "n_gpus": self.n_gpus,
                "address": self.machines.address,
                "port": port,
                "rank_by_node": {name: rank for rank, name in enumerate(self._names, start=1)},
            }
        )
        self.nodes.train(training)

    def failure(self) -> str | None:
        """Return why one of them cannot go on, None while all do."""
        return self.nodes.why_not_trained(self._names)

    def stop(self) -> None:
        """End what is left of their part."""
        with contextlib.suppress(OptimaError):
            self.nodes.rest()


def _dismiss(roster: Roster, is_leaving: Leaving, why: str) -> None:
    """Have servers of nodes leave; calls under way there end and are made again."""
    for server in roster.leave(lambda s: s.node is not None and is_leaving(s)):
        server.is_alive, server.failure = False, f"node {server.node}: {why}"


def _for_nodes(recipe: Recipe) -> Recipe:
    """Return the recipe as nodes follow it: with GPUs of their own, and paths that lead there."""
    tokenizer = recipe.model.tokenizer
    if tokenizer is not None and Path(tokenizer).is_dir():
        recipe = recipe.changed(model={"tokenizer": str(Path(tokenizer).resolve())})
    return recipe.changed(serving={"gpus": None})


def _sizes(model: ModelRef) -> dict[str, int]:
    """Return the bytes of each file of a model in a folder; nothing of one that a hub has."""
    folders = [Path(place) for place in filter(None, (model.path, model.adapter))]
    files = (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()))
    return {str(path): path.stat().st_size for path in files if path.is_file()}
