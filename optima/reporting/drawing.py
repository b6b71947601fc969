"""How figures look: one style, colours that read on white and on near-black, SVG and PNG.

The SVG is for a page, light or dark: no background, ink in the page's own text colour, text kept as
text, identifiers that start with the figure's name, nothing fetched and nothing that runs. The PNG
is for a document: white, with its title. The same input gives the same bytes.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.transforms import Bbox

from optima.records import disk_errors, write_bytes, write_text
from optima.runs.reader import Run

INK = "#17191d"
# Contrast of at least 3 : 1 on white and on #15171a; told apart by people with any colour vision,
# in this order, and by their markers and dashes besides.
COLOURS = ("#0072b2", "#d55e00", "#00916a", "#b5619a", "#8a6b00", "#7a6fd0", "#808080")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)),
)  # fmt: skip
HATCHES = ("", "////", "\\\\\\\\", "----", "||||", "xxxx", "++++")
WIDTH_IN, HEIGHT_IN = 5.5, 3.4
_TITLE_IN = 0.27
# Offsets of a name from its point in points of length, with its alignment, the best first.
_OFFSETS = (
    (6, 4, "left", "bottom"), (6, -4, "left", "top"), (-6, 4, "right", "bottom"),
    (-6, -4, "right", "top"), (0, 7, "center", "bottom"), (0, -7, "center", "top"),
    (14, 14, "left", "bottom"), (14, -14, "left", "top"), (-14, 14, "right", "bottom"),
    (-14, -14, "right", "top"), (0, 18, "center", "bottom"), (0, -18, "center", "top"),
)  # fmt: skip
_POINT_PX = 4.0

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "optima",
}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif"
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of a figure.

    ``name`` is a file's stem; ``caption`` says what is shown, its unit and how it is computed.
    """

    name: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Figure(Words):
    """One drawing: ``svg`` for a page, ``png`` (white, 192 dots an inch) for a document."""

    svg: str
    png: bytes


def render(words: Words, draw: Callable[[Canvas], None], *, height_in: float = HEIGHT_IN) -> Figure:
    """Return what ``draw`` draws on an empty canvas, with what is said of it."""
    # Identifiers and text are made while saving, so the style has to last until then.
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas)
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        drawn = _extent_in(canvas).padded(0.06)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(
            svg, format="svg", bbox_inches=drawn, metadata={"Date": None, "Creator": None}
        )
        canvas.text(
            drawn.x0 / WIDTH_IN + 0.01, drawn.y1 / height_in, words.title, ha="left", va="bottom",
            fontsize=10.5, fontweight="bold",
        )  # fmt: skip
        titled = Bbox.from_extents(drawn.x0, drawn.y0, drawn.x1, drawn.y1 + _TITLE_IN)
        canvas.savefig(
            png, format="png", dpi=192, facecolor="white", bbox_inches=titled,
            metadata={"Software": None},
        )  # fmt: skip
    page = _for_page(svg.getvalue(), words)
    return Figure(words.name, words.title, words.caption, svg=page, png=png.getvalue())


def _extent_in(canvas: Canvas) -> Bbox:
    """Return the inches that are drawn on, legends beyond the canvas included."""
    to_inches = canvas.dpi_scale_trans.inverted()
    legends = [legend.get_window_extent().transformed(to_inches) for legend in canvas.legends]
    return Bbox.union([canvas.get_tightbbox(), *legends])


def _for_page(text: str, words: Words) -> str:
    """Return a drawing as an ``<svg>`` element that can stand in a page among others."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text)  # noqa: S314  what the lines above have drawn
    dropped = (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")  # a style holds for the whole page
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in dropped]:
            parent.remove(child)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{words.name}-{own}")
        target = element.attrib.pop(_HREF, None)
        if target is not None:
            element.set("href", f"#{words.name}-{target[1:]}")
        for key, value in element.attrib.items():
            changed = value.replace("url(#", f"url(#{words.name}-").replace(INK, "currentColor")
            element.set(key, re.sub(r"'DejaVu Sans'(, [\w' -]+)*", _FONTS, changed))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", words.title)
    return ElementTree.tostring(root, encoding="unicode")


def name_of(runs: Sequence[Run], run: Run, label: str) -> str:
    """Return a model's name, with its run's where there are several."""
    return label if len(runs) == 1 else f"{run.name}: {label}"


def shorten(name: str, n_most: int) -> str:
    """Return a name, or its beginning and its longer end where it has more characters."""
    if len(name) <= n_most:
        return name
    n_first = (n_most - 1) // 3
    return f"{name[:n_first]}…{name[n_first + 1 - n_most :]}"


def add_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Draw faint lines at the ticks."""
    axes.grid(axis=axis, color=INK, alpha=0.16, linewidth=0.6)


def add_legend(canvas: Canvas, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Put a legend above the axes, in as many columns as fit."""
    short = [shorten(name, 60) for name in names]
    n_columns = max(1, min(len(names), 78 // (max(map(len, short)) + 8)))
    legend = canvas.legend(
        handles, short, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=n_columns,
        borderaxespad=0.2,
    )  # fmt: skip
    legend.set_in_layout(False)  # it makes the figure taller, not the axes smaller


def place_labels(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write each name beside its point, where it covers least; equal names once per
    place, empty ones not at all."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays the axes out: positions are known from here on
    places = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - _POINT_PX, y - _POINT_PX, 8.0, 8.0) for x, y in places]
    done: set[tuple[str, float, float]] = set()
    for (x, y), name in zip(points, names, strict=True):
        if not name or (name, x, y) in done:
            continue
        done.add((name, x, y))
        texts = [
            axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va,
                          fontsize=8)
            for dx, dy, ha, va in _OFFSETS
        ]  # fmt: skip
        boxes = [text.get_window_extent() for text in texts]
        covered = [
            sum(_overlap(box, other) for other in taken) + _outside(box, axes.bbox) for box in boxes
        ]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        texts.pop(best).set_in_layout(False)
        for text in texts:
            text.remove()


def _overlap(box: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(box, other)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _outside(box: Bbox, frame: Bbox) -> float:
    """Return the area of ``box`` that is not over ``frame``."""
    return float(box.width * box.height) - _overlap(box, frame)


def write_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write ``<name>.svg`` and ``<name>.png`` of every figure into a folder, made if missing."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        write_text(folder / f"{figure.name}.svg", f"{figure.svg}\n")
        write_bytes(folder / f"{figure.name}.png", figure.png)
