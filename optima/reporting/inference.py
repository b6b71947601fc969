"""The table of an inference: as text, Markdown, CSV, and JSON with the figures in full."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optima.evaluation.statistics import Estimate
from optima.evaluation.summary import Summary
from optima.pipelines.comparison import ComparisonRow
from optima.pipelines.cost import ModelCost, read_costs
from optima.pipelines.infer import InferenceRow
from optima.recipe.schema import Recipe
from optima.reporting.cost import cost_text
from optima.reporting.tables import Table, interval
from optima.rundir import write_text

HEAD = (
    *("model", "score", "95 %", "answered", "tokens", "95 %", "median", "p95", "turns", "failed"),
    "seconds",
)

COMPARISON_HEAD = ("model", "problems", "score", "difference", "tokens", "difference", "common")


def inference_table(rows: Sequence[InferenceRow]) -> Table:
    """Return one line per model: scores in per cent, tokens and turns per conversation."""
    return Table(HEAD, tuple(_cells(row) for row in rows))


def write_inference(
    recipe: Recipe, rows: Sequence[InferenceRow], output: Path, costs: Sequence[ModelCost] = ()
) -> str:
    """Write ``table.md``, ``table.csv`` and ``results.json``; return the table with its legend.

    ``costs`` are those of models that a run trained.
    """
    table = inference_table(rows)
    write_text(output / "table.md", table.markdown())
    write_text(output / "table.csv", table.csv())
    results = {
        "schema_version": 1,
        "task": recipe.task,
        "seed": recipe.seed,
        "models": [dataclasses.asdict(row) for row in rows],
        "costs": [dataclasses.asdict(cost) for cost in costs],
    }
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    n = rows[0].summary.n_problems
    tokens = {row.label: row.summary.tokens.mean for row in rows}
    generated = sum(row.summary.n_tokens for row in rows)
    return (
        f"{table.text()}\n\n{recipe.task}, {n} problems. Score in per cent, tokens generated per "
        f"conversation; {generated:,} in all.{cost_text(costs, tokens)}\nResults: {output}"
    )


def write_transfer(
    recipe_by_task: Mapping[str, Recipe],
    rows_by_task: Mapping[str, Sequence[InferenceRow]],
    output: Path,
) -> str:
    """Write each task's results and the matrix of scores; return the matrix with its legend."""
    for task, rows in rows_by_task.items():
        write_inference(recipe_by_task[task], rows, output / task)
    labels = [row.label for row in next(iter(rows_by_task.values()))]
    table = Table(
        ("model", *rows_by_task),
        tuple(
            (label, *(_score_and_tokens(rows[i].summary) for rows in rows_by_task.values()))
            for i, label in enumerate(labels)
        ),
    )
    write_text(output / "table.md", table.markdown())
    write_text(output / "table.csv", table.csv())
    return f"{table.text()}\n\nScore in per cent / tokens per conversation.\nResults: {output}"


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Return one line per model; differences to the first, * where the interval leaves 0 out."""
    return Table(
        COMPARISON_HEAD,
        tuple(
            (
                f"{row.model.run}:{row.model.label}",
                str(row.summary.n_problems),
                f"{100 * row.summary.score.mean:.1f}",
                _difference(row.score, 100),
                f"{row.summary.tokens.mean:.1f}",
                _difference(row.tokens, 1),
                str(row.n_common),
            )
            for row in rows
        ),
    )


def comparison_cost(rows: Sequence[ComparisonRow]) -> str:
    """Return what the compared models cost, where a run trained them; nothing if none was."""
    tokens = {f"{row.model.run}:{row.model.label}": row.summary.tokens.mean for row in rows}
    costs = [
        replace(cost, label=f"{row.model.run}:{cost.label}")
        for row in rows
        for cost in read_costs(row.model.run)
        if cost.label == row.model.label
    ]
    return cost_text(costs, tokens)


def _score_and_tokens(summary: Summary) -> str:
    return f"{100 * summary.score.mean:.1f} / {summary.tokens.mean:.1f}"


def _difference(estimate: Estimate | None, factor: float) -> str:
    if estimate is None:
        return ""
    low, mean, high = (factor * x for x in (estimate.low, estimate.mean, estimate.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}){'*' if estimate.is_nonzero else ' '}"


def _cells(row: InferenceRow) -> tuple[str, ...]:
    summary = row.summary
    return (
        row.label,
        f"{100 * summary.score.mean:.1f}",
        interval(summary.score, 100),
        f"{100 * summary.answered:.0f} %",
        f"{summary.tokens.mean:.1f}",
        interval(summary.tokens, 1),
        f"{summary.tokens_median:.0f}",
        f"{summary.tokens_p95:.0f}",
        f"{summary.turns:.2f}",
        f"{100 * summary.failed:.1f} %",
        f"{row.seconds:.0f}",
    )
