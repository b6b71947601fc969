"""Nodes of a run on a Ray cluster: on each node of it an actor runs ``optima serve-node``.

``Cluster`` is the run's side and imports no Ray. It starts this module as a process of its own, the
Ray driver, because Ray takes a driver's signals and ends one that loses its cluster. What the nodes
do they read from the folder of the run, as all nodes do (docs/decisions/0008-many-nodes.md).
Refuses to start a cluster, and one that is reached as a client only (``ray://``).
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from optima.errors import ProcessError, UsageError
from optima.processes import guard
from optima.processes.environment import Environment
from optima.processes.managed import ManagedProcess, explain_status
from optima.serving.board import AUTO, Board

logger = logging.getLogger(__name__)

CONNECT_S = 60.0  # Ray itself asks a cluster that is silent for minutes
_REACH_S = 10.0
_END_S = guard.LONGEST_S  # what nodes are given to end with the run
_AGAIN_S, _LAST_AGAIN_S = 2.0, 300.0  # before another try at what failed, doubled each time
_LOOK_S = 1.0
_NO_CLUSTER = 2  # the driver's exit status
_TAKEN_S = 30.0  # until an actor that has not begun is told of
_HANDED_ON = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONUNBUFFERED", "PYTHONUTF8")
Say = Callable[[str, str], None]  # a level and a line, to the run's log


def describe(address: str) -> str:
    """Return Ray's release, and the nodes of the cluster beside this one, in a line.

    Raises UsageError when Ray is not installed or no cluster answers.
    """
    try:
        done = subprocess.run(
            _driver_argv(address), env=_environment().environ(), stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="replace", timeout=CONNECT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _refusal(address, f"does not answer within {CONNECT_S:g} s") from None
    if done.returncode != 0:
        raise _refusal(address, (done.stderr.splitlines() or ["no cluster answers"])[-1])
    return done.stdout.splitlines()[-1].partition(" ")[2]


def _refusal(address: str, reason: str) -> UsageError:
    return UsageError(
        f"serving.ray: {address}: {reason}; start Ray on every node (ray start --head on one, ray "
        "start --address=HOST:PORT on the others), or name the cluster's HOST:PORT"
    )


def _driver_argv(address: str, *options: str) -> list[str]:
    """Return the command of the driver; UsageError where Ray is not installed."""
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise UsageError(
            f"serving.ray: {address}: Ray is not installed in {sys.prefix}; install the cluster's "
            f"release there ({sys.executable} -m pip install ray==RELEASE), or with a cluster of "
            "your own optima-llm[ray]"
        )
    return [sys.executable, "-m", "optima.serving.cluster", address, *options]


def _environment() -> Environment:
    return Environment(Path(sys.prefix), Path(sys.executable))


class Cluster:
    """The run's side: a context manager that keeps a driver, which keeps the nodes.

    A driver that dies, as it does with its cluster, is started again. Raises UsageError when Ray is
    not installed or no cluster answers at the start.
    """

    def __init__(
        self, address: str, board: Board, *, envs: tuple[Environment, Environment],
        has_gpus: bool, log_dir: Path,
    ) -> None:  # fmt: skip
        vllm, train = (str(env.prefix) for env in envs)
        options = ["--shared", str(board.folder), "--vllm-env", vllm, "--train-env", train]
        self._argv = _driver_argv(address, *options, *(["--gpus"] if has_gpus else []))
        self._address = address
        self._log_dir = log_dir
        self._process: ManagedProcess | None = None
        self._failure: str | None = None
        self._n_failures = 0  # in a row
        self._has_begun = threading.Event()  # or has failed to
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="ray", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            if not self._has_begun.wait(CONNECT_S):
                raise _refusal(self._address, f"does not answer within {CONNECT_S:g} s")
            if self._failure is not None:
                raise _refusal(self._address, self._failure)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let the nodes end, which have read that the run is over; then end what is left."""
        self._closing.set()
        with self._lock:
            if self._process is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
        self._thread.join(_END_S + _REACH_S)
        self._stop()

    def _stop(self) -> None:
        self._closing.set()
        with self._lock:
            if self._process is not None:
                self._process.stop()
        self._thread.join(_REACH_S)

    def _keep(self) -> None:
        """Have a driver while the run lasts; give up only where the first finds no cluster."""
        while not self._closing.is_set():
            reason = self._drive()
            if self._closing.is_set():
                return
            if not self._has_begun.is_set():
                self._failure = reason
                self._has_begun.set()
                return
            again_s = _again_s(self._n_failures)
            self._n_failures += 1
            logger.warning(
                "Ray: its driver ended, and with it what it had on nodes (%s); again in %g s",
                reason, again_s,
            )  # fmt: skip
            self._closing.wait(again_s)

    def _drive(self) -> str:
        """Run a driver and log what it says; return why it ended."""
        process = ManagedProcess(
            self._argv, name="ray", log_path=self._log_dir / "ray.log",
            env=_environment().environ(), pipes=True,
        )  # fmt: skip
        with self._lock:
            if self._closing.is_set():
                return ""
            try:
                process.start()
            except ProcessError as error:
                return str(error)
            self._process = process
        with contextlib.suppress(ValueError):  # closed by who stops it
            for line in process.stdout:
                self._has_begun.set()
                self._n_failures = 0
                level, _, text = line.decode(errors="replace").strip().partition(" ")
                logger.log(logging.getLevelNamesMapping().get(level, logging.INFO), "%s", text)
        process.has_ended_within(_END_S)
        process.stop()
        status = process.poll()
        said = process.log_tail(1) if status == _NO_CLUSTER else []
        return said[0] if said else f"{explain_status(status or 0)}, log {process.log_path}"


def _again_s(n_failures: int) -> float:
    return float(min(_LAST_AGAIN_S, _AGAIN_S * 2**n_failures))


class Command:
    """An actor: a command on its node, which ends with the actor however that ends.

    A class of ``__main__``, so Ray takes it to the nodes by value and they need nothing but Ray.
    """

    def run(self, argv: Sequence[str], environ: Mapping[str, str], log: str) -> tuple[int, str]:
        """Return the exit status of a command, and the last line of its log."""
        read_fd, write_fd = os.pipe()  # closes with this process; the guard (argv) reads it
        command = [str(read_fd) if word == "FD" else word for word in argv]
        own = {**os.environ, **environ}
        own.pop("OMP_NUM_THREADS", None)  # Ray's word on how many threads its workers have
        with Path(log).open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=own,
                pass_fds=(read_fd,), start_new_session=True,
            )  # fmt: skip
        os.close(read_fd)
        status = process.wait()
        os.close(write_fd)
        lines = Path(log).read_text(encoding="utf-8", errors="replace").split("\n")
        return status, next((line for line in reversed(lines) if line.strip()), "")


@dataclass(slots=True)
class _Place:
    """A node of the cluster and what was asked of it: at most one actor at a time."""

    address: str
    actor: Any = None
    up: Any = None  # done once the actor runs
    asked: float = 0.0
    is_told: bool = False  # that others have the node
    n_failures: int = 0
    due: float = 0.0  # when it may be asked again


class _Driver:
    """Keeps an actor on every node of a cluster but this one, also on those that join later."""

    def __init__(self, ray: Any, given: argparse.Namespace, say: Say) -> None:
        self._ray = ray
        self._given = given
        self._say = say
        self._own = ray.get_runtime_context().get_node_id()
        self._places: dict[str, _Place] = {}
        self._running: dict[Any, str] = {}  # the node of what an actor does
        self._command = ray.remote(Command)

    def line(self) -> str:
        """Return what is there beside this node."""
        nodes = [node["Resources"] for node in self._nodes()]
        sums = (f"{sum(one.get(name, 0) for one in nodes):g} {name}s" for name in ("GPU", "CPU"))
        return (
            f"Ray {self._ray.__version__}: nodes beside this one: {len(nodes)}, {', '.join(sums)}"
        )

    def follow(self) -> None:
        """Keep the actors until standard input ends, then let them end by themselves."""
        while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            for node in self._nodes():
                place = self._places.setdefault(node["NodeID"], _Place(node["NodeManagerAddress"]))
                if place.actor is None and place.due <= time.monotonic():
                    self._ask(node, place)
            self._note_ended(0.0)
            self._tell_of_taken()
        self._running = {one: name for one, name in self._running.items() if self._is_up(name)}
        deadline = time.monotonic() + _END_S
        while self._running and time.monotonic() < deadline:
            self._note_ended(_LOOK_S)

    def _is_up(self, name: str) -> bool:
        return bool(self._ray.wait([self._places[name].up], timeout=0)[0])

    def _tell_of_taken(self) -> None:
        for name in self._running.values():
            place = self._places[name]
            is_late = time.monotonic() - place.asked > _TAKEN_S
            if is_late and not place.is_told and not self._is_up(name):
                place.is_told = True
                self._say("WARNING", f"Ray: node {place.address}: others have it; waiting for it")

    def _nodes(self) -> list[Mapping[str, Any]]:
        def fits(resources: Mapping[str, float]) -> bool:
            return bool(resources.get("GPU") or (not self._given.gpus and resources.get("CPU")))

        found = (node for node in self._ray.nodes() if node["NodeID"] != self._own)
        return [node for node in found if node["Alive"] and fits(node["Resources"])]

    def _ask(self, node: Mapping[str, Any], place: _Place) -> None:
        """Ask for an actor that has a node to itself, and let it be a node of the run."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        n_cpus, n_gpus = (node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        place.actor = self._command.options(
            num_cpus=n_cpus, num_gpus=n_gpus, scheduling_strategy=there
        ).remote()
        folder = Board(Path(self._given.shared)).logs("ray")
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{place.address}-{node['NodeID'][:8]}.log"
        argv = [sys.executable, "-I", "-S", guard.__file__, "FD", "", "--", sys.executable]
        argv += ["-m", "optima.cli", "optima", "serve-node", "--shared", self._given.shared]
        argv += ["--address", place.address, "--vllm-env", self._given.vllm_env]
        argv += ["--train-env", self._given.train_env]
        environ = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        place.up = place.actor.__ray_ready__.remote()
        place.asked, place.is_told = time.monotonic(), False
        self._running[place.actor.run.remote(argv, environ, str(log))] = node["NodeID"]
        self._say("INFO", f"Ray: asked {place.address} for {n_gpus:g} GPUs, {n_cpus:g} CPUs: {log}")

    def _note_ended(self, timeout_s: float) -> None:
        if not self._running:
            return
        ended, _ = self._ray.wait(list(self._running), timeout=timeout_s)
        for one in ended:
            place = self._places[self._running.pop(one)]
            place.actor = None  # the last handle, which frees what it had
            try:
                status, said = self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                status, said = 1, f"lost ({_first_line(error)})"
            if time.monotonic() - place.asked > _LAST_AGAIN_S:
                place.n_failures = 0
            again_s = _again_s(place.n_failures)
            place.due = time.monotonic() + again_s
            place.n_failures += 1
            if status:
                again = f"asked again in {again_s:g} s if it is there"
                self._say("WARNING", f"Ray: node {place.address}: {said}; {again}")


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error  # of what an actor raised
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def _connect(address: str) -> Any:
    """Return Ray, connected; raises whatever it or the network raises."""
    import ray

    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    host, found, port = address.rpartition(":")
    if found and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def main(argv: Sequence[str] | None = None) -> int:
    """Be the driver; return 2, with a line, when there is no cluster."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("address")
    parser.add_argument("--shared", help="the run's folder; without it only look")
    parser.add_argument("--vllm-env")
    parser.add_argument("--train-env")
    parser.add_argument("--gpus", action="store_true", help="only nodes with GPUs")
    given = parser.parse_args(argv)
    out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever Ray prints goes to the log

    def say(level: str, text: str) -> None:
        out.write(f"{level} {text}\n")
        out.flush()

    try:
        ray = _connect(given.address)
    except Exception as error:  # noqa: BLE001  whatever keeps Ray from connecting is said in a line
        sys.stderr.write(f"{' '.join(str(error).split()) or type(error).__name__}\n")
        return _NO_CLUSTER
    driver = _Driver(ray, given, say)
    say("INFO", driver.line())
    if given.shared is not None:
        driver.follow()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
