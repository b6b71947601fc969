"""The tables of models, for commands and reports alike: one frame, as text, Markdown and CSV.

Each builder takes figures with their places, the words that begin a line, such as (run, model).
Scores are in per cent, tokens and turns per conversation.
"""

import contextlib
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from optima.evaluation.figures import AgentFigures, Figures
from optima.evaluation.statistics import Estimate
from optima.records import disk_errors, write_text
from optima.runs.comparison import Compared
from optima.runs.costs import SPENT_ON, EvaluationCost, ModelCost, repaid_after
from optima.types import Fault, StopReason

Placed = tuple[tuple[str, ...], Figures]

_REWARDS = {
    "R": "reward/total", "R_task": "reward/task", "R_token": "reward/token",
    "loss term": "reward/loss_term", "eligible": "reward/eligible",
    "trained before": "problems/trained_before", "R_task of others": "reward/task_others",
}  # fmt: skip
# Why conversations ended, and what else went wrong in them, by their metrics.
_ENDS = {
    **{f"stop/{end}": end.replace("_", " ") for end in get_args(StopReason)},
    **{f"fault/{fault}": f"fault: {fault.replace('_', ' ')}" for fault in get_args(Fault)},
    "health/leaked": "a label began",
    "health/repeated": "repeated",
    "health/empty": "empty",
    "health/top_share": "one answer",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """A head and rows of words and figures; the first ``n_left`` columns are words.

    ``name`` is a file's stem; ``caption`` says what the columns are, with units.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_left: int = 1
    name: str = ""
    title: str = ""
    caption: str = ""

    def text(self) -> str:
        """Return aligned columns below a ruled head."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < self.n_left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (self.head, *self.rows)
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def records(self) -> list[dict[str, Any]]:
        """Return a line each by the names of the columns, for JSON; figures are numbers."""
        return [
            {
                name: cell if i < self.n_left else _number(cell)
                for i, (name, cell) in enumerate(zip(self.head, row, strict=True))
            }
            for row in self.rows
        ]

    def markdown(self) -> str:
        """Return a table of GitHub's Markdown, with its last newline."""
        rule = ["---" if i < self.n_left else "---:" for i in range(len(self.head))]
        cells = (
            [cell.replace("|", "\\|") for cell in row] for row in (self.head, rule, *self.rows)
        )
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def csv(self) -> str:
        """Return comma-separated values with a head (RFC 4180)."""
        out = io.StringIO()
        csv.writer(out).writerows((self.head, *self.rows))
        return out.getvalue()


def _number(cell: str) -> int | float | str | None:
    """Return the number that a cell shows, None for one that shows there is none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return None if cell in ("", "-") else cell


@dataclass(frozen=True, slots=True)
class Spent:
    """What a model cost to make (None: it was not trained) and to evaluate.

    ``tokens`` are those of a conversation with it, None where it has not been asked yet.
    """

    label: str
    tokens: float | None
    cost: ModelCost | None = None
    evaluation: EvaluationCost | None = None


def models_table(shown: Sequence[Placed], head: Sequence[str] = ("model",)) -> Table:
    """Return one line per model; columns that no model has anything for are left out."""
    columns: dict[str, Callable[[Figures], str]] = {
        "problems": lambda one: str(one.n_problems),
        "samples": lambda one: str(one.n_samples),
        "score": lambda one: f"{100 * one.score.mean:.1f}",
        "score, 95 %": lambda one: interval(one.score, 100),
        "answered": lambda one: f"{100 * one.answered:.0f} %",
        "tokens": lambda one: f"{one.tokens.mean:.1f}",
        "tokens, 95 %": lambda one: interval(one.tokens),
        "median": lambda one: f"{one.tokens_median:.0f}",
        "p95": lambda one: f"{one.tokens_p95:.0f}",
        "generated": lambda one: f"{one.generated:.1f}",
        "turns": lambda one: f"{one.turns:.2f}",
        "failed": lambda one: f"{100 * one.failed:.1f} %",
        "reward": lambda one: "" if one.reward is None else f"{one.reward:.3f}",
        "made in": lambda one: f"{one.made_in_s:.0f} s" if one.made_in_s else "",
        "asked in": lambda one: f"{one.seconds:.0f} s",
    }
    cells = {name: [cell(one) for _, one in shown] for name, cell in columns.items()}
    if {one.n_samples for _, one in shown} <= {1}:
        del cells["samples"]
    kept = {name: column for name, column in cells.items() if any(column)}
    lines = [
        (*place, *(column[i] for column in kept.values())) for i, (place, _) in enumerate(shown)
    ]
    return Table((*head, *kept), tuple(lines), n_left=len(head))


def differences_table(rows: Sequence[Compared], names: Sequence[str]) -> Table:
    """Return one line per model; differences to the first, * where the interval leaves 0 out."""
    return Table(
        ("model", "problems", "score", "difference", "tokens", "difference", "common"),
        tuple(
            (
                name,
                str(row.figures.n_problems),
                f"{100 * row.figures.score.mean:.1f}",
                _difference(row.score, 100),
                f"{row.figures.tokens.mean:.1f}",
                _difference(row.tokens, 1),
                str(row.n_common),
            )
            for name, row in zip(names, rows, strict=True)
        ),
    )


def matrix_table(by_task: Mapping[str, Sequence[Figures]]) -> Table:
    """Return score and tokens of each model on each task."""
    labels = dict.fromkeys(one.label for of_task in by_task.values() for one in of_task)
    cells = {
        (task, one.label): f"{100 * one.score.mean:.1f} / {one.tokens.mean:.1f}"
        for task, of_task in by_task.items()
        for one in of_task
    }
    lines = [(label, *(cells.get((task, label), "") for task in by_task)) for label in labels]
    return Table(("model", *by_task), tuple(lines))


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Write ``<name>.md`` and ``<name>.csv`` of every table into a folder, made if missing."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for one in tables:
        text = f"# {one.title}\n\n{one.markdown()}\n{one.caption}\n"
        write_text(folder / f"{one.name}.md", text)
        write_text(folder / f"{one.name}.csv", one.csv())


def votes_table(
    shown: Sequence[Placed], head: Sequence[str] = ("model",), *, is_whole: bool = False
) -> Table:
    """Return votes and coverage for k = 1, 2, 4, ... and the last, or for every k."""
    lines = [
        (
            *place,
            str(point.k),
            f"{100 * point.score.mean:.1f}",
            interval(point.score, 100),
            f"{100 * point.coverage.mean:.1f}",
            interval(point.coverage, 100),
            f"{point.n_tokens:.1f}",
        )
        for place, one in shown
        for point in one.points
        if is_whole or point is one.points[-1] or point.k.bit_count() == 1
    ]
    columns = ("k", "vote", "vote, 95 %", "coverage", "coverage, 95 %", "tokens")
    return Table((*head, *columns), tuple(lines), n_left=len(head))


def rewards_table(
    drawn: Sequence[tuple[tuple[str, ...], Mapping[str, float]]], head: Sequence[str]
) -> Table:
    """Return the parts of the candidates' reward by the metrics of their stages."""
    digits = {
        **dict.fromkeys(_REWARDS.values(), 3),
        "tokens/conversation": 1,
        "turns/conversation": 2,
        "conversations": 0,
    }
    lines = [
        (*place, *(f"{metrics[key]:,.{n}f}" if key in metrics else "" for key, n in digits.items()))
        for place, metrics in drawn
    ]
    columns = (*_REWARDS, "tokens", "turns", "conversations")
    return Table((*head, *columns), tuple(lines), n_left=len(head))


def agents_table(
    shown: Sequence[tuple[tuple[str, ...], AgentFigures]], head: Sequence[str]
) -> Table:
    """Return one line per agent of a model: what it says, marks, and changes."""
    columns = (
        "turns", "tokens a turn", "seconds a turn", "marks", "marks first", "their score",
        "changes", "better", "worse",
    )  # fmt: skip
    lines = [(*place, agent.name, *_agent_cells(agent)) for place, agent in shown]
    return Table((*head, "agent", *columns), tuple(lines), n_left=len(head) + 1)


def _agent_cells(agent: AgentFigures) -> tuple[str, ...]:
    turns, said = max(1, agent.n_turns), max(1, agent.n_conversations)
    score = agent.first_score
    return (
        f"{agent.n_turns / said:.2f}", f"{agent.n_tokens / turns:.1f}",
        f"{agent.seconds / turns:.2f}", f"{100 * agent.n_marked / turns:.0f} %",
        f"{100 * agent.n_first / said:.0f} %",
        "" if score is None or not agent.n_scored else f"{100 * score / agent.n_scored:.1f}",
        str(agent.n_changed),
        *("" if n is None else str(n) for n in (agent.n_better, agent.n_worse)),
    )  # fmt: skip


_TRAININGS = {
    "rows": ("train/rows", 0), "steps": ("train/steps", 0), "tokens": ("tokens/trained", 0),
    "with loss": ("tokens/trained_with_loss", 0), "seconds": ("train/seconds", 1),
    "loss": ("train/loss", 3), "evaluation loss": ("train/eval_loss", 3),
}  # fmt: skip


def policies_table(
    shown: Sequence[tuple[tuple[str, ...], Mapping[str, float]]], head: Sequence[str]
) -> Table:
    """Return one line per training of a policy: what it was trained on and what that took."""
    lines = [
        (
            *place,
            *(f"{of[key]:,.{n}f}" if key in of else "" for key, n in _TRAININGS.values()),
        )
        for place, of in shown
    ]
    return Table((*head, "policy", *_TRAININGS), tuple(lines), n_left=len(head) + 1)


def ends_table(
    talks: Sequence[tuple[tuple[str, ...], Mapping[str, float]]], head: Sequence[str]
) -> Table | None:
    """Return why conversations ended and what went wrong in them; None where nothing is known."""
    kept = [key for key in _ENDS if any(key in metrics for _, metrics in talks)]
    if not kept:
        return None

    def share(metrics: Mapping[str, float], key: str) -> str:
        has_collapsed = key == "health/top_share" and metrics.get("health/collapsed")
        return f"{100 * metrics.get(key, 0.0):.1f} %{' !' if has_collapsed else ''}"

    lines = [(*place, *(share(metrics, key) for key in kept)) for place, metrics in talks]
    return Table((*head, *(_ENDS[key] for key in kept)), tuple(lines), n_left=len(head))


def cost_table(spent: Sequence[Spent], before: float | None = None) -> Table:
    """Return one line per model that has a cost of any kind.

    Trained models save tokens against the first that is not trained, or, where there is none,
    against ``before``: the tokens of a conversation with an untrained one.
    """
    first = untrained(spent)
    saved_from = before if first is None else first.tokens
    has_evaluations = any(one.evaluation for one in spent)
    lines = []
    for one in spent:
        if one.cost is None and one.evaluation is None:
            continue
        made = one.cost or ModelCost(one.label, 0, 0, dict.fromkeys(SPENT_ON, 0.0))
        line = [one.label, f"{made.n_generated:,}", f"{made.n_trained:,}"]
        line += [f"{made.device_seconds[kind]:.0f} s" for kind in SPENT_ON]
        if asked := one.evaluation:
            line += [f"{asked.n_generated:,}", f"{asked.device_seconds:.0f} s"]
        elif has_evaluations:
            line += ["", ""]
        lines.append((*line, _repaid(one, saved_from)))
    asked_head = ("evaluated: tokens", "evaluated") if has_evaluations else ()
    head = ("model", "tokens generated", "tokens trained", *SPENT_ON, *asked_head, "repaid after")
    return Table(head, tuple(lines))


def untrained(spent: Sequence[Spent]) -> Spent | None:
    """Return the first model that cost nothing to make, None if all were trained."""
    return next((one for one in spent if one.cost is None), None)


def interval(estimate: Estimate, factor: float = 1.0) -> str:
    """Return both ends of an interval times ``factor``."""
    return f"{factor * estimate.low:.1f}-{factor * estimate.high:.1f}"


def _difference(estimate: Estimate | None, factor: float) -> str:
    if estimate is None:
        return ""
    low, mean, high = (factor * x for x in (estimate.low, estimate.mean, estimate.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){'*' if estimate.is_nonzero else ' '}"


def _repaid(one: Spent, before: float | None) -> str:
    if one.cost is None or one.tokens is None:
        return ""
    if before is None:
        return "-"
    n = repaid_after(one.cost, before, one.tokens)
    return "never" if n is None else f"{n:,}"
