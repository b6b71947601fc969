"""Figures with one line per model or iteration: stop reasons, lengths, costs; and the transfer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from optima.evaluation.figures import Figures
from optima.reporting.drawing import (
    COLOURS,
    HATCHES,
    INK,
    Figure,
    Words,
    add_grid,
    add_legend,
    name_of,
    render,
    shorten,
)
from optima.runs.comparison import transfers, wholes
from optima.runs.reader import Run

# Numbers of their looks, the same in every figure.
_STOPS = {"agreement": 0, "alone": 2, "max_turns": 1, "context_overflow": 3, "error": 4}
_FAULTS = {"role_leakage": 5, "overflow": 6}
_LINE_IN = 0.24
_MIN_NAMED_SHARE = 0.09  # a part of a bar below this has no room for its number


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a figure: its name and numbers by what they are of."""

    name: str
    values: Mapping[str, float]


def stop_figures(runs: Sequence[Run]) -> list[Figure]:
    """Draw how conversations ended and their faults, of models and of candidates."""
    said = (
        "Share of conversations by the reason why they ended; right: share with a fault, which is "
        "never selected. Of "
    )
    models = [
        Line(name_of(runs, run, one.label), one.metrics) for run in runs for one in run.figures
    ]
    drawn = [
        Line(name_of(runs, run, label), metrics)
        for run in runs
        for label, metrics in run.drawn.items()
    ]
    of_models = Words("stop-reasons", "How conversations ended", f"{said}the evaluated models.")
    of_drawn = Words(
        "stop-reasons-of-candidates", "How candidates ended",
        f"{said}the candidates that an iteration draws from the model before it.",
    )  # fmt: skip
    found = (_stop_figure(of_models, models), _stop_figure(of_drawn, drawn))
    return [figure for figure in found if figure is not None]


def length_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw the distribution of tokens per conversation by model; None without models."""
    shown = [(run, model) for run in runs for model in run.figures]
    if not shown:
        return None
    words = Words(
        "length-distribution", "Tokens of a conversation",
        "Tokens that the agents generated in a conversation. Box: middle half, with the median as "
        "its line; whiskers: 5th to 95th percentile; dot: mean. A vote counts all its samples.",
    )  # fmt: skip

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        ends = []
        for y, (run, model) in enumerate(shown):
            ends.append(_draw_box(axes, y, model, COLOURS[runs.index(run) % len(COLOURS)]))
        _name_lines(axes, [name_of(runs, run, one.label) for run, one in shown])
        axes.set_xlim(0, 1.05 * max(1.0, *ends))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("tokens per conversation")
        add_grid(axes, "x")

    return render(words, draw, height_in=_height(len(shown)))


def cost_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw what each model took beyond the one before it; None where nothing was trained."""
    spending = [run for run in wholes(runs) if run.costs]
    seconds, tokens = [], []
    for run in spending:
        for before, cost in zip((None, *run.costs), run.costs, strict=False):
            spent = cost.since(before)
            name = name_of(spending, run, cost.label)
            seconds.append(Line(name, spent.device_seconds))
            tokens.append(Line(name, {"generated": spent.n_generated, "trained": spent.n_trained}))
    if not seconds:
        return None
    words = Words(
        "cost-by-stage", "Cost by stage",
        "What was spent on each model beyond the one before it. Left: device-seconds, wall time "
        "times GPUs (times 1 on a CPU), by what they were spent on; right: tokens that agents "
        "generated and that training went over. Evaluations are not counted.",
    )  # fmt: skip

    def draw(canvas: Canvas) -> None:
        left, right = canvas.subplots(1, 2, sharey=True)
        kinds = list(seconds[0].values)
        bars = _stack(left, seconds, {kind: k for k, kind in enumerate(kinds)})
        n = len(kinds)
        bars |= _stack(right, tokens, {"generated": n, "trained": n + 1})
        _name_lines(left, [line.name for line in seconds])
        right.tick_params(axis="y", length=0)
        left.set_xlabel("device-seconds")
        right.set_xlabel("tokens")
        for axes in (left, right):
            add_grid(axes, "x")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        names = [f"tokens {kind}" if kind in tokens[0].values else kind for kind in bars]
        add_legend(canvas, list(bars.values()), names)

    return render(words, draw, height_in=_height(len(seconds)) + 0.3)


def transfer_figures(runs: Sequence[Run]) -> list[Figure]:
    """Draw a matrix for every transfer: models by tasks, score in per cent and tokens."""
    found = []
    for suffix, group in transfers(runs).items():
        words = Words(
            f"transfer{suffix}", "Transfer",
            "Each model (row) on each task (column): score in per cent, and below it the mean "
            "tokens per conversation. The darker the better.",
        )  # fmt: skip
        labels = list(dict.fromkeys(model.label for one in group for model in one.figures))
        found.append(_transfer_figure(words, group, labels))
    return found


def _stop_figure(words: Words, lines: Sequence[Line]) -> Figure | None:
    stops = {k: n for k, n in _STOPS.items() if any(f"stop/{k}" in line.values for line in lines)}
    faults = {k: n for k, n in _FAULTS.items() if any(f"fault/{k}" in x.values for x in lines)}
    if not stops and not faults:
        return None
    shares = [
        Line(line.name, {key: line.values.get(f"stop/{key}", 0.0) for key in stops})
        for line in lines
    ]

    def draw(canvas: Canvas) -> None:
        if faults:
            left, right = canvas.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
            handles = _draw_faults(right, lines, faults)
        else:
            left, handles = canvas.add_subplot(), []
        bars = _stack(left, shares, stops, factor=100.0, has_numbers=True)
        _name_lines(left, [line.name for line in lines])
        left.set_xlim(0, 100)
        left.set_xlabel("conversations, %")
        names = [*stops, *(f"fault: {key}" for key in faults)]
        add_legend(canvas, [*bars.values(), *handles], [name.replace("_", " ") for name in names])

    return render(words, draw, height_in=_height(len(lines)) + 0.3)


def _draw_faults(axes: Axes, lines: Sequence[Line], faults: Mapping[str, int]) -> list[Artist]:
    """Draw a bar for each kind of fault below each other: a conversation may have several."""
    height = 0.8 / len(faults)
    handles: list[Artist] = []
    for place, (key, k) in enumerate(faults.items()):
        drawn = axes.barh(
            [y - 0.4 + height * (place + 0.5) for y in range(len(lines))],
            [100 * line.values.get(f"fault/{key}", 0.0) for line in lines],
            height, color=COLOURS[k], hatch=HATCHES[k - 5], edgecolor=INK, linewidth=0.4,
        )  # fmt: skip
        handles.append(drawn.patches[0])
    axes.set_xlabel("with a fault, %")
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(axis="y", length=0)
    add_grid(axes, "x")
    return handles


def _stack(
    axes: Axes, lines: Sequence[Line], looks: Mapping[str, int], *, factor: float = 1.0,
    has_numbers: bool = False,
) -> dict[str, Patch]:  # fmt: skip
    """Draw one stacked bar per line, its parts with the looks numbered in ``looks``."""
    starts = np.zeros(len(lines))
    bars: dict[str, Patch] = {}
    for key, k in looks.items():
        widths = np.array([factor * line.values.get(key, 0.0) for line in lines])
        drawn = axes.barh(
            range(len(lines)), widths, 0.72, left=starts, color=COLOURS[k % len(COLOURS)],
            hatch=HATCHES[k % len(HATCHES)], edgecolor=INK, linewidth=0.4,
        )  # fmt: skip
        bars[key] = drawn.patches[0]
        for y, (start, width) in enumerate(zip(starts, widths, strict=True)):
            if has_numbers and width >= factor * _MIN_NAMED_SHARE:
                axes.text(
                    start + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=8,
                    color="white", fontweight="bold",
                    bbox={"facecolor": COLOURS[k % len(COLOURS)], "edgecolor": "none", "pad": 1.2},
                )  # fmt: skip
        starts = starts + widths
    return bars


def _draw_box(axes: Axes, y: int, model: Figures, colour: str) -> float:
    """Draw the tokens of a model in line ``y``; return how far they reach."""
    mean = float(np.mean(model.counts))
    low, left, middle, right, high = np.percentile(model.counts, [5, 25, 50, 75, 95])
    axes.hlines(y, low, high, color=colour, linewidth=1.2)
    axes.vlines([low, high], y - 0.18, y + 0.18, color=colour, linewidth=1.2)
    axes.barh(
        y, right - left, 0.56, left=left, color=colour, alpha=0.35, edgecolor=colour, linewidth=1.2
    )
    axes.vlines(middle, y - 0.28, y + 0.28, color=INK, linewidth=2.0)
    axes.plot(mean, y, marker="o", markersize=4, color=INK)
    return max(mean, float(high))


def _transfer_figure(words: Words, group: Sequence[Run], labels: Sequence[str]) -> Figure:
    shades = colormaps["Blues"]

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for x, run in enumerate(group):
            for model in run.figures:
                y = labels.index(model.label)
                score, tokens = model.score.mean, model.tokens.mean
                shade = shades(0.12 + 0.88 * score)
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=shade,
                                         edgecolor="none"))  # fmt: skip
                ink = "white" if score > 0.45 else "black"
                axes.text(x, y, f"{100 * score:.1f}", ha="center", va="bottom", color=ink,
                          fontweight="bold")  # fmt: skip
                axes.text(x, y, f"{tokens:,.0f} tok.", ha="center", va="top", color=ink, fontsize=8)
        axes.set_xlim(-0.5, len(group) - 0.5)
        axes.set_xticks(range(len(group)), [shorten(run.recipe.task, 20) for run in group])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        _name_lines(axes, labels)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return render(words, draw, height_in=0.7 + 0.5 * len(labels))


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    """Name the lines 0, 1, ..., the first at the top."""
    axes.set_yticks(range(len(names)), [shorten(name, 30) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _height(n_lines: int) -> float:
    return 0.9 + _LINE_IN * n_lines
