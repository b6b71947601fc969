"""How much CPU a command takes before it does anything: its help, a mistake, a dry run.

    python -m bench.startup --runs 7 --python .envs/train/bin/python

Each line is the least of several runs: user and system seconds of the process and of all that it
started, and how many times the floor that is, an interpreter that imports typer, pydantic and yaml.
Modules are compiled before, as they are after an installation. Needs the model of the quickstart
for the dry runs.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CLI = "from optima.cli.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"
FLOOR = "import typer, pydantic, yaml"
PROGRAMS = ("sft", "dpo", "sft-dpo", "infer", "multi-sc", "fetch-model", "optima")
COMMANDS = (
    *("tasks", "pairs", "rescore", "try", "sweep", "ablate", "baselines", "transfer", "compare"),
    *("status", "report", "view", "export", "doctor", "recipes", "recipes show", "prompts show"),
)
QUICK = "--config recipes/{}/quickstart.yaml"
MISTAKES = (
    "sft --oops",
    "sft",
    "sft --config nowhere.yaml",
    f"sft {QUICK.format('sft')} sed=1",
    f"sft {QUICK.format('sft')} seed=x",
    f"sft {QUICK.format('dpo')}",
    "infer --oops",
    "infer --model nowhere --task arc",
    "infer --model nowhere --task nothing --output /tmp/nowhere",
    "optima oops",
    "optima status nowhere",
    "optima report nowhere",
    "optima rescore nowhere",
    "optima compare nowhere elsewhere",
    "optima pairs --run nowhere",
    "optima try --config nowhere.yaml",
    f"optima sweep {QUICK.format('sft')} --over nothing=1,2 --run-dir /tmp/nowhere",
)
DRY_RUNS = tuple(
    f"{method} {QUICK.format(method.replace('-', '_'))} --dry-run"
    for method in ("sft", "dpo", "sft-dpo")
)


def cpu_seconds(argv: list[str], environ: dict[str, str], n_runs: int) -> tuple[float, int]:
    """Return the least CPU time of some runs, that of all children included, and the status."""
    seconds = []
    for _ in range(n_runs + 1):  # the first compiles
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = subprocess.run(argv, capture_output=True, env=environ, check=False).returncode
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(seconds[1:]), status


def command_lines() -> Iterator[tuple[str, int]]:
    """Yield command lines with the exit status that each must have."""
    yield from ((f"{program} --help", 0) for program in PROGRAMS)
    yield from ((f"optima {command} --help", 0) for command in COMMANDS)
    yield from ((line, 2) for line in MISTAKES)
    yield from ((line, 0) for line in DRY_RUNS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--only", default="", help="command lines that hold this text")
    options = parser.parse_args()
    python = str(options.python)
    with tempfile.TemporaryDirectory() as compiled:
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        empty, _ = cpu_seconds([python, "-c", "pass"], environ, options.runs)
        floor, _ = cpu_seconds([python, "-c", FLOOR], environ, options.runs)
        print(f"{empty:6.3f} s        an interpreter that does nothing")
        print(f"{floor:6.3f} s  1.0x  {FLOOR}")
        for line, expected in command_lines():
            if options.only not in line:
                continue
            argv = [python, "-c", CLI, *line.split()]
            seconds, status = cpu_seconds(argv, environ, options.runs)
            wrong = "" if status == expected else f"  (status {status}, not {expected})"
            print(f"{seconds:6.3f} s {seconds / floor:4.1f}x  {line}{wrong}", flush=True)


if __name__ == "__main__":
    main()
