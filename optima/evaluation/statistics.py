"""How far a mean over problems may be off: percentile bootstrap, seeded.

Problems are drawn with replacement; what is paired (two models on the same problems) is drawn
together, so that what a problem's difficulty adds to both falls out of their difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 4_000_000  # drawn indices held at once


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
    values = np.asarray(values_P, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a mean needs at least one value")
    generator = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, _CHUNK // values.size)
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        drawn = generator.integers(0, values.size, size=(n, values.size))
        means[start : start + n] = values[drawn].mean(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the ``share`` percentile (0 to 100) of values, interpolated between neighbours."""
    return float(np.percentile(values, share))


def estimate_difference(
    values_P: Sequence[float], others_P: Sequence[float], *, seed: int,
    n_resamples: int = N_RESAMPLES, level: float = LEVEL,
) -> Estimate:  # fmt: skip
    """Return the mean of value - other over the same problems, with its interval."""
    pairs = zip(values_P, others_P, strict=True)
    return estimate_mean(
        [value - other for value, other in pairs], seed=seed, n_resamples=n_resamples, level=level
    )
