"""Runs of the real training commands over the fake environments."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optima.processes.environment import Environment
from tests.commands import ROOT as ROOT
from tests.commands import TIMEOUT_S, command
from tests.templates import CHATML
from tests.tokenizers import write_tokenizer

MARK = "OPTIMA_TEST_RUN"  # every process of a run inherits it

RECIPE = """\
method: METHOD
task: two_hop
iterations: 2
model: {path: MODEL}
data: {n_train: 8, n_test: 3}
conversation: {max_turns: 6, max_turn_tokens: 64}
sampling: {n_samples: 3, first_temperature: 0.7}
select: {theta: -5.0}
cold_start: {n_problems: 4}
serving: {device: cpu, concurrency: 4, start_timeout_s: 20.0, max_attempts: 3}
"""
TREES = """\
search: {n_problems: 6, n_rounds: 3, n_probe: 4, concurrency: 3}
pairs: {theta_filter: -5.0, theta_diff: 0.01}
"""


def write_recipe(directory: Path, method: str) -> Path:
    model = directory / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "chat_template.jinja").write_text(CHATML)
    write_tokenizer(model)
    (model / "config.json").write_text('{"max_position_embeddings": 4096}')
    (model / "model.safetensors").write_bytes(b"start")
    recipe = directory / "recipe.yaml"
    text = RECIPE.replace("METHOD", method).replace("MODEL", str(model))
    if method == "dpo":  # whose first iteration is the SFT that initialises it
        text = text.replace("iterations: 2", "iterations: 3")
    recipe.write_text(text + (TREES if method != "sft" else ""))
    return recipe


def debate_data(directory: Path) -> list[str]:
    """Write a few rows of ARC below ``directory``; return the overrides that make it the task."""
    data = directory / "data"
    data.mkdir()
    for split, n in (("train", 6), ("test", 2)):
        rows = [
            {
                "id": f"{split}{i}", "question": f"Which number is {split} {i}?",
                "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
                "answerKey": "ABC"[i % 3],
            }
            for i in range(n)
        ]  # fmt: skip
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "task=arc", f"data.path={data}", "data.n_train=6", "data.n_test=2", "cold_start=null"
    ]  # fmt: skip


def start(
    directory: Path,
    environment: Environment,
    *overrides: str,
    run: str = "run",
    mark: str = "",
    method: str = "sft",
) -> subprocess.Popen[str]:
    """Start a run in ``directory / run``; ``mark`` finds its processes."""
    words = _words(directory, environment, overrides, run, method)
    return subprocess.Popen(
        [sys.executable, "-m", "optima.cli", *words], cwd=ROOT, env={**os.environ, MARK: mark},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _words(
    directory: Path, environment: Environment, overrides: Sequence[str], run: str, method: str
) -> list[str]:
    words = [method, "--config", str(write_recipe(directory, method)), *overrides]
    words += ["--vllm-env", str(environment.prefix), "--train-env", str(environment.prefix)]
    return [*words, "--run-dir", str(directory / run)]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return (exit status, stdout, stderr)."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def attempt(
    directory: Path,
    environment: Environment,
    *overrides: str,
    run: str = "run",
    method: str = "sft",
) -> tuple[int, str, str]:
    """Run to the end in this process; return (exit status, stdout, stderr)."""
    return command(*_words(directory, environment, overrides, run, method))


def run(directory: Path, environment: Environment, *overrides: str, **options: str) -> str:
    """Run to the end in this process and return the table; the run must succeed."""
    status, out, err = attempt(directory, environment, *overrides, **options)
    assert status == 0, err
    return out


def rewind(finished: Path, copy: Path, stage: str) -> None:
    """Copy a finished run without ``stage`` and all that was done after it.

    It goes on by the command that made it, given ``run=str(copy)``.
    """
    shutil.copytree(finished, copy)
    done = [json.loads(line)["stage"] for line in (copy / "metrics.jsonl").open()]
    for name in done[done.index(stage) :]:
        shutil.rmtree(copy / name)


def processes_of(mark: str) -> list[str]:
    """Return the command lines of living processes that inherited ``mark``."""
    needle, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def results(root: Path) -> dict[str, Any]:
    """Return everything a run computed, without times, absolute paths, and what it moved aside."""
    found: dict[str, Any] = {}
    for path in _present(root, "*.jsonl"):
        name = str(path.relative_to(root))
        if path.name in ("conversations.jsonl", "trees.jsonl", "pairs.jsonl"):
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name not in ("metrics.jsonl", "rounds.jsonl") and "logs" not in path.parts:
            found[name] = path.read_bytes()
    for path in _present(root, "*model.safetensors"):
        found[str(path.relative_to(root))] = path.read_bytes()
    return found


def _present(root: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(root.rglob(pattern)) if ".superseded-" not in str(path)]


def _timeless(record: Any) -> Any:
    """Return the record without the seconds that its turns took."""
    if isinstance(record, list):
        return [_timeless(item) for item in record]
    if isinstance(record, dict):
        return {key: _timeless(value) for key, value in record.items() if key != "seconds"}
    return record
