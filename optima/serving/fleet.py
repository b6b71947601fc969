"""The vLLM servers of a model: one per GPU or group of GPUs, one on a CPU, or those of others.

A context manager: inside it every server has generated a token, those that die are started again
in place, and outside it nothing of them is left. Other weights may be put into those that run.
Servers listen on the loopback interface with a random key, on ports the kernel gives, so that
several runs share a host. On a node of a run they listen on the node's address with the run's key,
and servers of a run's nodes are part of its fleet while they are there (``nodes``).
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from optima.errors import ModelError, OptimaError, ServerError, UsageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.processes.managed import ManagedProcess
from optima.progress import SERVERS_FILE, ServerState, Serving, tell
from optima.recipe.schema import Recipe
from optima.recipe.sections import MAX_SERVED_RANK, base_url
from optima.serving.client import HOST, MODEL_NAME, Roster, Server, policy_name
from optima.serving.nodes import Nodes
from optima.serving.probe import served_as, with_retries
from optima.serving.weights import load_weights, obstacle, put_to_sleep, read_kept
from optima.serving.worker import EndpointWorker, Launch, Worker
from optima.types import ModelRef, TeamRef

logger = logging.getLogger(__name__)

GATE = "optima.serving.gate.Gate"  # as vLLM imports it
_BASE_NAME = "base"  # of the weights below an adapter; nobody asks for it
_TELL_S = 0.5  # between two looks at what is told of the servers
_LORA_RANKS = (8, 16, 32, 64, 128, 256, MAX_SERVED_RANK)  # the limits that every release takes
W = TypeVar("W", bound=Worker | EndpointWorker)


@dataclass(eq=False)
class Fleet:
    """Ready servers of ``model``; enter it to start them, leave it to stop them.

    With ``serving.endpoints`` the start model is served by those, and every other model by
    servers of our own. Raises ProcessError when a server does not start, StageError when it does
    not serve the model that was trained, ServerError when an endpoint does not generate; then
    nothing is left running. ``nodes`` serve beside it; ``host`` and ``api_key`` are what its own
    servers listen on and ask for, by default the loopback interface and a random key.
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
    model_name: str = field(default=MODEL_NAME, init=False)
    roster: Roster = field(default_factory=Roster, init=False)
    _workers: tuple[Worker | EndpointWorker, ...] = field(default=(), init=False)
    _kept: dict[str, object] | None = field(default=None, init=False)
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

    def call_nodes(self) -> None:
        """Have the nodes serve beside it, which may have done something else meanwhile."""
        if self.nodes is not None:
            self.nodes.serve(self.model, self.roster)

    def name_of(self, policy: str) -> str:
        """Return the name by which servers are asked for a policy: its adapter, or what all are."""
        is_own = isinstance(self.model, TeamRef) and policy in self.model.adapter_by_policy
        return policy_name(policy) if is_own else self.model_name

    def take(self, model: ModelRef) -> bool:
        """Have the running servers serve ``model`` instead; return whether they do.

        If not, it takes a start. Those that failed to are stopped, and it is logged why.
        """
        workers = [worker for worker in self._workers if isinstance(worker, Worker)]
        if not workers:  # endpoints
            return False
        started, section = time.monotonic(), self.recipe.model
        try:
            kept = self._kept or read_kept(self.model, section)
            if why := obstacle(self.model, kept, model, section):
                logger.debug("servers are started anew: %s", why)
                return False
            if self.nodes is not None:
                self.nodes.serve(model, self.roster)
            self._all_at_once(lambda worker: worker.take(model, load_weights), workers)
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
        path, told = self.log_dir / SERVERS_FILE, None
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
            for index, gpus in enumerate(gpu_groups(self.recipe, self.devices))
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
        serving, key = self.recipe.serving, endpoint_key()
        servers = [
            Server(index, base_url(url), key, is_alive=False)
            for index, url in enumerate(serving.endpoints)
        ]
        names = [self._name_at(server) for server in servers]
        self.model_name = names[0]
        for server, name in zip(servers, names, strict=True):
            if name != names[0]:
                raise ServerError(
                    f"serving.endpoints: {server.base_url} serves {name}, where "
                    f"{servers[0].base_url} serves {names[0]}; serve the start model under one "
                    "name everywhere"
                )
        return tuple(EndpointWorker(server, self.model_name, serving) for server in servers)

    def _name_at(self, server: Server) -> str:
        """Return the name under which an endpoint serves the model."""
        serving, path = self.recipe.serving, self.model.path
        try:
            name = with_retries(lambda: served_as(server, path, serving.start_timeout_s), serving)
        except ServerError as error:
            raise ServerError(f"serving.endpoints: {error}") from error
        logger.info("endpoint %s serves %s as the start model %s", server.base_url, name, path)
        return name


def uses_endpoints(model: ModelRef, recipe: Recipe) -> bool:
    """Return whether ``serving.endpoints`` serve ``model``: they hold the start model only."""
    start = recipe.model.path
    is_start = model.path == start or (
        Path(start).is_dir() and Path(model.path).resolve() == Path(start).resolve()
    )
    return bool(recipe.serving.endpoints) and not model.adapters and is_start


def endpoint_key() -> str:
    """Return the key for endpoints. Raises UsageError when it cannot be sent."""
    key = os.environ.get("OPTIMA_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            "OPTIMA_API_KEY: holds characters that no HTTP header takes; set it to the key alone"
        )
    return key


def gpu_groups(recipe: Recipe, devices: Devices) -> tuple[tuple[int, ...], ...]:
    """Return the GPUs of each server; one empty group on a CPU."""
    if devices.kind == "cpu":
        return ((),)
    size = recipe.serving.tensor_parallel
    starts = range(0, len(devices.gpus), size)
    return tuple(devices.gpus[start : start + size] for start in starts)


def server_argv(
    model: ModelRef,
    *,
    recipe: Recipe,
    devices: Devices,
    env: Environment,
    port: int,
    host: str = HOST,
) -> tuple[str, ...]:
    """Return the argument list of a server of ``model`` on ``port``; the key is not in it."""
    serving = recipe.serving
    argv = [str(env.python), "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--host", host, "--port", str(port), "--model", model.path]
    if recipe.model.tokenizer is not None:
        argv += ["--tokenizer", recipe.model.tokenizer]
    dtype = recipe.model.dtype
    if dtype == "auto" and not devices.has_bfloat16:
        dtype = "float32"
    argv += ["--dtype", dtype, "--max-num-seqs", str(serving.max_num_seqs)]
    # Sampling is the recipe's alone: a model's generation_config.json may bring a top_k or a
    # repetition penalty of its own. Its stop tokens still count.
    argv += ["--generation-config", "vllm"]
    argv += ["--uvicorn-log-level", "warning"]  # no line per request
    argv += ["--middleware", GATE]
    argv += ["--served-model-name", _BASE_NAME if model.adapter else MODEL_NAME]
    if model.adapters:
        limit = max(_rank_limit(adapter, recipe) for adapter in model.adapters)
        argv += ["--enable-lora", "--max-loras", str(len(model.adapters))]
        argv += ["--max-lora-rank", str(limit)]
        names = [MODEL_NAME]
        if isinstance(model, TeamRef):
            names = [policy_name(policy) for policy in model.adapter_by_policy]
        pairs = zip(names, model.adapters, strict=True)
        argv += ["--lora-modules", *(f"{name}={adapter}" for name, adapter in pairs)]
    if recipe.model.revision is not None and model.path == recipe.model.path:
        argv += ["--revision", recipe.model.revision]
    if recipe.model.max_model_len is not None:
        argv += ["--max-model-len", str(recipe.model.max_model_len)]
    if devices.kind == "cuda":
        argv += ["--gpu-memory-utilization", str(serving.gpu_memory_utilization)]
        argv += ["--tensor-parallel-size", str(serving.tensor_parallel)]
    else:
        # A prefix is cached by whole blocks; of the 128 tokens that are vLLM's default on a CPU a
        # short conversation has few. 32 took a generation of 193 s to 154 s (2026-11-23).
        argv += ["--block-size", "32"]
    switches = {
        # On a CPU compilation more than doubles the start (120 s instead of 51 s, 2026-11-22).
        "enforce-eager": serving.enforce_eager or devices.kind == "cpu",
        # A prompt prefilled in pieces makes the CPU worker rewind the generator of a seeded
        # request, which torch cannot do on a CPU: the engine dies (vLLM 0.32, 2026-11-23).
        "no-enable-chunked-prefill": devices.kind == "cpu",
        "trust-remote-code": recipe.model.trust_remote_code,
        "enable-sleep-mode": serving.keep == "sleep",
    }
    argv += [f"--{name}" for name, is_on in switches.items() if is_on]
    return (*argv, *serving.extra_args)


def server_environ(
    model: ModelRef, *, recipe: Recipe, devices: Devices, gpus: tuple[int, ...], api_key: str
) -> dict[str, str]:
    """Return the variables a server needs beyond those of its Python environment."""
    variables = {
        "VLLM_API_KEY": api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if recipe.serving.keep != "restart":
        variables["VLLM_SERVER_DEV_MODE"] = "1"  # its paths want the key: serving/gate
    tokenizer = recipe.model.tokenizer
    if Path(model.path).is_dir() and (tokenizer is None or Path(tokenizer).is_dir()):
        variables["HF_HUB_OFFLINE"] = "1"
    if devices.kind == "cuda":
        variables["CUDA_VISIBLE_DEVICES"] = devices.mask(gpus)
    else:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(recipe.serving.cpu_kv_cache_gb)
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _rank_limit(adapter: str, recipe: Recipe) -> int:
    """Return the least limit vLLM takes that fits the adapter (the recipe's until it exists)."""
    rank = 16 if recipe.train.lora is None else recipe.train.lora.rank
    config = Path(adapter) / "adapter_config.json"
    if config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
            rank = max([settings["r"], *settings.get("rank_pattern", {}).values()])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{config}: is not an adapter configuration: {error!r}") from error
    for limit in _LORA_RANKS:
        if rank <= limit:
            return limit
    raise ModelError(f"{adapter}: rank {rank}: vLLM serves ranks up to {_LORA_RANKS[-1]}; merge it")
