"""What responses count for, row by row: what figures are made of, and compared by.

A figure is a function of column sums over rows, so that two models on the same rows are compared
by their columns side by side, and the rows of several seeds are put together.
"""

from collections.abc import Sequence

import numpy as np

from crossguard_jax.core import metrics, tasks
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Bool, Float
from crossguard_jax.evals.benchmarks import Figures

Counts = dict[str, Float[np.ndarray, "_ _"]]
"""By figure's name, [M, K] with a K of its own: those of BLEU-4 are `tasks.bleu_counts`; of others
a row's part and whole."""


def of_rows(parts: Float[np.ndarray, " M"] | Bool[np.ndarray, " M"]) -> Float[np.ndarray, "M 2"]:
    """Of a figure that is a mean over rows."""
    return np.stack([np.asarray(parts, np.float64), np.ones(len(parts))], axis=1)


def figures_of(counts: Counts) -> Figures:
    """Every figure with its 95% interval: Wilson's of a share of rows, else the bootstrap's."""
    return {name: _figure(name, rows) for name, rows in counts.items()}


def differences_of(a: Counts, b: Counts) -> Figures:
    """``a`` less ``b``, on the same rows, of what both have: Newcombe's interval for a share of
    rows, otherwise the bootstrap's by rows."""
    return {name: _difference(name, a[name], b[name]) for name in a if name in b}


def together(parts: Sequence[Counts]) -> Counts:
    """Rows of one after those of the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _figure(name: str, rows: Float[np.ndarray, "M K"]) -> Estimate:
    if _is_share(rows):
        return metrics.proportion(rows[:, 0] == 1)
    return tasks.bootstrap(rows, lambda sums: _value(name, sums))


def _difference(name: str, a: Float[np.ndarray, "M K"], b: Float[np.ndarray, "M K"]) -> Estimate:
    if _is_share(a) and _is_share(b):
        return metrics.paired_difference(a[:, 0] == 1, b[:, 0] == 1)
    k = a.shape[1]
    both = np.hstack([a, b])
    return tasks.bootstrap(both, lambda s: _value(name, s[:k]) - _value(name, s[k:]))


def _value(name: str, sums: Float[np.ndarray, " K"]) -> float:
    return tasks.bleu_of(sums) if name == "bleu4" else float(sums[0] / sums[1])


def _is_share(rows: Float[np.ndarray, "M K"]) -> bool:
    """Whether each row is a hit or none."""
    whole = rows.shape[1] == 2 and bool((rows[:, 1] == 1).all())
    return whole and bool(np.isin(rows[:, 0], (0, 1)).all())
