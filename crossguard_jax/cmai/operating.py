"""Where a guard cuts, as an attack meets it: log odds of its second answer, and the unit that
margins are counted in.

Both ride with the rows, so that every cut runs through the same programs. With a unit taken from
clean scores (`unit_of`) nothing that an attack does depends on the scale of the logits: no loss is
saturated, and a slack or a weight means the same for every model.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.typing import Array, Float

CUT, UNIT = "cut", "unit"
"""Names of the two among a row's arrays, float32 [B] each; without them a guard cuts at even odds,
and margins are differences of logits."""


def at_cut(n: int, cut: float, unit: float) -> dict[str, np.ndarray]:
    """The arrays of ``n`` rows."""
    return {CUT: np.full(n, cut, np.float32), UNIT: np.full(n, unit, np.float32)}


def unit_of(scores: Float[np.ndarray, " N"]) -> float:
    """The standard deviation of the log odds that are finite; 1 where they do not differ."""
    finite = scores[np.isfinite(scores)]
    return float(finite.std()) or 1.0 if finite.size else 1.0


def moved(rows: Any, logits: Float[Array, "B 2"]) -> Float[Array, "B 2"]:
    """Two answers' logits, even where the guard cuts, in units."""
    if CUT not in rows:
        return logits
    cut = jnp.stack([jnp.zeros_like(rows[CUT]), rows[CUT]], axis=1)
    return (logits - cut) / rows[UNIT][:, None]


def judged(
    rows: Any, loss: Float[Array, " B"], margin: Float[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Loss and margin of answers, of which there are two, where the guard cuts, in units.

    Args:
        rows: with ``labels``, 0 or 1, and perhaps the two arrays.
        loss, margin: at even odds.
    """
    if CUT not in rows:
        return loss, margin
    margin = (margin - sign(rows["labels"]) * rows[CUT]) / rows[UNIT]
    return jax.nn.softplus(margin), margin


def sign(labels: Any) -> Any:
    """What a row's margin is of its log odds: an answer 0 is wrong where they are high."""
    return 1 - 2 * labels
