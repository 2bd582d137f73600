"""Rows that hang together: the bootstrap over whole clusters, and tests of two systems on one set.

Benchmarks ask several questions of one picture (VLGuard, MM-SafetyBench, MSSBench, 284 rows of
VLSBench), and the answers to them are not independent: an interval that takes each row for a draw
of its own is too narrow. `Resamples` draws whole pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Bool, Float, Int, Shaped

DEFAULT_SAMPLES = 1_000


@dataclass(frozen=True)
class Resamples:
    """Draws of clusters with replacement, as many as there are, the same for every statistic.

    Attributes:
        cluster: which cluster each row is of, from 0.
        counts: how often each cluster was drawn in each sample, as floats, which multiply faster.
    """

    cluster: Int[np.ndarray, " B"]
    counts: Float[np.ndarray, "S C"]

    @classmethod
    def draw(
        cls, clusters: Shaped[np.ndarray, " B"], samples: int = DEFAULT_SAMPLES, seed: int = 0
    ) -> "Resamples":
        """Draws; rows of one name in ``clusters`` are of one cluster."""
        _, cluster = np.unique(clusters, return_inverse=True)
        n = int(cluster.max()) + 1 if cluster.size else 0
        drawn = np.random.default_rng(seed).integers(0, max(n, 1), (samples, n))
        shifted = drawn + np.arange(samples)[:, None] * n
        counts = np.bincount(shifted.ravel(), minlength=samples * n)
        return cls(cluster, counts.reshape(samples, n).astype(np.float32))

    @property
    def clusters(self) -> int:
        """How many there are."""
        return self.counts.shape[1]

    def rates(
        self, says: Bool[np.ndarray, " B"], unsafe: Bool[np.ndarray, " B"]
    ) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
        """ASR, FPR and F1 of the flagged rows in each sample; NaN where it has no row for one."""
        masks = (~says & unsafe, unsafe, says & ~unsafe, ~unsafe)
        per_cluster = [np.bincount(self.cluster[mask], minlength=self.clusters) for mask in masks]
        # Whole numbers below 2**24 are exact in float32.
        counted = self.counts @ np.stack(per_cluster, 1).astype(np.float32)
        missed, bad, alarms, good = counted.astype(np.float64).T
        with np.errstate(invalid="ignore"):
            twice = 2 * (bad - missed)
            return missed / bad, alarms / good, twice / (twice + missed + alarms)

    def ranking(
        self, scores: Float[np.ndarray, " B"], positive: Bool[np.ndarray, " B"]
    ) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
        """`metrics.auroc` and `metrics.average_precision` in each sample, NaN without a class."""
        order = np.argsort(-scores, kind="stable")
        ranked, hit = scores[order], positive[order]
        last_of_tie = np.append(ranked[1:] != ranked[:-1], True)[: ranked.size]
        areas = np.full((2, len(self.counts)), np.nan)
        of_row = self.cluster[order]
        for i, counts in enumerate(self.counts):
            weight = counts[of_row].astype(np.float64)
            flagged = np.cumsum(weight)[last_of_tie]
            tpr = np.cumsum(weight * hit)[last_of_tie]
            if not ranked.size or not tpr[-1] or tpr[-1] == flagged[-1]:
                continue
            fpr, rise = flagged - tpr, tpr.copy()
            run = fpr.copy()
            rise[1:] -= tpr[:-1]
            run[1:] -= fpr[:-1]
            areas[0, i] = ((tpr - rise / 2) @ run) / (tpr[-1] * fpr[-1])
            areas[1, i] = (rise @ (tpr / np.maximum(flagged, 1))) / tpr[-1]
        return areas[0], areas[1]

    def estimate(
        self,
        value: float,
        sampled: Float[np.ndarray, " S"],
        confidence: float = metrics.DEFAULT_CONFIDENCE,
    ) -> Estimate:
        """A value with the percentile interval of what the samples gave; ``n`` is of clusters.

        Samples without rows of a class are left out. Where all samples agree the interval is a
        point: it says that the bootstrap cannot tell, not that the value is sure.
        """
        sampled = sampled[~np.isnan(sampled)]
        if not sampled.size or np.isnan(value):
            return Estimate.empty()
        tail = (1 - confidence) / 2
        low, high = np.quantile(sampled, (tail, 1 - tail))
        return Estimate(float(value), float(low), float(high), self.clusters)


def mcnemar(hits_a: Bool[np.ndarray, " B"], hits_b: Bool[np.ndarray, " B"]) -> Estimate:
    """McNemar's exact test: the two-sided p that two systems hit the same rows equally often.

    ``n`` counts the rows on which they differ, all that the test looks at; without any, p is 1.
    """
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((~hits_a & hits_b).sum())
    n = only_a + only_b
    return Estimate.exact(min(1.0, 2 * _heads(min(only_a, only_b), n)), n)


def _heads(most: int, n: int) -> float:
    """The chance of at most so many heads in ``n`` throws, summed in whole numbers."""
    ways = total = 1
    for k in range(most):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return float(Fraction(total, 2**n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p-values that are read together (Scandinavian J. Stat. 1979, 6:65)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
