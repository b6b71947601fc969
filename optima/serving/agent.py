"""A node of a run: serves what the run wants served, for as long as the run is there.

``optima serve-node`` on each node. It follows what the run writes into a folder that both see
(``serving/board``), by a fleet of servers on its own devices, and says there what it serves. It
stops when the run is over, when the run gives no sign of life, and on a signal.
"""

import contextlib
import hmac
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from optima.errors import OptimaError, ServerError, UsageError
from optima.processes.devices import check_sockets, detect_devices
from optima.processes.environment import Environment, require_environment
from optima.processes.managed import ManagedProcess
from optima.serving.board import (
    BEAT_S,
    Announced,
    Board,
    Pulse,
    Training,
    Wanted,
    node_address,
    read_key,
    read_wanted,
    replace_text,
)
from optima.serving.client import url_of
from optima.serving.fleet import Fleet
from optima.serving.nodes import SCORE_PATH
from optima.serving.scorer import LossScorer
from optima.training.launch import training_argv, training_variables

logger = logging.getLogger(__name__)

FILES_S = 90.0  # until what another node wrote is seen; NFS keeps what it knows for 60 s
_POLL_S = 0.5
_AGAIN_S, _LAST_AGAIN_S = 5.0, 300.0  # before another try at what failed, doubled each time


class NodeAgent:
    """Follows the run that owns a folder; ``run`` returns when that has ended."""

    def __init__(
        self, board: Board, *, address: str, env: Environment, train_env: str | None, wait_s: float
    ) -> None:
        self.name = f"{socket.gethostname()}-{secrets.token_hex(3)}"
        self._board = board
        self._address = address
        self._env = env
        self._train_env = train_env
        self._wait_s = wait_s
        self._fleet: Fleet | None = None
        self._scorer: LossScorer | None = None
        self._desk: ScoringDesk | None = None
        self._served = 0  # the generation
        self._trouble: str | None = None
        self._n_failures = 0
        self._change: threading.Thread | None = None
        self._changing_to: Wanted | None = None
        self._is_outdated = threading.Event()
        self._closing = threading.Event()

    def run(self) -> str:
        """Serve what the run wants until it ends; return the line that says so.

        Raises ServerError when no run comes within ``wait_s``, or it gives no sign of life.
        """
        pulse, wanted = Pulse(), self._await_run()
        logger.info("node %s follows the run in %s", self.name, wanted.run)
        teller = threading.Thread(target=self._tell, name="tell", daemon=True)
        teller.start()
        try:
            while not wanted.is_over:
                pulse.note(self._run_beat())
                limit_s = wanted.recipe.serving.node_timeout_s
                if pulse.silent_s() > limit_s:
                    raise ServerError(
                        f"--shared {self._board.folder}: no sign of life of its run for "
                        f"{limit_s:g} s (serving.node_timeout_s); start the run again, then this"
                    )
                self._follow(wanted)
                time.sleep(_POLL_S)
                wanted = read_wanted(self._board) or wanted
        finally:
            self._closing.set()
            self._give_up_change()
            self._clear()
            teller.join()
            with contextlib.suppress(OSError):
                self._board.node(self.name).unlink(missing_ok=True)
        return f"node {self.name}: the run in {wanted.run} is over"

    def _await_run(self) -> Wanted:
        """Return what a run wants that gives signs of life."""
        pulse, deadline = Pulse(), time.monotonic() + self._wait_s
        while time.monotonic() < deadline:
            pulse.note(self._run_beat())
            if pulse.has_changed:
                self._board.check("--shared")
                wanted = read_wanted(self._board)
                if wanted is not None and not wanted.is_over:
                    return wanted
            time.sleep(_POLL_S)
        raise ServerError(
            f"--shared {self._board.folder}: no run with serving.nodes there gave a sign of life "
            f"for {self._wait_s:g} s (--wait-s); start one, or name the folder that its log names"
        )

    def _run_beat(self) -> str | None:
        with contextlib.suppress(OSError):
            return self._board.beat.read_text(encoding="utf-8") or None
        return None

    def _tell(self) -> None:
        """Announce what is served, again and again: the node's sign of life."""
        beat = 0
        while not self._closing.is_set():
            beat += 1
            with contextlib.suppress(OSError):  # of storage that may come back
                replace_text(self._board.node(self.name), self._announced(beat).model_dump_json())
            self._closing.wait(BEAT_S)

    def _announced(self, beat: int) -> Announced:
        fleet, generation, desk = self._fleet, self._served, self._desk
        servers = fleet.servers if fleet is not None and generation and desk is None else ()
        urls = tuple(server.base_url for server in servers if server.is_alive)
        if desk is not None and generation:
            urls = (desk.url,)
        failures = [server.failure for server in servers if server.failure]
        trouble = self._trouble or (failures[0].partition("\n")[0] if failures else None)
        return Announced(beat=beat, generation=generation, urls=urls, trouble=trouble)

    def _follow(self, wanted: Wanted) -> None:
        """Begin to serve what is wanted, unless that is under way or done."""
        if self._change is not None and self._change.is_alive():
            if self._is_obsolete(wanted):
                self._give_up_change()
            return  # or when it has ended, which takes no second start
        is_nothing = wanted.model is None and wanted.training is None
        if is_nothing or wanted.generation == self._served:
            return
        self._served = 0
        self._is_outdated.clear()
        self._changing_to = wanted
        self._change = threading.Thread(target=self._serve, args=(wanted,), name="serve")
        self._change.start()

    def _is_obsolete(self, wanted: Wanted) -> bool:
        """Return whether what is under way is no longer wanted, or stands in the way of it."""
        under_way = self._changing_to
        assert under_way is not None
        others = (under_way.training, wanted.training)
        if others != (None, None) or under_way.is_scored != wanted.is_scored:
            return under_way.generation != wanted.generation
        return wanted.model is not None and under_way.model != wanted.model

    def _give_up_change(self) -> None:
        """End a start of servers, or a training, that is under way."""
        self._is_outdated.set()
        while self._change is not None and self._change.is_alive():
            if (fleet := self._fleet) is not None:
                fleet.stop()
            if (scorer := self._scorer) is not None:
                scorer.stop()
            self._change.join(_POLL_S)

    def _serve(self, wanted: Wanted) -> None:
        """Serve what is wanted; what keeps it from that is announced."""
        try:
            if wanted.training is not None:
                self._train(wanted, wanted.training)
            elif wanted.is_scored:
                self._await_files(wanted)
                self._score(wanted)
            else:
                self._await_files(wanted)
                self._take(wanted)
            if not self._is_outdated.is_set():
                self._trouble, self._served, self._n_failures = None, wanted.generation, 0
        except (OptimaError, OSError) as error:
            if not self._is_outdated.is_set():
                self._trouble = str(error).partition("\n")[0]
                logger.warning("%s", error)
                if wanted.training is not None:  # which all machines begin anew, or none
                    self._served = wanted.generation
                    return
                self._is_outdated.wait(min(_LAST_AGAIN_S, _AGAIN_S * 2**self._n_failures))
                self._n_failures += 1

    def _take(self, wanted: Wanted) -> None:
        self._close_desk()
        recipe, model, fleet = wanted.recipe, wanted.model, self._fleet
        assert model is not None
        if fleet is not None and fleet.servers and fleet.recipe == recipe:
            if fleet.model == model and any(server.is_alive for server in fleet.servers):
                return
            if recipe.serving.keep != "restart" and fleet.take(model):
                return
        if fleet is not None:
            fleet.stop()
        if self._is_outdated.is_set():
            return
        self._fleet = Fleet(
            model,
            recipe=recipe,
            devices=detect_devices(recipe.serving),
            env=self._env,
            log_dir=self._board.logs(self.name),
            host=self._address,
            api_key=read_key(self._board.key),
        )
        self._fleet.__enter__()

    def _clear(self) -> None:
        """Free the devices."""
        self._close_desk()
        if self._fleet is not None:
            self._fleet.stop()
            self._fleet = None

    def _close_desk(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.__exit__()

    def _score(self, wanted: Wanted) -> None:
        """Compute losses under what is wanted, beside servers only where they stay."""
        assert wanted.model is not None
        self._close_desk()
        if wanted.recipe.serving.keep != "stay":
            self._clear()
        scorer = LossScorer(
            wanted.model,
            recipe=wanted.recipe,
            devices=detect_devices(wanted.recipe.serving),
            env=require_environment(self._train_env, "train"),
            log_dir=self._board.logs(self.name),
        )
        self._scorer = scorer
        desk = ScoringDesk(scorer, self._address, read_key(self._board.key))
        if not self._is_outdated.is_set():
            self._desk = desk.__enter__()

    def _train(self, wanted: Wanted, training: Training) -> None:
        """Do this node's part of a training; raises ProcessError when it fails."""
        if self.name not in training.rank_by_node:
            return
        self._clear()
        self._trouble = None
        devices = detect_devices(wanted.recipe.serving)
        if len(devices.gpus) < training.n_gpus:
            raise UsageError(
                f"serving.training_nodes: has {len(devices.gpus)} GPUs, {training.n_gpus} are "
                "needed as on the run's own; give it as many, or serving.gpus fewer"
            )
        devices = replace(devices, gpus=devices.gpus[: training.n_gpus])
        env = require_environment(self._train_env, "train")
        log_name = f"training_{wanted.generation}.log"
        process = ManagedProcess(
            training_argv(
                env,
                Path(training.folder),
                kind=training.kind,
                port=training.port,
                machines=training.machines(self.name),
            ),
            name="training",
            log_path=self._board.logs(self.name) / log_name,
            env=env.environ(training_variables(devices)),
        )
        with process:
            while not self._is_outdated.is_set():
                if process.has_ended_within(_POLL_S):
                    process.check(_POLL_S)
                    return

    def _await_files(self, wanted: Wanted) -> None:
        """Wait until this node sees the model as the run does; UsageError when it does not."""
        deadline = time.monotonic() + FILES_S
        while (missing := _missing(wanted)) and not self._is_outdated.is_set():
            self._trouble = (
                f"{missing}; keep the run and its models on storage that all nodes see, under the "
                "same path"
            )
            if time.monotonic() > deadline:
                raise UsageError(self._trouble)
            self._is_outdated.wait(_POLL_S)


class ScoringDesk:
    """An HTTP server by which a node's scorer is asked for losses, with the run's key.

    One request at a time is computed; the scorer spreads it over the GPUs.
    """

    def __init__(self, scorer: LossScorer, address: str, api_key: str) -> None:
        self._scorer = scorer
        expected = f"Bearer {api_key}".encode()
        computing = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(lambda: b"{}")

            def do_POST(self) -> None:
                self._reply(self._losses)

            def _losses(self) -> bytes:
                size = int(self.headers.get("Content-Length", 0))
                asked = ScoreRequest.model_validate_json(self.rfile.read(size))
                with computing:
                    losses = scorer.losses(asked.items)
                return json.dumps({"losses": losses}).encode()

            def _reply(self, answer: Callable[[], bytes]) -> None:
                given = self.headers.get("Authorization", "").encode("latin-1")
                if not hmac.compare_digest(given, expected):
                    status, body = 401, b"Unauthorized"
                elif self.path != SCORE_PATH:
                    status, body = 404, b"Not Found"
                else:
                    try:
                        status, body = 200, answer()
                    except (OptimaError, ValidationError) as error:
                        status, body = 500, str(error).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing of a request."""

        kind = type("Desk", (ThreadingHTTPServer,), {
            "address_family": socket.AF_INET6 if ":" in address else socket.AF_INET,
            "daemon_threads": True,
        })  # fmt: skip
        self._server: ThreadingHTTPServer = kind((address, 0), Handler)
        self.url = url_of(address, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._scorer.__enter__()
        except BaseException:
            self._server.server_close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._scorer.stop()


class ScoreRequest(BaseModel):
    """The texts of a request, each after its header."""

    items: list[tuple[str, str]]


def _missing(wanted: Wanted) -> str | None:
    """Return which of a model's files is not here as it is where the run is."""
    for name, size in wanted.files.items():
        try:
            found = Path(name).stat().st_size
        except OSError as error:
            return f"{name}: is not here ({error.strerror}), where the run sees {size} bytes"
        if found != size:
            return f"{name}: has {found} bytes here, {size} where the run is"
    return None


def serve_node(
    folder: Path,
    *,
    address: str | None,
    env: Environment,
    train_env: str | None = None,
    wait_s: float,
) -> str:
    """Be a node of the run that owns ``folder`` until it ends; return the line that says so.

    ``train_env`` names the environment of trainings in which it takes part.
    """
    where = node_address(address, "--address")
    check_sockets()
    board = Board(folder.absolute())
    agent = NodeAgent(board, address=where, env=env, train_env=train_env, wait_s=wait_s)
    return agent.run()
