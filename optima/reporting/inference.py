"""The table of an inference: as text, Markdown, CSV, and JSON with the figures in full."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optima.evaluation.statistics import Estimate
from optima.evaluation.summary import Summary
from optima.pipelines.comparison import ComparisonRow
from optima.pipelines.cost import (
    EvaluationCost,
    ModelCost,
    base_tokens,
    cost_of,
    evaluation_cost,
    read_costs,
)
from optima.pipelines.infer import InferenceRow
from optima.recipe.schema import Recipe
from optima.records import write_text
from optima.reporting.cost import cost_text
from optima.reporting.tables import EvaluationRow, Table, interval
from optima.rundir import read_done

HEAD = (
    *("model", "score", "95 %", "answered", "tokens", "95 %", "median", "p95", "generated"),
    *("turns", "failed", "seconds"),
)

COMPARISON_LEGEND = (
    "Score in per cent, tokens per conversation. Differences to the first over the problems in\n"
    "common, with 95 % intervals; * leaves 0 out."
)
COMPARISON_HEAD = ("model", "problems", "score", "difference", "tokens", "difference", "common")


def inference_table(rows: Sequence[InferenceRow]) -> Table:
    """Return one line per model: scores in per cent, tokens and turns per conversation."""
    return Table(HEAD, tuple(_cells(row) for row in rows))


def write_inference(recipe: Recipe, rows: Sequence[InferenceRow], output: Path) -> str:
    """Write ``table.md``, ``table.csv`` and ``results.json``; return the table with its legend.

    Models that a run trained come with what they cost there.
    """
    table = inference_table(rows)
    costs = costs_of({row.label: row.model for row in rows})
    evaluations = {row.label: evaluation_cost(output, output / row.label) for row in rows}
    write_text(output / "table.md", table.markdown())
    write_text(output / "table.csv", table.csv())
    results = {
        "schema_version": 1,
        "task": recipe.task,
        "seed": recipe.seed,
        "models": [dataclasses.asdict(row) for row in rows],
        "costs": [dataclasses.asdict(cost) for cost in costs],
        "evaluation_costs": {
            label: dataclasses.asdict(cost) for label, cost in evaluations.items()
        },
    }
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    n = rows[0].summary.n_problems
    tokens = {row.label: row.summary.tokens.mean for row in rows}
    generated = sum(row.summary.n_generated for row in rows)
    before = base_tokens(rows[-1].model, recipe.task)
    return (
        f"{table.text()}\n\n{recipe.task}, {n} problems. Score in per cent; "
        "tokens of a conversation's utterances (label in, end of turn out), and as generated; "
        f"{generated:,} generated in all."
        f"{cost_text(costs, tokens, evaluations, before, output)}\nResults: {output}"
    )


def costs_of(model_by_label: Mapping[str, str]) -> list[ModelCost]:
    """Return what the models that runs trained cost there, called by their labels here."""
    found = ((label, cost_of(model)) for label, model in model_by_label.items())
    return [replace(cost, label=label) for label, cost in found if cost is not None]


def runs_cost(rows_by_run: Mapping[str, tuple[Path, Sequence[EvaluationRow]]]) -> str:
    """Return what the models of training runs cost; labels get the runs' names before them."""
    costs: list[ModelCost] = []
    tokens: dict[str, float] = {}
    evaluations: dict[str, EvaluationCost] = {}
    for name, (run, rows) in rows_by_run.items():
        prefix = f"{name}:" if name else ""
        costs += [replace(cost, label=f"{prefix}{cost.label}") for cost in read_costs(run)]
        for row in rows:
            label = f"{prefix}{row.label}"
            tokens[label] = row.tokens
            evaluations[label] = evaluation_cost(run, run / "evaluate" / row.label)
    return cost_text(costs, tokens, evaluations)


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
    return (
        f"{table.text()}\n\nScore in per cent / tokens per conversation."
        f"{_transfer_cost(rows_by_task, output)}\nResults: {output}"
    )


def _transfer_cost(rows_by_task: Mapping[str, Sequence[InferenceRow]], output: Path) -> str:
    """Return what the models and the whole matrix cost; tokens saved are means over the tasks."""
    rows = next(iter(rows_by_task.values()))
    tokens = {
        row.label: sum(of_task[i].summary.tokens.mean for of_task in rows_by_task.values())
        / len(rows_by_task)
        for i, row in enumerate(rows)
    }
    spent = {
        row.label: [
            evaluation_cost(output / task, output / task / row.label) for task in rows_by_task
        ]
        for row in rows
    }
    evaluations = {
        label: EvaluationCost(
            sum(cost.n_generated for cost in of_tasks),
            sum(cost.device_seconds for cost in of_tasks),
        )
        for label, of_tasks in spent.items()
    }
    costs = costs_of({row.label: row.model for row in rows})
    return cost_text(costs, tokens, evaluations, output=output)


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


def write_comparison(rows: Sequence[ComparisonRow], output: Path) -> str:
    """Write ``table.md``, ``table.csv`` and ``results.json``; return the table with its costs."""
    table = comparison_table(rows)
    write_text(output / "table.md", table.markdown())
    write_text(output / "table.csv", table.csv())
    results = {
        "schema_version": 1,
        "models": [
            {
                "run": str(row.model.run),
                "label": row.model.label,
                "n_common": row.n_common,
                "summary": dataclasses.asdict(row.summary),
                "score_difference": row.score and dataclasses.asdict(row.score),
                "tokens_difference": row.tokens and dataclasses.asdict(row.tokens),
            }
            for row in rows
        ],
    }
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    return (
        f"{table.text()}\n\n{COMPARISON_LEGEND}{comparison_cost(rows, output)}\nResults: {output}"
    )


def comparison_cost(rows: Sequence[ComparisonRow], output: Path | None = None) -> str:
    """Return what the compared models cost, where a run trained them; nothing if none was."""
    tokens = {f"{row.model.run}:{row.model.label}": row.summary.tokens.mean for row in rows}
    costs = [
        replace(cost, label=f"{row.model.run}:{cost.label}")
        for row in rows
        for cost in read_costs(row.model.run)
        if cost.label == row.model.label
    ]
    evaluations = {
        f"{row.model.run}:{row.model.label}": evaluation_cost(row.model.run, row.model.path)
        for row in rows
    }
    run = rows[0].model.run
    talked = read_done(run / "evaluate" / "base" / "talk")
    before = (f"{run}:base", talked.metrics["tokens/conversation"]) if talked else None
    return cost_text(costs, tokens, evaluations, before, output)


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
        f"{summary.generated:.1f}",
        f"{summary.turns:.2f}",
        f"{100 * summary.failed:.1f} %",
        f"{row.seconds:.0f}",
    )
