"""The vLLM servers of a model: one per GPU or group of GPUs, one on a CPU, or those of others.

A context manager: inside it every server has generated a token, those that die are started again
in place, and outside it nothing of them is left. Servers listen on the loopback interface with a
random key, on ports the kernel gives, so that several runs share a host.
"""

import concurrent.futures
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from optima.errors import ServerError, UsageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.processes.managed import ManagedProcess
from optima.recipe.schema import Recipe
from optima.serving.client import Server
from optima.serving.command import (
    MODEL_NAME,
    gpu_groups,
    server_argv,
    server_environ,
)
from optima.serving.probe import patiently, served_as
from optima.serving.worker import EndpointWorker, Worker
from optima.types import ModelRef

logger = logging.getLogger(__name__)

__all__ = ["Fleet", "Server", "gpu_groups", "server_argv", "uses_endpoints"]


class Fleet:
    """Ready servers of ``model``; enter it to start them, leave it to stop them.

    With ``serving.endpoints`` the start model is served by those, and every other model by
    servers of our own. Raises ProcessError when a server does not start, StageError when it does
    not serve the model that was trained, ServerError when an endpoint does not generate; then
    nothing is left running.
    """

    def __init__(
        self,
        model: ModelRef,
        *,
        recipe: Recipe,
        devices: Devices,
        env: Environment,
        log_dir: Path,
    ) -> None:
        self.model_name = MODEL_NAME
        self._model = model
        self._recipe = recipe
        self._devices = devices
        self._env = env
        self._log_dir = log_dir
        self._workers: tuple[Worker | EndpointWorker, ...] = ()

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers, the same objects across restarts; empty outside the context."""
        return tuple(worker.server for worker in self._workers)

    def __enter__(self) -> Self:
        started = time.monotonic()
        if uses_endpoints(self._model, self._recipe):
            self._workers = self._endpoint_workers()
        else:
            self._workers = self._own_workers()
        logger.info(
            "starting %d server(s) of %s, logs in %s",
            len(self._workers), self._model.adapter or self._model.path, self._log_dir,
        )  # fmt: skip
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise
        logger.info("servers ready after %.1f s", time.monotonic() - started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop all servers at once and wait until they are gone."""
        workers, self._workers = self._workers, ()
        if workers:
            with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
                list(pool.map(lambda worker: worker.stop(), workers))

    def _start_all(self) -> None:
        """Start all at once; the first failure ends the waiting for the others and rises."""
        with concurrent.futures.ThreadPoolExecutor(len(self._workers)) as pool:
            starts = [pool.submit(worker.start) for worker in self._workers]
            try:
                for start in concurrent.futures.as_completed(starts):
                    start.result()
            except BaseException:
                self.stop()  # what still starts gives up, else the pool would wait for it
                raise
        for worker in self._workers:
            worker.watch()

    def _own_workers(self) -> tuple[Worker, ...]:
        api_key = secrets.token_hex(16)
        serving = self._recipe.serving
        return tuple(
            Worker(
                Server(index, "", api_key, is_alive=False),
                self._launcher(index, gpus, api_key),
                self._model,
                serving,
                self._log_dir,
            )
            for index, gpus in enumerate(gpu_groups(self._recipe, self._devices))
        )

    def _launcher(
        self, index: int, gpus: tuple[int, ...], api_key: str
    ) -> Callable[[int, Path], ManagedProcess]:
        variables = server_environ(
            self._model, recipe=self._recipe, devices=self._devices, gpus=gpus, api_key=api_key
        )

        def launch(port: int, log_path: Path) -> ManagedProcess:
            argv = server_argv(
                self._model, recipe=self._recipe, devices=self._devices, env=self._env, port=port
            )
            return ManagedProcess(
                argv,
                name=f"server {index}",
                log_path=log_path,
                env=self._env.environ(variables),
                scratch_variable="VLLM_RPC_BASE_PATH",  # vLLM leaves its sockets behind
            )

        return launch

    def _endpoint_workers(self) -> tuple[EndpointWorker, ...]:
        serving, key = self._recipe.serving, endpoint_key()
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
        serving, path = self._recipe.serving, self._model.path
        try:
            name = patiently(lambda: served_as(server, path, serving.start_timeout_s), serving)
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
    return bool(recipe.serving.endpoints) and model.adapter is None and is_start


def endpoint_key() -> str:
    """Return the key for endpoints. Raises UsageError when it cannot be sent."""
    key = os.environ.get("OPTIMA_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            "OPTIMA_API_KEY: holds characters that no HTTP header takes; set it to the key alone"
        )
    return key


def base_url(endpoint: str) -> str:
    """Return an endpoint's URL without the version that clients often append."""
    return endpoint.rstrip("/").removesuffix("/v1").rstrip("/")
