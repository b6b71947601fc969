"""The vLLM servers of a model: one per GPU or group of GPUs, one on a CPU, or those of others.

A context manager: inside it every server has generated a token, those that die are started again
in place, and outside it nothing of them is left. Other weights may be put into those that run.
Servers listen on the loopback interface with a random key, on ports the kernel gives, so that
several runs share a host. On a node of a run they listen on the node's address with the run's key,
and servers of a run's nodes are part of its fleet while they are there (``nodes``).
"""

import concurrent.futures
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from optima.errors import OptimaError, ServerError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.processes.managed import ManagedProcess
from optima.progress import SERVERS_FILE, ServerState, Serving, tell
from optima.recipe.schema import Recipe
from optima.recipe.sections import base_url
from optima.serving.client import HOST, Roster, Server, served_name
from optima.serving.command import (
    LoraRoom,
    endpoint_field,
    endpoint_key,
    gpu_groups,
    lora_room,
    parts_of,
    server_argv,
    server_environ,
    shares_of,
    uses_endpoints,
)
from optima.serving.nodes import Nodes
from optima.serving.probe import name_at, with_retries
from optima.serving.weights import (
    load_adapters,
    load_weights,
    obstacle,
    obstacle_to_adapters,
    put_to_sleep,
    read_kept,
)
from optima.serving.worker import EndpointWorker, Launch, Worker
from optima.types import EndpointRef, ModelRef, TeamRef

logger = logging.getLogger(__name__)

_TELL_S = 0.5  # between two looks at what is told of the servers
_GIVEN_UP_S = 0.5  # until a start that was given up is looked at again
W = TypeVar("W", bound=Worker | EndpointWorker)


@dataclass(eq=False)
class Fleet:
    """Ready servers of ``model``; enter it to start them, leave it to stop them.

    With ``serving.endpoints`` the start model is served by those, and every other model by
    servers of our own. Raises ProcessError when a server does not start, StageError when it does
    not serve the model that was trained, ServerError when an endpoint does not generate; then
    nothing is left running. ``nodes`` serve beside it; ``host`` and ``api_key`` are what its own
    servers listen on and ask for, by default the loopback interface and a random key. Servers count
    from ``first_index``.
    """

    model: ModelRef
    is_asleep: bool = field(default=False, init=False)
    _: KW_ONLY
    recipe: Recipe
    devices: Devices
    env: Environment
    log_dir: Path
    nodes: Nodes | None = None
    host: str = HOST
    api_key: str | None = field(default=None, repr=False)
    first_index: int = 0
    roster: Roster = field(default_factory=Roster, init=False)
    _workers: tuple[Worker | EndpointWorker, ...] = field(default=(), init=False)
    _endpoint_name: str | None = field(default=None, init=False)
    _kept: dict[str, object] | None = field(default=None, init=False)
    _lora_room: LoraRoom | None = field(default=None, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _teller: threading.Thread | None = field(default=None, init=False)

    @property
    def servers(self) -> tuple[Server, ...]:
        """Those of ``roster`` now: its own, the same across restarts, and those of nodes."""
        return tuple(self.roster)

    def __enter__(self) -> Self:
        started = time.monotonic()
        self.roster = Roster(is_open=self.nodes is not None)
        self.call_nodes()  # which load the model meanwhile
        if uses_endpoints(self.model, self.recipe):
            self._workers = self._endpoint_workers()
        else:
            self._workers = self._own_workers()
            self._lora_room = lora_room(self.model, self.recipe, self.devices)
            if Path(self.model.path).is_dir():  # which may be gone when another model is to come
                self._kept = read_kept(self.model, self.recipe.model)
        logger.info(
            "starting %d server(s) of %s, logs in %s",
            len(self._workers), self.model.place, self.log_dir,
        )  # fmt: skip
        self.roster.join(*(worker.server for worker in self._workers))
        self._teller = threading.Thread(target=self._tell, name="tell-servers", daemon=True)
        self._teller.start()
        self._all_at_once(lambda worker: worker.start(), self._workers)
        for worker in self._workers:
            worker.watch()
        logger.info("servers ready after %.1f s", time.monotonic() - started)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_foreign(self) -> bool:
        """Whether it is a policy that somebody else serves."""
        return isinstance(self.model, EndpointRef)

    def serves(self, model: ModelRef) -> bool:
        """Tell whether a policy's model is served: by itself, or over the same base."""
        if self.is_foreign or isinstance(model, EndpointRef):
            return self.model == model
        return self.model.path == model.path

    def call_nodes(self) -> None:
        """Have the nodes serve beside it, which may have done something else meanwhile."""
        if self.nodes is not None:
            self.nodes.serve(self.model, self.roster)

    @property
    def model_name(self) -> str:
        """The name by which servers are asked for the model, or for the base of a team."""
        return self._endpoint_name or served_name(self.model)

    def name_of(self, policy: str) -> str:
        """Return the name by which servers are asked for a policy: its adapter, or what all are."""
        model = self.model
        return served_name(model.member(policy)) if isinstance(model, TeamRef) else self.model_name

    def take(self, model: ModelRef) -> bool:
        """Have the running servers serve ``model`` instead; return whether they do.

        If not, it takes a start. Those that failed to are stopped, and it is logged why.
        """
        workers = [worker for worker in self._workers if isinstance(worker, Worker)]
        if not workers:  # endpoints
            return False
        started, section = time.monotonic(), self.recipe.model
        try:
            old, load = self.model, load_weights
            has_adapters = bool(old.adapters or model.adapters)
            if has_adapters and old.path == model.path and not self.is_asleep:
                wanted = lora_room(model, self.recipe, self.devices)
                why = obstacle_to_adapters(model, self.recipe, self._lora_room, wanted)
                load = load_adapters
            else:
                kept = self._kept or read_kept(old, section)
                why = obstacle(old, kept, model, section)
            if why is not None:
                logger.debug("servers are started anew: %s", why)
                return False
            if self.nodes is not None:
                self.nodes.serve(model, self.roster)
            self._all_at_once(lambda worker: worker.take(model, load), workers)
        except OptimaError as error:
            reason = str(error).partition("\n")[0]  # the end of a log may follow
            logger.warning("weights not loaded, so servers are started anew: %s", reason)
            return False
        self.model, self.is_asleep = model, False
        logger.info("weights loaded in %.1f s: %s", time.monotonic() - started, model.place)
        return True

    def sleep(self) -> bool:
        """Have the servers give their memory back until ``take``; return whether they do.

        Those that failed to are stopped.
        """
        workers = [worker for worker in self._workers if isinstance(worker, Worker)]
        if not workers or self.model.adapters:
            return False
        self._withdraw()
        try:
            self._all_at_once(lambda worker: worker.sleep(put_to_sleep), workers)
        except OptimaError as error:
            logger.warning("servers are stopped, as one does not sleep: %s", error)
            return False
        self.is_asleep = True
        return True

    def stop(self) -> None:
        """Stop all servers at once and wait until they are gone; those of nodes only leave."""
        self._withdraw()
        self._stopped.set()
        workers, self._workers = self._workers, ()
        own = {worker.server for worker in workers}
        self.roster.leave(lambda server: server in own)
        if workers:
            with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
                list(pool.map(lambda worker: worker.stop(), workers))
        if self._teller is not None:
            self._teller.join()

    def _tell(self) -> None:
        """Keep beside the logs what the servers are doing, while there are any."""
        path, told = self.log_dir / SERVERS_FILE.format(self.first_index), None
        is_over = False
        while not is_over:
            if (now := self._state()) != told:
                tell(path, now)
                told = now
            is_over = self._stopped.wait(_TELL_S)
        with contextlib.suppress(OSError):
            path.unlink()

    def _state(self) -> Serving:
        logs = {one.server: one.log_path for one in self._workers if isinstance(one, Worker)}
        return Serving(
            model=self.model.place,
            is_asleep=self.is_asleep,
            servers=tuple(
                ServerState(
                    name=f"server {server.index}" if server.node is None else server.node,
                    url=server.base_url,
                    is_alive=server.is_alive,
                    trouble=server.failure or server.trouble,
                    log=log.name if (log := logs.get(server)) is not None else None,
                )
                for server in self.roster
            ),
        )

    def _withdraw(self) -> None:
        if self.nodes is not None:
            self.nodes.withdraw(self.roster)

    def _all_at_once(self, act: Callable[[W], None], workers: Sequence[W]) -> None:
        """Let all workers act; the first failure stops all servers, and rises."""
        with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
            acts = [pool.submit(act, worker) for worker in workers]
            try:
                for done in concurrent.futures.as_completed(acts):
                    done.result()
            except BaseException:
                self.stop()  # what still acts gives up, else the pool would wait for it
                raise

    def _own_workers(self) -> tuple[Worker, ...]:
        api_key = self.api_key or secrets.token_hex(16)
        serving = self.recipe.serving
        return tuple(
            Worker(
                Server(index, "", api_key, is_alive=False, host=self.host),
                self._launcher(index, gpus, api_key),
                self.model,
                serving,
                self.log_dir,
            )
            for index, gpus in enumerate(gpu_groups(self.recipe, self.devices), self.first_index)
        )

    def _launcher(self, index: int, gpus: tuple[int, ...], api_key: str) -> Launch:
        recipe, devices = self.recipe, self.devices

        def launch(model: ModelRef, port: int, log_path: Path) -> ManagedProcess:
            argv = server_argv(
                model, recipe=recipe, devices=devices, env=self.env, port=port, host=self.host
            )
            variables = server_environ(
                model, recipe=recipe, devices=devices, gpus=gpus, api_key=api_key
            )
            return ManagedProcess(
                argv,
                name=f"server {index}",
                log_path=log_path,
                env=self.env.environ(variables),
                scratch_variable="VLLM_RPC_BASE_PATH",  # vLLM leaves its sockets behind
            )

        return launch

    def _endpoint_workers(self) -> tuple[EndpointWorker, ...]:
        serving, model = self.recipe.serving, self.model
        urls, policy, place = serving.endpoints, None, "serving.endpoints"
        if isinstance(model, EndpointRef):
            urls, policy, place = (model.url,), model.policy, endpoint_field(model)
        key = endpoint_key(policy)
        servers = [
            Server(index, base_url(url), key, is_alive=False)
            for index, url in enumerate(urls, self.first_index)
        ]
        names = [self._name_at(server, place) for server in servers]
        self._endpoint_name = names[0]
        for server, name in zip(servers, names, strict=True):
            if name != names[0]:
                raise ServerError(
                    f"serving.endpoints: {server.base_url} serves {name}, where "
                    f"{servers[0].base_url} serves {names[0]}; serve the start model under one "
                    "name everywhere"
                )
        return tuple(EndpointWorker(server, names[0], serving, place) for server in servers)

    def _name_at(self, server: Server, place: str) -> str:
        """Return the name under which an endpoint serves the model."""
        serving, model = self.recipe.serving, self.model
        if isinstance(model, EndpointRef) and model.name is not None:
            return model.name  # what it generates under that name is checked next
        try:
            name = with_retries(lambda: name_at(server, model, serving.start_timeout_s), serving)
        except ServerError as error:
            raise ServerError(f"{place}: {error}") from error
        logger.info("endpoint %s serves %s as %s", server.base_url, name, model.path)
        return name


@dataclass(eq=False)
class Fleets:
    """The fleets that serve a model: one, or for a team one for each base and each endpoint.

    A context manager as each of them is; ``fleets`` are in the order of the agents they play.
    """

    model: ModelRef
    _: KW_ONLY
    recipe: Recipe
    devices: Devices
    env: Environment
    log_dir: Path
    nodes: Nodes | None = None
    fleets: tuple[Fleet, ...] = field(default=(), init=False)

    def __enter__(self) -> Self:
        shares = shares_of(self.model, self.recipe, self.devices)
        self.fleets = tuple(
            Fleet(
                share.part, recipe=share.recipe, devices=share.devices, env=self.env,
                log_dir=self.log_dir, nodes=self.nodes, first_index=share.first_index,
            )
            for share in shares
        )  # fmt: skip
        own = [fleet for fleet in self.fleets if not fleet.is_foreign]
        # Each server measures what memory of a GPU is left, so those that share one come in turn.
        are_together = len(own) > 1 and not any(share.is_shared for share in shares)
        try:
            for fleet in self.fleets:
                if fleet.is_foreign:  # in this thread: a silent one can be given up by a signal
                    fleet.__enter__()
            if are_together:
                self._start_together(own)
            else:
                for fleet in own:
                    fleet.__enter__()
        except BaseException:
            self.stop()
            raise
        return self

    def _start_together(self, fleets: Sequence[Fleet]) -> None:
        """Start some fleets at once; the first failure stops all, and rises."""
        with concurrent.futures.ThreadPoolExecutor(len(fleets)) as pool:
            starts = [pool.submit(fleet.__enter__) for fleet in fleets]
            try:
                for start in concurrent.futures.as_completed(starts):
                    start.result()
            except BaseException:
                # What still starts gives up, else the pool would wait for it.
                while concurrent.futures.wait(starts, _GIVEN_UP_S).not_done:
                    self.stop()
                raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers of all fleets now."""
        return tuple(server for fleet in self.fleets for server in fleet.servers)

    @property
    def n_servers(self) -> int:
        """How many servers there are now, without those of others that are a policy."""
        return sum(len(fleet.roster) for fleet in self.fleets if not fleet.is_foreign)

    @property
    def is_asleep(self) -> bool:
        """Whether servers of it have given their memory back."""
        return any(fleet.is_asleep for fleet in self.fleets)

    def of(self, policy: str) -> Fleet:
        """Return the fleet that serves a policy; any is served where one plays all agents."""
        model = self.model
        member = model.member(policy) if isinstance(model, TeamRef) else model
        return next(fleet for fleet in self.fleets if fleet.serves(member))

    def call_nodes(self) -> None:
        """Have the nodes serve beside them, which may have done something else meanwhile."""
        for fleet in self.fleets:
            fleet.call_nodes()

    def take(self, model: ModelRef) -> bool:
        """Have the running servers serve ``model`` instead; return whether all do."""
        parts = parts_of(model, self.recipe)
        if len(parts) != len(self.fleets):
            return False
        for fleet, part in zip(self.fleets, parts, strict=True):
            is_kept = fleet.model == part and not fleet.is_asleep
            if not is_kept and not fleet.take(part):
                return False
        self.model = model
        return True

    def sleep(self) -> bool:
        """Have all servers of our own give their memory back; return whether they do."""
        return all(fleet.sleep() for fleet in self.fleets if not fleet.is_foreign)

    def stop(self) -> None:
        """Stop all servers, and wait until they are gone."""
        with contextlib.ExitStack() as stack:
            for fleet in self.fleets:
                stack.callback(fleet.stop)
