"""The tables of self-consistency: text for a few k, CSV and JSON for all."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from optima.pipelines.consistency import Curve
from optima.pipelines.cost import base_tokens, evaluation_cost
from optima.recipe.schema import Recipe
from optima.records import write_text
from optima.reporting.cost import cost_text
from optima.reporting.inference import costs_of
from optima.reporting.tables import Table, interval

HEAD = ("model", "k", "vote", "95 %", "coverage", "95 %", "tokens")


def consistency_table(curves: Sequence[Curve], *, is_whole: bool = False) -> Table:
    """Return lines for k = 1, 2, 4, ... and the last, or for every k; scores in per cent."""
    return Table(HEAD, tuple(line for curve in curves for line in _lines(curve, is_whole)))


def write_consistency(recipe: Recipe, curves: Sequence[Curve], output: Path) -> str:
    """Write ``table.md``, ``table.csv`` and ``results.json``; return the table with its legend."""
    table = consistency_table(curves)
    write_text(output / "table.md", table.markdown())
    write_text(output / "table.csv", consistency_table(curves, is_whole=True).csv())
    models = {curve.label: curve.model for curve in curves}
    evaluations = {label: evaluation_cost(output, output / label) for label in models}
    costs = costs_of(models)
    cost = cost_text(
        costs,
        {curve.label: curve.points[0].n_tokens for curve in curves},
        evaluations,
        base_tokens(curves[-1].model, recipe.task),
        output,
    )
    results = {
        "schema_version": 1,
        "task": recipe.task,
        "seed": recipe.seed,
        "temperature": recipe.evaluation.temperature,
        "models": [dataclasses.asdict(curve) for curve in curves],
        "costs": [dataclasses.asdict(made) for made in costs],
        "evaluation_costs": {
            label: dataclasses.asdict(spent) for label, spent in evaluations.items()
        },
    }
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    return (
        f"{table.text()}\n\n{recipe.task}. vote: score of the largest group of equal answers among "
        f"k samples;\ncoverage: best score of the k; in per cent. tokens: of all k conversations."
        f"{cost}\nResults: {output}"
    )


def _lines(curve: Curve, is_whole: bool) -> list[tuple[str, ...]]:
    last = curve.points[-1].k
    return [
        (
            curve.label,
            str(point.k),
            f"{100 * point.score.mean:.1f}",
            interval(point.score, 100),
            f"{100 * point.coverage.mean:.1f}",
            interval(point.coverage, 100),
            f"{point.n_tokens:.1f}",
        )
        for point in curve.points
        if is_whole or point.k == last or point.k.bit_count() == 1
    ]
