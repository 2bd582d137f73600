"""Single rows to look at: the picture, the text, the truth and the verdict."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.evals.benchmarks import ScoredRows

Lookup = Callable[[str, str], "tuple[bytes | None, str]"]
"""Given a benchmark and a row's id, the encoded picture (or None) and the text."""

OUTCOMES = ("missed", "false alarm", "caught", "passed")


@dataclass(frozen=True)
class Example:
    """One scored row with what was scored.

    Attributes:
        id: The row's name.
        benchmark: Where it comes from.
        picture: An encoded picture (PNG, JPEG, ...); None for a row of text alone.
        text: The words.
        unsafe: The truth.
        p_unsafe: The system's probability, in [0, 1].
        threshold: At or above it the verdict is "unsafe".
    """

    id: str
    benchmark: str
    picture: bytes | None
    text: str
    unsafe: bool
    p_unsafe: float
    threshold: float

    @property
    def flagged(self) -> bool:
        """The verdict."""
        return self.p_unsafe >= self.threshold

    @property
    def right(self) -> bool:
        """Whether the verdict is the truth."""
        return self.flagged == self.unsafe

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``."""
        if self.right:
            return "caught" if self.unsafe else "passed"
        return "missed" if self.unsafe else "false alarm"


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
