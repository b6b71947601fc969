"""Losses of texts under the base model, for R_loss (paper Eq. 1, docs/method.md), and of rows.

One worker process per GPU, or one on the CPU, runs ``optima.training.score`` in the training
environment. Equal items are computed once; items are ordered by length and sent in requests of
bounded size, several requests to a worker never at once. A dead worker is restarted once. Nodes of
a run compute losses too (``nodes``): what a node that is lost had is asked of the others.
"""

import contextlib
import json
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optima.errors import ProcessError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.processes.managed import ManagedProcess
from optima.recipe.schema import Recipe, ServingSection
from optima.serving.client import Roster, Server
from optima.serving.nodes import SCORE_PATH, Nodes
from optima.serving.probe import ask
from optima.serving.reply import RetryableError
from optima.types import ModelRef

logger = logging.getLogger(__name__)

# Large enough to sort within, small enough that a lost worker loses little and GPUs share evenly.
REQUEST_CHARS = 400_000
REQUEST_ITEMS = 2048
CPU_SHARE = 10  # a request is this much smaller on the CPU, so that deadlines keep their meaning
MAX_RESTARTS = 1
_READ_BYTES = 1 << 20
_LOOK_S = 0.2  # between two looks at whether a node is still there

Item = tuple[str, str]
Losses = tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, ...]


class _Answer(BaseModel):
    """A line of a worker: that it is ready, the losses of a request, or why there are none."""

    model_config = ConfigDict(strict=True, frozen=True)

    ready: bool = False
    id: int | None = None
    losses: Losses = ()
    row_losses: tuple[Losses, ...] = ()
    error: str | None = None


class _NodeAnswer(BaseModel):
    """The losses of a request to a node."""

    model_config = ConfigDict(strict=True, frozen=True)

    losses: Losses


class LossScorer:
    """Workers that compute losses under ``model``; a context manager that starts and stops them.

    ``losses`` takes (header, text) items: the mean negative log-likelihood per token of ``text``,
    the end of turn it ends with included, after ``header``, in nats. Deadlines are those of
    ``serving`` for a start and for a request.
    """

    def __init__(
        self, model: ModelRef, *, recipe: Recipe, devices: Devices, env: Environment, log_dir: Path
    ) -> None:
        self.model = model
        self.nodes: Nodes | None = None
        self.roster = Roster()
        self._recipe = recipe
        self._is_cpu = devices.kind == "cpu"
        gpus: tuple[int | None, ...] = (None,) if self._is_cpu else devices.gpus
        self._workers = []
        for place, gpu in enumerate(gpus):
            extra = {"TOKENIZERS_PARALLELISM": "true"}
            extra["CUDA_VISIBLE_DEVICES"] = "" if gpu is None else devices.mask((gpu,))
            self._workers.append(
                _Worker(
                    scorer_argv(model, recipe=recipe, env=env, devices=devices),
                    name=f"scorer {place}",
                    log_path=log_dir / f"scorer_{place}.log",
                    environ=env.environ(extra),
                    serving=recipe.serving,
                )
            )

    def __enter__(self) -> Self:
        self.roster = Roster(is_open=self.nodes is not None)
        self.call_nodes()
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the workers and wait until they are gone; those of nodes only leave."""
        if self.nodes is not None:
            self.nodes.withdraw(self.roster)
        for worker in self._workers:
            worker.stop()

    def call_nodes(self) -> None:
        """Have the nodes compute losses beside it, which may have done something else meanwhile."""
        if self.nodes is not None:
            self.nodes.serve(self.model, self.roster, is_scored=True)

    def losses(self, items: Sequence[Item]) -> list[float | None]:
        """Return the loss of each item; None where its text is empty or its loss not finite.

        Raises ProcessError when a worker dies twice, misses a deadline, or reports an error.
        """
        loss_by_item: dict[Item, float | None] = {}
        share = CPU_SHARE if self._is_cpu else 1
        waiting: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
        for part in split_requests(items, REQUEST_CHARS // share, REQUEST_ITEMS // share):
            waiting.put(part)
        errors: list[Exception] = []

        def work(worker: _Worker | _NodeWorker) -> None:
            while not errors:
                try:
                    part = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    losses = worker.ask(part)
                except RetryableError as error:
                    logger.warning("losses are asked of others: %s", error)
                    waiting.put(part)
                    return
                except Exception as error:  # noqa: BLE001  raised again in the caller's thread
                    errors.append(error)
                    return
                loss_by_item.update(zip(part, losses, strict=True))

        while not errors and not waiting.empty():  # again where a node gave its part back
            others = [_NodeWorker(server, self.roster, self._recipe) for server in self.roster]
            threads = [
                threading.Thread(target=work, args=(worker,), daemon=True)
                for worker in (*self._workers, *others)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()  # bounded: every request has a deadline
        if errors:
            raise errors[0]
        return [loss_by_item[item] if item[1] else None for item in items]

    def row_losses(self, rows: Sequence[Sequence[int]]) -> tuple[Losses, ...]:
        """Return the loss of each token after the first of rows of ids, None where not finite.

        One worker computes them, a row at a time. Raises what ``losses`` does.
        """
        return self._workers[0].ask_rows(rows)


def scorer_argv(
    model: ModelRef, *, recipe: Recipe, env: Environment, devices: Devices
) -> tuple[str, ...]:
    """Return the command of one worker."""
    argv = [str(env.python), "-m", "optima.training.score", "--model", model.path]
    argv += ["--device", devices.kind, "--batch-tokens", str(recipe.serving.scorer_batch_tokens)]
    is_auto, has_bfloat16 = recipe.model.dtype == "auto", devices.has_bfloat16
    if recipe.model.dtype == "float32" or (is_auto and not has_bfloat16):
        argv += ["--dtype", "float32"]
    if recipe.model.revision is not None and model.path == recipe.model.path:
        argv += ["--revision", recipe.model.revision]
    if model.adapter is not None:
        argv += ["--adapter", model.adapter]
    if recipe.model.trust_remote_code:
        argv.append("--trust-remote-code")
    return tuple(argv)


def split_requests(items: Sequence[Item], max_chars: int, max_items: int) -> list[list[Item]]:
    """Return the distinct items with text, longest first, in lists of bounded size."""
    distinct = sorted(
        {item for item in items if item[1]}, key=lambda item: (-len(item[0]) - len(item[1]), *item)
    )
    parts: list[list[Item]] = []
    n_chars = 0
    for item in distinct:
        size = len(item[0]) + len(item[1])
        if not parts or n_chars + size > max_chars or len(parts[-1]) == max_items:
            parts.append([])
            n_chars = 0
        parts[-1].append(item)
        n_chars += size
    return parts


@dataclass
class _NodeWorker:
    """Workers of a node, which are one here: it spreads what it is asked over its GPUs."""

    server: Server
    roster: Roster
    recipe: Recipe

    def ask(self, items: list[Item]) -> list[float | None]:
        """Return the losses of one request's items; RetryableError when the node is lost."""
        found: list[bytes | Exception] = []
        timeout_s = self.recipe.serving.request_timeout_s

        def post() -> None:
            try:
                status, _, body = ask(self.server, "POST", SCORE_PATH, {"items": items}, timeout_s)
                found.append(body if status == 200 else RetryableError(body.decode()[:500]))
            except RetryableError as error:
                found.append(error)

        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        while thread.is_alive() and self.server in self.roster:  # no answer comes of one that left
            thread.join(_LOOK_S)
        answer = found[0] if found else RetryableError(str(self.server.failure))
        if isinstance(answer, Exception):
            self.server.is_alive = False
            raise answer
        losses = _NodeAnswer.model_validate_json(answer).losses
        if len(losses) != len(items):
            raise ProcessError(
                f"node {self.server.node}: answered {len(items)} texts with {len(losses)} losses"
            )
        return list(losses)


@dataclass
class _Worker:
    """One worker process and the lines spoken with it."""

    argv: tuple[str, ...]
    name: str
    log_path: Path
    environ: dict[str, str]
    serving: ServingSection
    _process: ManagedProcess | None = None
    _buffer: bytearray = field(default_factory=bytearray)
    _n_restarts: int = 0
    _next_id: int = 0

    def start(self) -> None:
        self._buffer.clear()
        self._process = ManagedProcess(
            self.argv, name=self.name, log_path=self.log_path, env=self.environ, pipes=True
        )
        self._process.start()

    def await_ready(self) -> None:
        answer = self._read(self.serving.start_timeout_s)
        if answer is None or not answer.ready:
            raise self._failure("ended before it was ready")

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def ask(self, items: list[Item]) -> list[float | None]:
        """Return the losses of one request's items; restarts a worker that died on the way."""
        asked = [{"header": header, "text": text} for header, text in items]
        answer = self._answered({"items": asked})
        if len(answer.losses) != len(items):
            raise self._failure(
                f"answered request {answer.id} with {len(answer.losses)} losses, where request "
                f"{self._next_id - 1} of {len(items)} was sent"
            )
        return list(answer.losses)

    def ask_rows(self, rows: Sequence[Sequence[int]]) -> tuple[Losses, ...]:
        """Return the losses of each row's tokens after the first; likewise."""
        answer = self._answered({"rows": [list(row) for row in rows]})
        if [len(one) for one in answer.row_losses] != [len(row) - 1 for row in rows]:
            raise self._failure(
                f"answered rows of {[len(row) for row in rows]} tokens with "
                f"{[len(one) for one in answer.row_losses]} losses"
            )
        return answer.row_losses

    def _answered(self, asked: Mapping[str, object]) -> _Answer:
        while True:
            answer = self._exchange(asked)
            if answer is not None:
                break
            if self._n_restarts >= MAX_RESTARTS:
                raise self._failure("died again after its restart")
            self._n_restarts += 1
            logger.warning("%s died, restarting it; its log: %s", self.name, self.log_path)
            self.stop()
            self.start()
            self.await_ready()
        if answer.error is not None:
            raise ProcessError(f"{self.name}: {answer.error}")
        if answer.id != self._next_id - 1:
            raise self._failure(
                f"answered request {answer.id}, where request {self._next_id - 1} was sent"
            )
        return answer

    def _exchange(self, asked: Mapping[str, object]) -> _Answer | None:
        """Send a request and return its answer; None when the worker is dead."""
        assert self._process is not None, "the scorer is used outside its context"
        request = {"id": self._next_id, **asked}
        self._next_id += 1
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self._read(self.serving.request_timeout_s)

    def _read(self, timeout_s: float) -> _Answer | None:
        """Return the next line's record; None at the end of the worker's output."""
        assert self._process is not None
        stream: IO[bytes] = self._process.stdout
        deadline = time.monotonic() + timeout_s
        poller = select.poll()  # unlike select it takes descriptors above 1,023
        poller.register(stream, select.POLLIN)
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poller.poll(1000 * left_s):
                raise self._failure(f"gave no answer within {timeout_s:g} s")
            part = os.read(stream.fileno(), _READ_BYTES)
            if not part:
                return None
            self._buffer += part
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            return _Answer.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            raise self._failure(
                f"wrote a line that is not an answer: {place}: {first['input']!r:.100}: "
                f"{first['msg'].lower()}"
            ) from error

    def _failure(self, what: str) -> ProcessError:
        process = self._process
        if process is None:
            return ProcessError(f"{self.name}: {what}; its log: {self.log_path}")
        with contextlib.suppress(ProcessError):  # only to learn the status, if it is ending
            process.wait(1.0)
        return ProcessError(f"{self.name}: {what}; {process.log_excerpt()}")
