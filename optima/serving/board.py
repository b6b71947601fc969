"""What a run and its nodes say to each other, as files in a folder that all of them see.

The run writes what it wants served and a count that goes on; every node writes the servers it has
and such a count (docs/decisions/0008-many-nodes.md). Counts are compared with nothing but what they
were: without a change for ``serving.node_timeout_s``, by the clock of who waits, the other is gone.
The run's side is ``serving/nodes``, the node's ``serving/agent``.
"""

import contextlib
import ipaddress
import os
import secrets
import socket
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from optima.errors import UsageError
from optima.recipe.schema import Recipe
from optima.training.jobs import Machines
from optima.types import ModelRef, Record

AUTO = "auto"
BEAT_S = 1.0  # between two signs of life
R = TypeVar("R", bound=Record)


class Training(Record):
    """A part in a training: its job's folder, where the machines meet, and which is whose."""

    schema_version: Literal[1] = 1
    folder: str
    kind: Literal["sft", "dpo"]
    n_gpus: int
    address: str
    port: int
    rank_by_node: dict[str, int]

    def machines(self, node: str) -> Machines:
        """Return the machine that a node is."""
        return Machines(1 + len(self.rank_by_node), self.rank_by_node[node], self.address)


class Wanted(Record):
    """What a run wants its nodes to serve, or to train; ``model`` is None while it is neither.

    A node serves it once it sees each of ``files`` with its size; with ``is_scored`` it computes
    losses under it instead of completions. ``generation`` grows with every change. ``is_over``
    tells nodes to stop.
    """

    schema_version: Literal[1] = 1
    run: str
    generation: int
    recipe: Recipe
    model: ModelRef | None = None
    files: dict[str, int] = Field(default_factory=dict)
    is_scored: bool = False
    training: Training | None = None
    is_over: bool = False


class Announced(Record):
    """What a node says of itself: what serves ``generation`` or trained it, or what is wrong."""

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


def read_wanted(board: Board) -> Wanted | None:
    """Return what the run wants, None where nothing says it; UsageError where it is not readable.

    A file is replaced whole, so what cannot be read was not written by this release.
    """
    try:
        return Wanted.model_validate_json(board.wanted.read_bytes())
    except OSError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{board.wanted}: {place}: {first['msg']}; let run and nodes be of one release, with "
            "the same plug-ins"
        ) from error


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


def make_key(path: Path) -> str:
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


def node_address(given: str | None, option: str) -> str:
    """Return the address that ``option`` gives this node, by default that of its host name.

    Raises UsageError when it is none, all, or, unless it was given, one that no other node reaches.
    """
    name = given or socket.gethostname()
    place = option if given else f"{option}: is not given, and the host's name"
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
        address = ipaddress.ip_address(found)
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((str(address), 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{place} {name}: is no address of this host ({reason}); name the address by which "
            "other nodes reach this one"
        ) from error
    if address.is_unspecified:
        raise UsageError(f"{place} {name}: stands for all addresses of this host; name one of them")
    if given is None and address.is_loopback:
        raise UsageError(
            f"{place} {name} leads to {address}, which no other node reaches; name the address by "
            "which they reach this one"
        )
    return str(address)
