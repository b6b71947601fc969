"""How far a mean over problems may be off: percentile bootstrap, seeded.

Problems are drawn with replacement; what is paired (two models on the same problems) is drawn
together, so that what a problem's difficulty adds to both falls out of their difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from optima.selection import share_of

N_RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 400_000  # drawn indices held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the interval that holds it at the level asked for."""

    mean: float
    low: float
    high: float

    @property
    def is_nonzero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def estimate_mean(
    values_P: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean of one value per problem with its interval; ValueError without values."""
    return estimate_means([values_P], seed=seed, n_resamples=n_resamples, level=level)[0]


def estimate_means(
    values_MP: Sequence[Sequence[float] | NDArray[np.float64]], *, seed: int,
    n_resamples: int = N_RESAMPLES, level: float = LEVEL,
) -> list[Estimate]:  # fmt: skip
    """Return the mean with its interval of each of M rows, as ``estimate_mean`` of it alone.

    Rows of equal length share their draws. ValueError for a row without values.
    """
    rows = [np.asarray(values_P, dtype=np.float64) for values_P in values_MP]
    if any(values.size == 0 for values in rows):
        raise ValueError("a mean needs at least one value")
    tail = 100 * (1 - level) / 2
    found: dict[int, Estimate] = {}
    for size in dict.fromkeys(values.size for values in rows):
        places = [m for m, values in enumerate(rows) if values.size == size]
        means_MR = _resampled_means(np.stack([rows[m] for m in places]), seed, n_resamples)
        for m, means in zip(places, means_MR, strict=True):
            low, high = np.percentile(means, [tail, 100 - tail])
            found[m] = Estimate(float(rows[m].mean()), float(low), float(high))
    return [found[m] for m in range(len(rows))]


def _resampled_means(
    values_MP: NDArray[np.float64], seed: int, n_resamples: int
) -> NDArray[np.float64]:
    """Return the means of ``n_resamples`` draws with replacement, the same draws for each row."""
    n_rows, size = values_MP.shape
    generator = np.random.default_rng(seed)
    sums_MR = np.empty((n_rows, n_resamples))
    step = max(1, _CHUNK // size)
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn = generator.integers(0, size, size=(n, size))
        for r, places in enumerate(drawn, start=start):
            # How often each value was drawn: several rows share the count, and it stays in cache.
            sums_MR[:, r] = values_MP @ np.bincount(places, minlength=size)
    means_MR: NDArray[np.float64] = sums_MR / size
    return means_MR


def percentile(values: Sequence[float], share: float) -> float:
    """Return the ``share`` percentile (0 to 100) of values, interpolated between neighbours.

    Exact, as it may be rounded down: the 85th percentile of 0, 1, ..., 100 is 85 and not 84.99….
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    place = share_of(share, len(ordered) - 1) / 100
    low, high = (Fraction(float(ordered[at])) for at in (int(place), math.ceil(place)))
    return float(low + (place - int(place)) * (high - low))
