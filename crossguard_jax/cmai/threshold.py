"""tau: below which S_c a pair counts as inconsistent, chosen by what clean pairs may be lost."""

from dataclasses import dataclass

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float


@dataclass(frozen=True)
class Threshold:
    """Where a check cuts, and what that rests on.

    Attributes:
        tau: a pair passes when ``S_c >= tau``.
        pass_rate: the least share of clean pairs that passes.
        confidence: that it does so beyond the pairs it was chosen on.
        n: clean pairs it was chosen on.
    """

    tau: float
    pass_rate: float
    confidence: float
    n: int


def choose_threshold(
    clean_scores: Float[np.ndarray, " B"], pass_rate: float = 0.99, confidence: float = 0.95
) -> Threshold:
    """The highest tau at which at least ``pass_rate`` of clean pairs pass.

    That share is meant of all clean pairs, not of these: tau is their k-th lowest score with the
    greatest k for which ``P(Binomial(n, 1 - pass_rate) >= k) >= confidence`` (a distribution-free
    tolerance limit, Wilks 1941). Of the pairs given, at most ``k - 1`` then fail.

    Args:
        clean_scores: S_c of held-out clean pairs, none of them trained on.
        pass_rate: below 1.
        confidence: that the share holds; below 1.

    Raises:
        UserError: too few pairs to say so, a score that is no number, or a rate that is none.
    """
    for name, value in (("pass_rate", pass_rate), ("confidence", confidence)):
        if not 0.0 < value < 1.0:
            raise UserError(f"cmcv.{name} {value!r}: a share between 0 and 1")
    from scipy import special  # a verdict needs none of it

    scores = np.sort(np.asarray(clean_scores, np.float64))
    n = scores.size
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise UserError(f"{bad} of {n} clean scores are no numbers; see crossguard doctor")
    # P(Binomial(n, q) >= k), as a regularized incomplete beta function.
    k = np.arange(1, n + 1)
    allowed = int((special.betainc(k, n - k + 1, 1 - pass_rate) >= confidence).sum())
    if not allowed:
        least = int(np.ceil(np.log1p(-confidence) / np.log(pass_rate)))
        raise UserError(
            f"{n} clean pairs for a pass rate of {pass_rate:g} at confidence {confidence:g}: give "
            f"at least {least:,}, or ask for less"
        )
    return Threshold(float(scores[allowed - 1]), pass_rate, confidence, n)
