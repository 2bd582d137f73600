"""Intervals of figures that are no plain proportion: rows drawn again with replacement."""

import math
from collections.abc import Callable

import numpy as np

from crossguard_jax.core.metrics import DEFAULT_CONFIDENCE, Estimate, wilson_interval
from crossguard_jax.core.typing import Float

DRAWS = 1000


def bootstrap(
    rows: Float[np.ndarray, "B K"],
    of: Callable[[np.ndarray], float],
    confidence: float = DEFAULT_CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """A figure made of column sums, with Efron's percentile interval over ``DRAWS`` resamples.

    Two systems on the same rows are compared by their columns side by side: ``of`` is then the
    difference of the two figures.

    Args:
        rows: K numbers of each of the B rows, which are drawn as wholes.
        of: the figure, from the K sums over rows.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        The figure of all rows. Where every draw says the same, as of a single row, there is no
        interval (NaN).
    """
    size = len(rows)
    if size == 0:
        return Estimate.empty()
    rng = np.random.default_rng(seed)
    drawn = [
        of(np.bincount(rng.integers(size, size=size), minlength=size) @ rows) for _ in range(DRAWS)
    ]
    value, tail = float(of(rows.sum(axis=0))), (1 - confidence) / 2
    if np.ptp(drawn) <= 1e-12:
        return Estimate(value, math.nan, math.nan, size)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), size)


def share(
    parts: Float[np.ndarray, " B"],
    wholes: Float[np.ndarray, " B"],
    confidence: float = DEFAULT_CONFIDENCE,
) -> Estimate:
    """``sum(parts) / sum(wholes)``, each part between 0 and its whole, bootstrapped by rows.

    At 0 and at 1 no draw differs from another: the interval is then Wilson's over the rows. ``n``
    is the sum of the wholes.
    """
    total = int(wholes.sum())
    estimate = bootstrap(np.stack([parts, wholes], axis=1), _ratio, confidence)
    low, high = estimate.low, estimate.high
    if estimate.value in (0.0, 1.0):
        low, high = wilson_interval(int(estimate.value) * estimate.n, estimate.n, confidence)
    return Estimate(estimate.value, low, high, total)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])
