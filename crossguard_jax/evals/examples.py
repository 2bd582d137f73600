"""Which rows of a scored benchmark to look at."""

from collections import Counter
from collections.abc import Callable, Sequence

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
    picked: list[int] = []
    for outcome in OUTCOMES:
        picked += rng.permutation(np.flatnonzero(masks[outcome]))[:per_outcome].tolist()
    return _shown(scores, picked, threshold, lookup)


def listed(
    scores: ScoredRows, threshold: float, lookup: Lookup, most: int, seed: int = 0
) -> list[Example]:
    """Up to ``most`` rows, the wrong ones first, by benchmark and category.

    A quarter of them is for right ones. Where there are more than can be shown they are drawn at
    random, as evenly over benchmarks and categories as can be; the seed decides.
    """
    order = np.random.default_rng(seed).permutation(len(scores))
    right = metrics.flagged(scores.counted, threshold) == scores.unsafe
    groups = np.char.add(np.char.add(scores.benchmark, "\n"), scores.category)
    turn = np.zeros(len(scores), int)
    counts: Counter[tuple[bool, str]] = Counter()
    for row in order.tolist():
        group = (bool(right[row]), str(groups[row]))
        turn[row] = counts[group]
        counts[group] += 1
    drawn = order[np.argsort(turn[order], kind="stable")]
    wrong = drawn[~right[drawn]]
    beside = drawn[right[drawn]][: max(most // 4, most - len(wrong))]
    taken = [*wrong[: most - len(beside)].tolist(), *beside.tolist()]
    taken.sort(key=lambda row: (right[row], groups[row], turn[row]))
    return _shown(scores, taken, threshold, lookup)


def _shown(
    scores: ScoredRows, rows: Sequence[int], threshold: float, lookup: Lookup
) -> list[Example]:
    shown = []
    for row in rows:
        benchmark, row_id = str(scores.benchmark[row]), str(scores.id[row])
        picture, text = lookup(benchmark, row_id)
        unsafe, p_unsafe = bool(scores.unsafe[row]), float(scores.p_unsafe[row])
        category = str(scores.category[row])
        shown.append(
            Example(row_id, benchmark, picture, text, unsafe, p_unsafe, threshold, category)
        )
    return shown
