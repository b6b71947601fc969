"""The benchmarks (ARC and MMLU share a file), the table of them, and the tasks of other packages.

What a task of another package is made of can be imported from here (docs/tasks.md).
"""

import difflib
from dataclasses import replace

from optima import plugins
from optima.errors import UsageError
from optima.tasks import arc_mmlu, cbt, gsm8k, hotpot_qa, math, trivia_qa, two_hop
from optima.tasks.dealing import Dealing as Dealing
from optima.tasks.metrics import EXACT_MATCH, F1, MATH
from optima.tasks.task import HubSource as HubSource
from optima.tasks.task import MalformedRowError as MalformedRowError
from optima.tasks.task import Metric as Metric
from optima.tasks.task import RoleSet as RoleSet
from optima.tasks.task import Row as Row
from optima.tasks.task import Task as Task
from optima.tasks.task import file_names as file_names
from optima.tasks.task import gold_field as gold_field
from optima.tasks.task import text_field as text_field
from optima.types import Problem as Problem

TASKS: dict[str, Task] = {
    "hotpot_qa": hotpot_qa.TASK,
    "mwh_qa": hotpot_qa.MWH_QA,
    "trivia_qa": trivia_qa.TASK,
    "cbt": cbt.TASK,
    "math": math.TASK,
    "gsm8k": gsm8k.TASK,
    "arc": arc_mmlu.ARC,
    "mmlu": arc_mmlu.MMLU,
    "two_hop": two_hop.TASK,
}
METRICS: dict[str, Metric] = {"f1": F1, "exact_match": EXACT_MATCH, "math": MATH}

SPELLINGS = {"trival_qa": "trivia_qa"}  # names that the original project's commands use


def get_task(name: str) -> Task:
    """Return the task called ``name``: built in, of an installed package, or package.module:NAME.

    Raises ``UsageError`` with the nearest name, or with what is wrong with a plug-in.
    """
    name = SPELLINGS.get(name, name)
    try:
        plugin = plugins.find(plugins.TASKS, name, TASKS)
        if plugin is not None:
            return _loaded(plugin)
    except UsageError as error:
        raise UsageError(f"task: {error}") from error
    if name not in TASKS:
        near = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(task_names())}"
        raise UsageError(f"task: {name!r} is not a task ({hint})")
    return TASKS[name]


def get_metric(name: str) -> Metric:
    """Return the metric called ``name``, one of ``METRICS`` or package.module:NAME of another's.

    Raises ``UsageError`` for what is neither.
    """
    if plugins.is_reference(name):
        return plugins.load(plugins.Plugin(name, name, name), Metric)
    if name not in METRICS:
        raise UsageError(f"metric {name}: take one of {', '.join(METRICS)} or package.module:NAME")
    return METRICS[name]


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, those of installed packages last; none of them is imported."""
    return (*TASKS, *(plugin.name for plugin in plugins.installed(plugins.TASKS)))


def _loaded(plugin: plugins.Plugin) -> Task:
    task = plugins.load(plugin, Task)
    if plugin.name not in (task.name, plugin.reference):
        raise UsageError(f"{plugin}: its Task is called {task.name!r}; give both one name")
    return replace(task, name=plugin.name, source=plugin.source)
