"""Which rows of a scored benchmark to look at."""

from collections.abc import Callable

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.report.examples import OUTCOMES, Example

Lookup = Callable[[str, str], "tuple[bytes | None, str]"]
"""Given a benchmark and a row's id, the encoded picture (or None) and the text."""


def pick(
    scores: ScoredRows, threshold: float, lookup: Lookup, per_outcome: int = 4, seed: int = 0
) -> list[Example]:
    """Up to ``per_outcome`` rows of each outcome, wrong ones first.

    They are drawn at random, not chosen: the seed decides, so that the same report comes out twice.
    """
    rng = np.random.default_rng(seed)
    flagged = metrics.flagged(scores.p_unsafe, threshold)
    masks = {
        "missed": scores.unsafe & ~flagged,
        "false alarm": ~scores.unsafe & flagged,
        "caught": scores.unsafe & flagged,
        "passed": ~scores.unsafe & ~flagged,
    }
    picked = []
    for outcome in OUTCOMES:
        for row in rng.permutation(np.flatnonzero(masks[outcome]))[:per_outcome]:
            benchmark, row_id = str(scores.benchmark[row]), str(scores.id[row])
            picture, text = lookup(benchmark, row_id)
            unsafe, p_unsafe = bool(scores.unsafe[row]), float(scores.p_unsafe[row])
            picked.append(Example(row_id, benchmark, picture, text, unsafe, p_unsafe, threshold))
    return picked
