"""The benchmarks: one file each, and the table of them."""

import difflib

from optima.errors import UsageError
from optima.tasks import arc, cbt, gsm8k, hotpot_qa, math, mmlu, mwh_qa, trivia_qa, two_hop
from optima.tasks.task import Task

TASKS: dict[str, Task] = {
    "hotpot_qa": hotpot_qa.TASK,
    "mwh_qa": mwh_qa.TASK,
    "trivia_qa": trivia_qa.TASK,
    "cbt": cbt.TASK,
    "math": math.TASK,
    "gsm8k": gsm8k.TASK,
    "arc": arc.TASK,
    "mmlu": mmlu.TASK,
    "two_hop": two_hop.TASK,
}

SPELLINGS = {"trival_qa": "trivia_qa"}  # names that the original project's commands use


def get_task(name: str) -> Task:
    """Return the task called ``name``; raises ``UsageError`` with the nearest name."""
    task = TASKS.get(SPELLINGS.get(name, name))
    if task is None:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(TASKS)}"
        raise UsageError(f"task: {name!r} is no task ({hint})")
    return task
