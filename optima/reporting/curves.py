"""Figures of models one after the other: score, tokens, both, rewards of candidates, scaling."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from optima.evaluation.figures import Figures
from optima.evaluation.statistics import Estimate, Point
from optima.reporting.drawing import (
    COLOURS,
    DASHES,
    HEIGHT_IN,
    INK,
    MARKERS,
    Figure,
    Words,
    add_grid,
    add_legend,
    name_of,
    place_labels,
    render,
    shorten,
)
from optima.runs.reader import Run

Look = dict[str, Any]  # how one series is told from the others, by colour and without

_ITERATION = re.compile(r"iter_(\d+)(_sft|_dpo)?")
_BEFORE = ("base", "cold_start", "initial")
_CHARACTER_IN = 0.082
_N_NAMED_POINTS = 12
_PARTS = {
    "reward/total": "R, total",
    "reward/task": "R_task (0 to 1)",
    "reward/token": "R_token (0 to 1, less is better)",
    "reward/loss_term": "loss term (λ_loss / R_loss)",
}


def look(index: int, *, is_joined: bool = True) -> Look:
    """Return the look of a series by its number, its points joined by a line or not."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)] if is_joined else "none",
    }


def score_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw scores by model with intervals; None without two models."""
    words = Words(
        "score-by-model", "Score by model",
        "Score on the held-out problems, in per cent, of the models of a run in the order in which "
        "they were made; baselines stand apart on the right. Bars: 95 % interval, bootstrap over "
        "problems.",
    )  # fmt: skip
    return _models_figure(words, runs, _score, "score, %")


def tokens_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw tokens per conversation by model with intervals; None without two models."""
    words = Words(
        "tokens-by-model", "Tokens by model",
        "Mean tokens that the agents generated in a conversation about a held-out problem; failed "
        "and overlong conversations count in full, a vote counts all its samples. Bars: 95 % "
        "interval, bootstrap over problems.",
    )  # fmt: skip
    unit = "tokens per conversation"
    return _models_figure(words, runs, lambda model: model.tokens, unit, is_from_zero=True)


def tradeoff_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw each model's score against its tokens; None without two models."""
    shown = compared(runs)
    n = sum(len(run.figures) for run in shown)
    if n < 2:
        return None
    words = Words(
        "score-against-tokens", "Score against tokens",
        "Each model's score, in per cent, against its mean tokens per conversation: up and to the "
        "left is better. A line follows the iterations of a run. Bars: 95 % intervals.",
    )  # fmt: skip

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        handles: list[Artist] = []
        for i, run in enumerate(shown):
            tokens, scores = [one.tokens for one in run.figures], list(map(_score, run.figures))
            x, y = [one.mean for one in tokens], [one.mean for one in scores]
            of_one = look(i, is_joined=_is_sequence(run))
            axes.errorbar(
                x, y, xerr=_reach(tokens), yerr=_reach(scores), fmt="none",
                ecolor=of_one["color"], elinewidth=0.8, alpha=0.55,
            )  # fmt: skip
            handles += axes.plot(x, y, **of_one)
        add_grid(axes)
        axes.set_xlabel("tokens per conversation")
        axes.set_ylabel("score, %")
        axes.margins(0.12)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        _tell_apart(canvas, handles, [run.name for run in shown])
        points = [(model.tokens.mean, _score(model).mean) for run in shown for model in run.figures]
        place_labels(axes, points, [name for run in shown for name in _names(run, n)])

    return render(words, draw, height_in=HEIGHT_IN + 0.5)


def reward_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw the parts of the candidates' reward by iteration; None without two of them."""
    shown = [(run, run.drawn) for run in runs if run.drawn]
    everything = [metrics for _, drawn in shown for metrics in drawn.values()]
    parts = [part for part in _PARTS if any(part in metrics for metrics in everything)]
    if not parts or len(everything) < 2:
        return None
    words = Words(
        "reward-by-iteration", "Reward of the candidates",
        "Mean reward of the conversations that an iteration draws from the model before it, and "
        "its parts: R = R_task - λ_token · R_token + λ_loss / R_loss (paper, Eq. 1).",
    )  # fmt: skip
    labels = ordered([label for _, drawn in shown for label in drawn])

    def draw(canvas: Canvas) -> None:
        n_rows = (len(parts) + 1) // 2
        grid = canvas.subplots(n_rows, 2, sharex=True, squeeze=False).ravel()
        handles: list[Artist] = []
        for axes, part in zip(grid, parts, strict=False):
            handles = []
            for i, (_, drawn) in enumerate(shown):
                points = [
                    (labels.index(label), metrics[part])
                    for label, metrics in drawn.items()
                    if part in metrics
                ]
                handles += axes.plot([x for x, _ in points], [y for _, y in points], **look(i))
            axes.set_title(_PARTS[part], fontsize=9, fontweight="normal")
            add_grid(axes, "y")
            axes.yaxis.set_major_locator(MaxNLocator(4))
            label_models(axes, labels, width_in=2.2)
        for axes in grid[len(parts) :]:
            axes.set_axis_off()
        _tell_apart(canvas, handles, [run.name for run, _ in shown])

    return render(words, draw, height_in=1.2 + 1.5 * ((len(parts) + 1) // 2))


def scaling_figures(runs: Sequence[Run]) -> list[Figure]:
    """Draw votes and coverage by k and by tokens; nothing without self-consistency."""
    curves = {
        name_of(runs, run, one.label): one.points
        for run in runs
        if run.kind == "consistency"
        for one in run.figures
    }
    if not curves:
        return []
    said = (
        "Solid: score of the vote, the largest group of equal answers among k samples of a "
        "problem; dashed: coverage, the best score of the k. Mean over seeded orders of the "
        "samples, in per cent, "
    )
    by_k = Words(
        "self-consistency-by-samples", "Self-consistency by samples",
        f"{said}by the number of samples k. Bands: 95 % interval, bootstrap over problems.",
    )  # fmt: skip
    by_tokens = Words(
        "self-consistency-by-tokens", "Self-consistency by tokens",
        f"{said}by the mean tokens of all k conversations of a problem.",
    )  # fmt: skip

    def by(words: Words, x: Callable[[Point], float], name: str, *, is_by_k: bool) -> Figure:
        def draw(canvas: Canvas) -> None:
            axes = canvas.add_subplot()
            handles: list[Artist] = [
                _draw_scaling(axes, [x(p) for p in points], points, look(i), has_bands=is_by_k)
                for i, points in enumerate(curves.values())
            ]
            x_all = [x(point) for points in curves.values() for point in points]
            _scale_logarithmically(axes, x_all, (1,) if is_by_k else (1, 2, 5))
            axes.set_xlabel(name)
            axes.set_ylabel("vote (solid), coverage (dashed), %")
            add_grid(axes)
            _tell_apart(canvas, handles, list(curves))

        return render(words, draw)

    return [
        by(by_k, lambda point: float(point.k), "samples k", is_by_k=True),
        by(by_tokens, lambda point: point.n_tokens, "tokens of all k conversations", is_by_k=False),
    ]


def compared(runs: Sequence[Run]) -> list[Run]:
    """Return the runs whose models are drawn side by side: those with models held the same way.

    Samples of self-consistency are drawn by k, those of a transfer as a matrix.
    """
    kinds = ("training", "inference", "baselines")
    return [run for run in runs if run.figures and run.kind in kinds]


def ordered(labels: Sequence[str]) -> list[str]:
    """Return distinct labels of models: the base, its beginnings, iterations, others as they come.

    Labels of one run alone are in this order already.
    """
    distinct = list(dict.fromkeys(labels))
    return sorted(distinct, key=lambda label: _rank(label, distinct.index(label)))


def label_models(axes: Axes, labels: Sequence[str], *, width_in: float = 4.6) -> None:
    """Name the positions 0, 1, ... of the x axis, aslant where the names are wide, some if many."""
    short = [shorten(label, 26) for label in labels]
    step = max(1, -(-len(labels) // int(width_in * 6)))
    axes.set_xticks(range(0, len(labels), step), short[::step])
    if max(map(len, short)) * _CHARACTER_IN > width_in / len(labels) * step:
        axes.tick_params(axis="x", labelrotation=35)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def _is_sequence(run: Run) -> bool:
    """Tell whether the models of a run are made from each other, so that a line may join them."""
    return all(_rank(model.label, 0)[0] < 2 for model in run.figures)


def _names(run: Run, n_points: int) -> list[str]:
    """Return names for the points of a run; among many, only the ends of a sequence have one."""
    names = [shorten(model.label, 22) for model in run.figures]
    if n_points <= _N_NAMED_POINTS or not _is_sequence(run):
        return names
    return [names[0], *[""] * (len(names) - 2), *names[1:][-1:]]


def _rank(label: str, index: int) -> tuple[int, int, int]:
    if label in _BEFORE:
        return (0, _BEFORE.index(label), 0)
    if (found := _ITERATION.fullmatch(label)) is not None:
        return (1, int(found[1]), 1 if found[2] == "_dpo" else 0)
    return (2, index, 0)


def _models_figure(
    words: Words, runs: Sequence[Run], measure: Callable[[Figures], Estimate], unit: str,
    *, is_from_zero: bool = False,
) -> Figure | None:  # fmt: skip
    shown = compared(runs)
    if sum(len(run.figures) for run in shown) < 2:
        return None
    sequences = [run for run in shown if run.kind != "baselines"]
    baselines = [run for run in shown if run.kind == "baselines"]
    labels = ordered([model.label for run in sequences for model in run.figures])
    methods = list(dict.fromkeys(model.label for run in baselines for model in run.figures))
    places = {label: float(i) for i, label in enumerate(labels)}
    places_apart = {method: len(labels) + float(i) for i, method in enumerate(methods)}

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        handles: list[Artist] = []
        for i, run in enumerate(shown):
            is_apart = run.kind == "baselines"
            beside, x_by_label = (baselines, places_apart) if is_apart else (sequences, places)
            x = [x_by_label[model.label] + _shift(beside, run) for model in run.figures]
            estimates = [measure(model) for model in run.figures]
            y = [one.mean for one in estimates]
            of_one = look(i, is_joined=_is_sequence(run))
            handles += axes.plot(x, y, **of_one)
            axes.errorbar(
                x, y, yerr=_reach(estimates), fmt="none", ecolor=of_one["color"], elinewidth=1.1,
                capsize=3,
            )  # fmt: skip
        if labels and methods:
            axes.axvline(len(labels) - 0.5, color=INK, alpha=0.5, linewidth=0.6, linestyle=":")
        label_models(axes, [*labels, *methods])
        axes.set_xlim(-0.5, len(labels) + len(methods) - 0.5)
        axes.set_ylabel(unit)
        add_grid(axes, "y")
        low, high = axes.get_ylim()
        if is_from_zero:
            axes.set_ylim(0.0, high)
        else:  # 1: where every score is 0
            axes.set_ylim(max(low, -3.0), min(max(high, 1.0), 103.0))
        _tell_apart(canvas, handles, [run.name for run in shown])

    longest = max(len(shorten(label, 26)) for label in (*labels, *methods))
    return render(words, draw, height_in=HEIGHT_IN + 0.5 * _CHARACTER_IN * max(0, longest - 10))


def _shift(runs: Sequence[Run], run: Run) -> float:
    """Return how far a series stands beside its place, so that its intervals cover no others."""
    n = len(runs)
    return min(0.12, 0.5 / n) * (runs.index(run) - (n - 1) / 2)


def _tell_apart(canvas: Canvas, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Add a legend of the series where there are several."""
    if len(names) > 1:
        add_legend(canvas, handles, names)


def _draw_scaling(
    axes: Axes,
    x: Sequence[float],
    points: Sequence[Point],
    of_one: Look,
    *,
    has_bands: bool,
) -> Artist:
    for dash, estimates in (("--", [p.coverage for p in points]), ("-", [p.score for p in points])):
        scaled = [_percent(e) for e in estimates]
        (line,) = axes.plot(
            x, [e.mean for e in scaled], color=of_one["color"], linestyle=dash, markersize=4.5,
            marker=of_one["marker"], markevery=max(1, len(x) // 12),
            markerfacecolor=of_one["color"] if dash == "-" else "none",
        )  # fmt: skip
        if has_bands:
            axes.fill_between(
                x, [e.low for e in scaled], [e.high for e in scaled], color=of_one["color"],
                alpha=0.15, linewidth=0,
            )  # fmt: skip
    return line


def _scale_logarithmically(
    axes: Axes, values: Sequence[float], subdivisions: tuple[float, ...]
) -> None:
    """Scale the x axis by ratios where values span some, with plain numbers at its ticks."""
    if min(values) <= 0 or max(values) < 4 * min(values):
        return
    base = 2 if subdivisions == (1,) else 10
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_locator(LogLocator(base=base, subs=subdivisions, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _reach(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    """Return how far intervals reach below and above their means, never negative."""
    return (
        [max(0.0, e.mean - e.low) for e in estimates],
        [max(0.0, e.high - e.mean) for e in estimates],
    )


def _score(model: Figures) -> Estimate:
    return _percent(model.score)


def _percent(estimate: Estimate) -> Estimate:
    return Estimate(100 * estimate.mean, 100 * estimate.low, 100 * estimate.high)
