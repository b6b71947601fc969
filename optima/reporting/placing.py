"""Where names of points go so that they hide neither points nor each other."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# Offsets of a name from its point in points of length, with its alignment, the best first.
_OFFSETS = (
    (6, 4, "left", "bottom"), (6, -4, "left", "top"), (-6, 4, "right", "bottom"),
    (-6, -4, "right", "top"), (0, 7, "center", "bottom"), (0, -7, "center", "top"),
    (14, 14, "left", "bottom"), (14, -14, "left", "top"), (-14, 14, "right", "bottom"),
    (-14, -14, "right", "top"), (0, 18, "center", "bottom"), (0, -18, "center", "top"),
)  # fmt: skip
_POINT_PX = 4.0


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
        best: tuple[float, int] | None = None
        boxes = []
        for i, (dx, dy, ha, va) in enumerate(_OFFSETS):
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=8
            )
            box = text.get_window_extent()
            text.remove()
            boxes.append(box)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, axes.bbox)
            if best is None or cost < best[0]:
                best = (cost, i)
        assert best is not None
        dx, dy, ha, va = _OFFSETS[best[1]]
        text = axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=8
        )
        text.set_in_layout(False)
        taken.append(boxes[best[1]])


def _overlap(box: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(box, other)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _outside(box: Bbox, frame: Bbox) -> float:
    """Return the area of ``box`` that is not over ``frame``."""
    return float(box.width * box.height) - _overlap(box, frame)
