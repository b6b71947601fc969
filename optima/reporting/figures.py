"""The figures of a report, each where the runs hold data for it, as SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path

from optima.records import disk_errors, write_bytes, write_text
from optima.reporting.bars import cost_figure, length_figure, stop_figures, transfer_figures
from optima.reporting.curves import (
    reward_figure,
    scaling_figures,
    score_figure,
    tokens_figure,
    tradeoff_figure,
)
from optima.reporting.drawing import Figure
from optima.reporting.history import History

__all__ = ["Figure", "figures_of", "write_figures"]


def figures_of(histories: Sequence[History]) -> tuple[Figure, ...]:
    """Return the figures of runs already read."""
    found = [
        score_figure(histories),
        tokens_figure(histories),
        tradeoff_figure(histories),
        *scaling_figures(histories),
        *transfer_figures(histories),
        length_figure(histories),
        *stop_figures(histories),
        reward_figure(histories),
        cost_figure(histories),
    ]
    return tuple(figure for figure in found if figure is not None)


def write_figures(figures: Sequence[Figure], directory: Path) -> None:
    """Write ``<name>.svg`` and ``<name>.png`` of every figure into a directory, made if missing."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            write_text(directory / f"{figure.name}.svg", f"{figure.svg}\n")
            write_bytes(directory / f"{figure.name}.png", figure.png)
