"""One server of a fleet: started, probed, watched, and started again in place when it dies."""

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from optima.errors import OptimaError, ProcessError, ServerError, StageError
from optima.processes.devices import free_port
from optima.processes.managed import ManagedProcess
from optima.recipe.schema import ServingSection
from optima.serving.client import Server, served_name, url_of
from optima.serving.probe import (
    PROMPT_IDS,
    check_completion,
    check_served,
    health_path,
    is_generating,
    is_healthy,
    with_retries,
)
from optima.serving.reply import KeyRefusedError, Reply, RetryableError
from optima.types import ModelRef

logger = logging.getLogger(__name__)

PROBE_S = 0.2  # between two looks at a server that starts
WATCH_S = 0.25  # between two looks at whether the process lives
HEALTH_S = 10.0  # between two health probes of a running server
HEALTH_TIMEOUT_S = 30.0
MAX_UNHEALTHY = 4  # failed probes in a row after which a running process counts as hung
Launch = Callable[[ModelRef, int, Path], ManagedProcess]  # of a model, a port and a log
# Of what a server serves and is to serve, with a deadline in seconds; whether it sleeps.
Load = Callable[[Server, ModelRef, ModelRef, float, bool], None]
_MAX_PORTS = 5
_BIND_MARKS = ("address already in use", "errno 98")


class Watcher:
    """Keeps ``server.is_alive`` true to a server, from a thread of its own until ``stop``."""

    def __init__(self, server: Server, serving: ServingSection) -> None:
        self.server = server
        self._serving = serving
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Begin to watch the server."""
        self._thread = threading.Thread(
            target=self._supervise, name=f"watch-server-{self.server.index}", daemon=True
        )
        self._thread.start()

    def _supervise(self) -> None:
        raise NotImplementedError

    def _end(self, failure: str) -> None:
        self._stopping.set()
        self.server.is_alive, self.server.failure = False, failure

    def _join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)


class Worker(Watcher):
    """Owns the process behind one ``Server``."""

    def __init__(
        self, server: Server, launch: Launch, model: ModelRef, serving: ServingSection, logs: Path
    ) -> None:
        super().__init__(server, serving)
        self._launch = launch
        self._model = model
        self._log_dir = logs
        self.log_path: Path | None = None
        self._process: ManagedProcess | None = None
        self._lock = threading.Lock()
        self._n_restarts = 0
        self._is_asleep = False

    def start(self) -> None:
        """Start the server and wait until it generates.

        Raises ProcessError, with the end of the log, as soon as it exits or when it is not ready
        after ``serving.start_timeout_s``, and StageError when it serves another model.
        """
        deadline = time.monotonic() + self._serving.start_timeout_s
        for n_ports in range(1, _MAX_PORTS + 1):
            port = self._port()
            self.log_path = _new_log(self._log_dir, self.server.index)
            process = self._launch(self._model, port, self.log_path)
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = process
                process.start()
            self.server.base_url = url_of(self.server.host, port)
            try:
                self._await_ready(process, deadline)
                return
            except ProcessError as error:
                process.stop()
                tail = "\n".join(process.log_tail()).lower()
                is_bound = any(mark in tail for mark in _BIND_MARKS)
                is_taken = is_bound or isinstance(error, _ForeignServerError)
                if n_ports == _MAX_PORTS or self._serving.port is not None or not is_taken:
                    raise
                logger.info("server %d: port %d was taken, trying another", self.server.index, port)
            except StageError:
                process.stop()
                raise

    def stop(self) -> None:
        """Stop the process and the watching; waits until both are gone."""
        self._end(self.server.failure or "the servers were stopped")
        with self._lock:
            process = self._process
        if process is not None:
            process.stop()
        self._join(HEALTH_TIMEOUT_S + 5)

    def take(self, model: ModelRef, load: Load) -> None:
        """Let ``load`` have the running server serve ``model``; a restart begins with it too.

        Raises OptimaError where it does not; it is then to be stopped.
        """
        old, self._model = self._model, model
        if not self.server.is_alive:
            raise ServerError(f"server {self.server.index}: {self.server.trouble}")
        load(self.server, old, model, self._serving.start_timeout_s, self._is_asleep)
        self._n_restarts, self._is_asleep = 0, False

    def sleep(self, put: Callable[[Server, float], None]) -> None:
        """Let ``put`` have the server give its memory back until ``take``; none restarts it then.

        Raises ServerError where it does not; it is then to be stopped.
        """
        self._is_asleep = True
        put(self.server, self._serving.start_timeout_s)

    def _port(self) -> int:
        """Return the recipe's port for this server, or a free one; ProcessError if it is taken."""
        if self._serving.port is None:
            return free_port(self.server.host)
        port = self._serving.port + self.server.index
        host = self.server.host
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ProcessError(
                    f"serving.port: {port} of server {self.server.index} is not available "
                    f"({error}); give another, or leave serving.port out to take free ones"
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
                    f"{process.name}: not ready after {self._serving.start_timeout_s:g} s "
                    f"(serving.start_timeout_s): {problem}; {process.log_excerpt()}"
                )
            if not is_healthy(self.server, min(5.0, left_s)):
                continue
            try:
                check_completion(self.server, served_name(self._model), left_s)
                check_served(self.server, self._model, left_s)
            except RetryableError as error:
                problem = str(error)
                continue
            except ServerError as error:  # waiting does not change such an answer
                if process.poll() is not None:
                    raise process.failure() from error
                is_foreign = isinstance(error, KeyRefusedError)
                kind = _ForeignServerError if is_foreign else ProcessError
                raise kind(f"{process.name}: {error}; {process.log_excerpt()}") from error
            if process.poll() is None:  # else something else answered on its port
                self.server.is_alive, self.server.trouble = True, None
                self.server.n_timeouts, self.server.paused_until = 0, 0.0
                return

    def _supervise(self) -> None:
        failure: Exception | None
        while not self._stopping.is_set():
            failure = self._wait_for_end()
            if failure is None:
                return
            self._note(failure)
            if self._is_asleep:  # its memory is somebody else's now
                return
            while not self._stopping.is_set():
                if (n := self._n_restarts) >= self._serving.max_restarts:
                    self.server.failure = (
                        f"gave up after {n} restarts (serving.max_restarts): {failure}"
                        if n
                        else f"serving.max_restarts=0 allows no restart: {failure}"
                    )
                    logger.error("server %d: %s", self.server.index, self.server.failure)
                    return
                self._n_restarts += 1
                logger.info("server %d: restart %d", self.server.index, self._n_restarts)
                try:
                    self.start()
                    logger.info("server %d: is back", self.server.index)
                    break
                except (OptimaError, OSError) as error:  # a full disk takes no log
                    failure = error
                    self._note(failure)

    def _note(self, failure: Exception) -> None:
        self.server.is_alive, self.server.trouble = False, str(failure)
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
            n_unhealthy = 0 if self._is_well() else n_unhealthy + 1
            next_probe = time.monotonic() + HEALTH_S
            if n_unhealthy == MAX_UNHEALTHY and process.poll() is None:
                process.stop()
                return ProcessError(
                    f"{process.name}: failed {MAX_UNHEALTHY} health probes in a row, stopped; "
                    f"{process.log_excerpt()}"
                )
        return None

    def _is_well(self) -> bool:
        name = served_name(self._model)
        return is_healthy(self.server, HEALTH_TIMEOUT_S) and _answers(self.server, name)


class _ForeignServerError(ProcessError):
    """Another server than ours answers on its port: it does not take our key."""


class EndpointWorker(Watcher):
    """Watches a server that somebody else runs; it is never started or stopped.

    ``place`` is the field that names it, for messages.
    """

    def __init__(
        self, server: Server, model_name: str, serving: ServingSection, place: str
    ) -> None:
        super().__init__(server, serving)
        self._model_name = model_name
        self._place = place
        self._health_path: str | None = None

    def start(self) -> None:
        """Have the endpoint generate. Raises ServerError with its answer if it does not."""
        timeout_s = self._serving.start_timeout_s
        try:
            reply = with_retries(
                lambda: check_completion(self.server, self._model_name, timeout_s),
                self._serving,
                self._stopping.wait,
            )
        except ServerError as error:
            raise ServerError(f"{self._place}: {error}") from error
        self._warn(reply)
        self._health_path = health_path(self.server, HEALTH_TIMEOUT_S)
        self.server.is_alive = True

    def _warn(self, reply: Reply) -> None:
        url, usage = self.server.base_url, reply.usage
        if reply.choice.token_ids is None:
            logger.warning(
                "endpoint %s gives no token ids (return_token_ids): what its model says is "
                "tokenised anew, for prompts and training; rows/retokenised counts it", url
            )  # fmt: skip
        n_prompt = usage.prompt_tokens if usage is not None else None
        if n_prompt not in (None, len(PROMPT_IDS)):
            logger.warning(
                "endpoint %s counts %d tokens in a prompt of %d ids: it may read something else "
                "than it is sent", url, n_prompt, len(PROMPT_IDS)
            )  # fmt: skip

    def stop(self) -> None:
        """End the watching."""
        self._end("the servers are no longer watched")
        self._join(1.0)  # the thread owns nothing, and its probe of a deaf server may take long

    def _supervise(self) -> None:
        server, limit_s = self.server, self._serving.start_timeout_s
        n_unhealthy, last_well = 0, time.monotonic()
        while not self._stopping.wait(HEALTH_S):
            if is_healthy(server, HEALTH_TIMEOUT_S, self._health_path) and _answers(
                server, self._model_name
            ):
                n_unhealthy, last_well = 0, time.monotonic()
            else:
                n_unhealthy += 1
            is_alive = n_unhealthy < MAX_UNHEALTHY
            if is_alive != server.is_alive:
                state = "is back" if is_alive else "does not answer"
                logger.warning("endpoint %s %s", server.base_url, state)
                server.trouble = None if is_alive else f"{server.base_url} {state}"
                server.is_alive, server.failure = is_alive, None
            if not is_alive and time.monotonic() - last_well > limit_s:
                server.failure = (  # else every call would wait for it by itself
                    f"{server.base_url}: did not answer for {limit_s:g} s "
                    "(serving.start_timeout_s); start it again, then run again to go on"
                )


def _answers(server: Server, model_name: str) -> bool:
    """Return False when calls get no answers: one timed out since the last, and a probe does."""
    if server.n_timeouts and is_generating(server, model_name, HEALTH_TIMEOUT_S):
        server.n_timeouts = 0
    return server.n_timeouts == 0


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
