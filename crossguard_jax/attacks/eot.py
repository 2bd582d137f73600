"""Expectation over transformation (Athalye et al., arXiv 1707.07397)."""

import jax
import jax.numpy as jnp

from crossguard_jax.attacks.problem import Objective, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray


def eot(objective: Objective, samples: int) -> Objective:
    """An objective's loss, margin and detector, each averaged over ``samples`` draws.

    Attacks give every evaluation a key of its own and judge what they return under one that the
    search has not seen; so wrapping the objective is all that a random model needs.

    Args:
        objective: whatever its key makes random in it.
        samples: draws an evaluation; they run as one batch.

    Raises:
        UserError: ``samples`` is not a whole number above 0.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise UserError(f"eot: samples {samples!r}: a whole number above 0")

    def averaged(x: Array, key: PRNGKeyArray) -> Outcome:
        draws = jax.vmap(objective, (None, 0))(x, jax.random.split(key, samples))
        return jax.tree.map(lambda draw: jnp.mean(draw, axis=0), draws)

    return averaged
