"""One server of a fleet: started, probed, watched, and started again in place when it dies."""

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from optima.errors import ProcessError, ServerError
from optima.processes.managed import ManagedProcess
from optima.recipe.schema import ServingSection
from optima.serving.client import Server
from optima.serving.command import HOST
from optima.serving.probe import check_completion, is_healthy

logger = logging.getLogger(__name__)

PROBE_S = 0.5  # between two looks at a server that starts
WATCH_S = 0.25  # between two looks at whether the process lives
HEALTH_S = 10.0  # between two health probes of a running server
HEALTH_TIMEOUT_S = 30.0
MAX_UNHEALTHY = 4  # failed probes in a row after which a running process counts as hung
_MAX_PORTS = 5
_BIND_MARKS = ("address already in use", "errno 98")


class Worker:
    """Owns the process behind one ``Server`` and keeps ``server.is_alive`` true to it."""

    def __init__(
        self,
        server: Server,
        launch: Callable[[int, Path], ManagedProcess],
        model_name: str,
        serving: ServingSection,
        log_dir: Path,
    ) -> None:
        self.server = server
        self._launch = launch
        self._model_name = model_name
        self._serving = serving
        self._log_dir = log_dir
        self._process: ManagedProcess | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the server and wait until it generates.

        Raises ProcessError, with the end of the log, as soon as it exits or when it is not ready
        after ``serving.start_timeout_s``.
        """
        deadline = time.monotonic() + self._serving.start_timeout_s
        for n_ports in range(1, _MAX_PORTS + 1):
            port = self._port()
            process = self._launch(port, _new_log(self._log_dir, self.server.index))
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = process
                process.start()
            self.server.base_url = f"http://{HOST}:{port}"
            try:
                self._await_ready(process, deadline)
                return
            except ProcessError:
                process.stop()
                tail = "\n".join(process.log_tail()).lower()
                is_bound = any(mark in tail for mark in _BIND_MARKS)
                if n_ports == _MAX_PORTS or self._serving.port is not None or not is_bound:
                    raise
                logger.info("server %d: port %d was taken, trying another", self.server.index, port)

    def watch(self) -> None:
        """Watch the server from a thread of its own until ``stop``."""
        self._thread = threading.Thread(
            target=self._supervise, name=f"watch-server-{self.server.index}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop the process and the watching; waits until both are gone."""
        self._stopping.set()
        self.server.is_alive = False
        self.server.failure = self.server.failure or "the servers were stopped"
        with self._lock:
            process = self._process
        if process is not None:
            process.stop()
        if self._thread is not None:
            self._thread.join(HEALTH_TIMEOUT_S + 5)

    def _port(self) -> int:
        """Return the recipe's port for this server, or a free one; ProcessError if it is taken."""
        if self._serving.port is None:
            return free_port()
        port = self._serving.port + self.server.index
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise ProcessError(
                    f"serving.port: {port} of server {self.server.index} cannot be had ({error}); "
                    "give another, or leave serving.port out to take free ones"
                ) from error
        return port

    def _await_ready(self, process: ManagedProcess, deadline: float) -> None:
        problem = "it does not answer /health"
        while not self._stopping.wait(PROBE_S):
            if process.poll() is not None:
                raise process.failure()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ProcessError(
                    f"{process.name}: not ready after {self._serving.start_timeout_s:.0f} s "
                    f"(serving.start_timeout_s): {problem}; {process.log_excerpt()}"
                )
            if not is_healthy(self.server, min(5.0, left_s)):
                continue
            try:
                check_completion(self.server, self._model_name, left_s)
            except ServerError as error:
                problem = str(error)
                continue
            if process.poll() is None:  # else something else answered on its port
                self.server.is_alive = True
                return

    def _supervise(self) -> None:
        n_restarts = 0
        while not self._stopping.is_set():
            failure = self._wait_for_end()
            if failure is None:
                return
            self.server.is_alive = False
            logger.warning("%s", failure)
            while not self._stopping.is_set():
                if n_restarts == self._serving.max_restarts:
                    self.server.failure = (
                        f"gave up after {n_restarts} restarts (serving.max_restarts): {failure}"
                    )
                    logger.error(
                        "server %d: gave up after %d restarts", self.server.index, n_restarts
                    )
                    return
                n_restarts += 1
                logger.info("server %d: restart %d", self.server.index, n_restarts)
                try:
                    self.start()
                    logger.info("server %d: is back", self.server.index)
                    break
                except ProcessError as error:
                    failure = error
                    logger.warning("%s", failure)

    def _wait_for_end(self) -> ProcessError | None:
        """Return why the running server counts as dead, None when the fleet is stopped."""
        assert self._process is not None
        process = self._process
        n_unhealthy = 0
        next_probe = time.monotonic() + HEALTH_S
        while not self._stopping.wait(WATCH_S):
            if process.poll() is not None:
                process.stop()
                return process.failure()
            if time.monotonic() < next_probe:
                continue
            n_unhealthy = 0 if is_healthy(self.server, HEALTH_TIMEOUT_S) else n_unhealthy + 1
            next_probe = time.monotonic() + HEALTH_S
            if n_unhealthy == MAX_UNHEALTHY and process.poll() is None:
                process.stop()
                return ProcessError(
                    f"{process.name}: failed {MAX_UNHEALTHY} health probes in a row, stopped; "
                    f"{process.log_excerpt()}"
                )
        return None


class EndpointWorker:
    """Watches a server that somebody else runs; it is never started or stopped."""

    def __init__(self, server: Server, model_name: str, serving: ServingSection) -> None:
        self.server = server
        self._model_name = model_name
        self._serving = serving
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Probe the endpoint once. Raises ServerError with its answer if it does not generate."""
        check_completion(self.server, self._model_name, self._serving.start_timeout_s)
        self.server.is_alive = True

    def watch(self) -> None:
        """Watch its health from a thread of its own until ``stop``."""
        self._thread = threading.Thread(
            target=self._supervise, name=f"watch-server-{self.server.index}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the watching."""
        self._stopping.set()
        self.server.is_alive = False
        self.server.failure = "the servers are no longer watched"
        if self._thread is not None:
            self._thread.join(1.0)  # it owns nothing, and its probe of a deaf server may take long

    def _supervise(self) -> None:
        n_unhealthy = 0
        while not self._stopping.wait(HEALTH_S):
            is_up = is_healthy(self.server, HEALTH_TIMEOUT_S)
            n_unhealthy = 0 if is_up else n_unhealthy + 1
            is_alive = n_unhealthy < MAX_UNHEALTHY
            if is_alive != self.server.is_alive:
                state = "is back" if is_alive else "does not answer"
                logger.warning("endpoint %s %s", self.server.base_url, state)
                self.server.is_alive = is_alive


def free_port() -> int:
    """Return a port of the loopback interface that the kernel says is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _new_log(log_dir: Path, index: int) -> Path:
    """Reserve the first unused log file of a server: one file per start."""
    log_dir.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        path = log_dir / f"server_{index}.{n}.log"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the count has no end")
