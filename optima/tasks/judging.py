"""R_task: the score of a final answer against the gold answers, in [0, 1] (paper section 4).

A metric is computed in place, or, if it is slow as ``math`` is, in processes that can be killed,
with limits per answer: it works from any thread, and an expression that hangs costs seconds. What
cannot be scored is a ``JudgeError`` that names the answer, never 0. Whether two answers are the
same, for agreement and votes, goes by the same metric.
"""

import importlib.util
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from optima.errors import UsageError
from optima.tasks.task import JudgeError as JudgeError
from optima.tasks.task import Metric, shown

logger = logging.getLogger(__name__)
N_WORKERS = 2
CPU_LIMIT_S = 5.0  # per answer; CPU time, so a busy machine does not change the result
WALL_FACTOR = 6.0  # wall-clock limit in units of the CPU limit, for a process that only waits
START_TIMEOUT_S = 120.0  # sympy's import takes 1-2 s on an idle machine
REAP_TIMEOUT_S = 1.0  # between the end of a process's output and its exit status
LIMIT_STATUSES = (-signal.SIGPROF, -signal.SIGALRM)  # the kernel ended it at one of the limits

_HARMLESS = "7y"  # an expression that anything sound is compared with in no time


class Judgement(NamedTuple):
    """An answer to be scored, the golds of its problem, and its choices where it has any."""

    answer: str | None
    golds: Sequence[str]
    choices: Sequence[str] = ()


class Judge:
    """Scores answers; a context manager that owns its worker processes.

    Workers start when the first answer needs one, are replaced when they are killed, and end with
    the ``with`` block. All methods may be called from any thread.
    """

    def __init__(self, n_workers: int = N_WORKERS, cpu_limit_s: float = CPU_LIMIT_S) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._n_workers = n_workers
        self._workers: list[_Worker] = []
        self._idle: queue.Queue[_Worker] = queue.Queue()
        self._can_be_compared: dict[tuple[str, Sequence[str]], bool] = {}

    def __enter__(self) -> Self:
        if importlib.util.find_spec("math_verify") is None:
            raise UsageError(
                "math-verify is not installed, so no MATH answer could be judged; "
                "pip install math-verify"
            )
        self._workers = [_Worker(self._cpu_limit_s) for _ in range(self._n_workers)]
        for worker in self._workers:
            self._idle.put(worker)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._idle = queue.Queue()

    def score(
        self,
        metric: Metric,
        answer: str | None,
        golds: Sequence[str],
        choices: Sequence[str] = (),
    ) -> float:
        """Return the score of ``answer`` in [0, 1], the maximum over ``golds``; None scores 0.

        ``choices`` are those of the problem, in the order of their letters. Raises ``JudgeError``
        when it cannot be computed.
        """
        if not golds:
            raise ValueError("a problem has at least one gold answer")
        if answer is None or not answer.strip():
            return 0.0
        if not metric.is_slow:
            return max(metric.points(answer, gold, choices) for gold in golds)
        is_asked = metric.is_same is not None
        verdicts = [metric.same(answer, gold, choices) if is_asked else None for gold in golds]
        if any(verdicts):
            return 1.0
        golds = [gold for gold, verdict in zip(golds, verdicts, strict=True) if verdict is None]
        return self._slow_score(metric, Judgement(answer, golds, choices)) if golds else 0.0

    def prove(self, metric: Metric) -> None:
        """Raise ``JudgeError`` when the score of a slow metric cannot be imported."""
        if metric.is_slow:
            self._workers[0].use(metric)

    def score_many(
        self, metric: Metric, judgements: Sequence[Judgement | tuple[str | None, Sequence[str]]]
    ) -> list[float | JudgeError]:
        """Return one score, or the error that prevented it, for each judgement.

        Equal judgements are computed once; a slow metric uses all workers.
        """
        named = [Judgement(*judgement) for judgement in judgements]
        keys = [Judgement(one.answer, tuple(one.golds), tuple(one.choices)) for one in named]
        distinct = list(dict.fromkeys(keys))

        def score(judgement: Judgement) -> float | JudgeError:
            try:
                return self.score(metric, *judgement)
            except JudgeError as error:
                return error

        if metric.is_slow:
            with ThreadPoolExecutor(self._n_workers) as pool:
                results = list(pool.map(score, distinct))
        else:
            results = [score(judgement) for judgement in distinct]
        result_by_key = dict(zip(distinct, results, strict=True))
        return [result_by_key[key] for key in keys]

    def are_same(self, metric: Metric, a: str, b: str, choices: Sequence[str] = ()) -> bool:
        """Tell whether two answers are the same; blocks, for a slow metric, until that is known.

        Symmetric. What cannot be compared is the same as its equal only, with a warning: an answer
        that hangs costs two comparisons, not one with every other answer that it meets.
        """
        try:
            is_same = metric.same(a, b, choices)
            if is_same is not None:
                return is_same
            if not all(self._can_be_compared.get((text, tuple(choices)), True) for text in (a, b)):
                return False
            pairs = ((a, (b,)), (b, (a,)))
            return any(self.score(metric, *pair, choices) == 1.0 for pair in pairs)
        except JudgeError as error:
            logger.warning("answers counted as different: %s", error)
            for text in (a, b):
                key = (text, tuple(choices))
                if key not in self._can_be_compared:
                    self._can_be_compared[key] = self._is_harmless(metric, text, choices)
            return False

    def _is_harmless(self, metric: Metric, answer: str, choices: Sequence[str]) -> bool:
        try:
            self.score(metric, answer, choices[:1] or (_HARMLESS,), choices)
        except JudgeError:
            return False
        return True

    def _slow_score(self, metric: Metric, judgement: Judgement) -> float:
        if not self._workers:
            raise RuntimeError("the judge is used outside its with block")
        worker = self._idle.get()
        try:
            return worker.score(metric, judgement)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process of ``optima.tasks.worker``, used by one thread at a time."""

    def __init__(self, cpu_limit_s: float) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._reference = ""  # of the function that the process computes

    def score(self, metric: Metric, judgement: Judgement) -> float:
        """Return the best score; raises ``JudgeError``, after which the next call starts afresh."""
        self.use(metric)
        wall_limit_s = self._cpu_limit_s * WALL_FACTOR
        job = {
            "answer": judgement.answer,
            "golds": list(judgement.golds),
            "choices": list(judgement.choices),
            "cpu_limit_s": self._cpu_limit_s,
            "wall_limit_s": wall_limit_s,
        }
        golds = shown(" | ".join(judgement.golds))
        place = f"answer {shown(str(judgement.answer))} against gold {golds}"
        result = self._ask(job, wall_limit_s, place)
        if result is None:  # the process was ended from outside: not this answer's fault
            result = self._ask(job, wall_limit_s, place)
        if result is None:
            raise JudgeError(f"{place}: the comparing process died twice; is memory short?")
        if "error" in result:
            raise JudgeError(f"{place}: cannot be compared ({result['error']})")
        score = float(result["score"])
        if not 0 <= score <= 1:
            raise JudgeError(f"{place}: metric {metric} gave {score}, which is not from 0 to 1")
        return score

    def use(self, metric: Metric) -> None:
        """Have a process that computes this metric; raises ``JudgeError`` when there is none."""
        if str(metric.score) != self._reference:
            self.close()
            self._reference = str(metric.score)
        self._started()

    def _ask(self, job: dict[str, Any], wall_limit_s: float, place: str) -> dict[str, Any] | None:
        """Return the process's result, None when it died for no reason that lies in the job."""
        process = self._started()
        stdin, stdout = _pipes(process)
        try:
            stdin.write(json.dumps(job).encode() + b"\n")
            line = _read_line(stdout, wall_limit_s + 1)
        except OSError:
            line = b""
        if line:
            result: dict[str, Any] = json.loads(line)
            return result
        status = self.stop()
        if status is not None and status not in LIMIT_STATUSES:
            return None
        raise JudgeError(
            f"{place}: not compared within {self._cpu_limit_s:g} s of computing; the comparing "
            "process was ended"
        )

    def stop(self) -> int | None:
        """Kill the process, if there is one, and reap it; return how it had ended before."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            status: int | None = process.wait(REAP_TIMEOUT_S)  # it may be ending just now
        except subprocess.TimeoutExpired:
            status = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return status

    def close(self) -> None:
        """End an idle process by closing its stdin."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self.stop()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, sys.path)])  # a plug-in's folder among them
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optima.tasks.worker", self._reference],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
        )
        line = _read_line(_pipes(self._process)[1], START_TIMEOUT_S)
        if not line or "error" in json.loads(line):
            status = self.stop()
            what = json.loads(line)["error"] if line else f"exit status {status}"
            raise JudgeError(
                f"the comparing process (python -m optima.tasks.worker {self._reference}) did not "
                f"start within {START_TIMEOUT_S:g} s ({what}); run it by hand to see why"
            )
        return self._process


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    return process.stdin, process.stdout


def _read_line(stream: IO[bytes], timeout_s: float) -> bytes:
    """Return one line of an unbuffered pipe; empty when it ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(stream, select.POLLIN | select.POLLHUP)
    line = b""
    while not line.endswith(b"\n"):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or not poller.poll(remaining_s * 1000):
            return b""
        part = os.read(stream.fileno(), 65536)
        if not part:
            return b""
        line += part
    return line
