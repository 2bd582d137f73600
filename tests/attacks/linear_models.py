"""A linear classifier beside a linear detector: what an attacker can do to them is known.

``margin = rise . (x - x0) + m`` and ``detector = alarm . (x - x0) + d``, a row each; in a ball of
radius epsilon the most is a linear program, solved here by SciPy.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from scipy.optimize import linprog

from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.core.typing import Array, PRNGKeyArray

EPSILON = 0.1


@dataclass(frozen=True)
class Linear:
    """Rows of random problems; ``x`` [B, D] in [0, 1], a quarter of it at the range's ends."""

    x: np.ndarray
    rise: np.ndarray
    alarm: np.ndarray
    margin: np.ndarray
    detector: np.ndarray

    def objective(self, x: Array, key: PRNGKeyArray) -> Outcome:
        """What attacks see; the loss is the margin."""
        delta = x - jnp.asarray(self.x, x.dtype)
        margin = (delta * jnp.asarray(self.rise, x.dtype)).sum(axis=1) + self.margin
        alarm = (delta * jnp.asarray(self.alarm, x.dtype)).sum(axis=1)
        return Outcome(margin, margin, alarm + self.detector)

    def most(self, epsilon: float = EPSILON) -> np.ndarray:
        """The greatest margin that is not caught in the linf ball, [B]; NaN where all are."""
        low, high = np.maximum(-epsilon, -self.x), np.minimum(epsilon, 1 - self.x)
        best = []
        for i in range(len(self.x)):
            bounds = np.stack([low[i], high[i]], axis=1)
            caught = -self.detector[i : i + 1]
            found = linprog(-self.rise[i], self.alarm[i : i + 1], caught, bounds=bounds)
            best.append(self.margin[i] - found.fun if found.status == 0 else np.nan)
        return np.array(best)

    @property
    def reach(self) -> np.ndarray:
        """How far the ball alone can move each margin, the range left aside, [B]."""
        return EPSILON * np.abs(self.rise).sum(axis=1)


def linear(
    n: int = 32, d: int = 40, seed: int = 0, headroom: float = 0.1, low: float = -0.02
) -> Linear:
    """Problems that can just be solved: the best that is not caught has a margin of ``headroom``
    of `Linear.reach` above 0. The detector's scale runs over six decades; it begins between ``low``
    and ``low`` + 0.1 of what the ball can raise it."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, d))
    x[:, ::4] = np.round(x[:, ::4])
    rise = rng.normal(size=(n, d))
    # What raises the margin raises the detector: plain attacks are caught.
    alarm = rng.normal(size=(n, d)) + rng.uniform(0.5, 1.5, (n, 1)) * rise
    alarm *= 10 ** rng.uniform(-3, 3, (n, 1))
    before = rng.uniform(low, low + 0.1, n) * EPSILON * np.abs(alarm).sum(axis=1)
    problems = Linear(x, rise, alarm, np.zeros(n), before)
    return Linear(x, rise, alarm, headroom * problems.reach - problems.most(), before)
