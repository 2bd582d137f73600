"""Which of many texts does best, on the host."""

from typing import NamedTuple

import numpy as np

from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.core.errors import UserError


class Ranked(NamedTuple):
    """An outcome as numpy arrays of one shape.

    Attributes:
        loss: -inf where it was no number: nothing is worse.
        success: whether each fools the model and is not caught.
        rejected: whether each is caught.
    """

    loss: np.ndarray
    success: np.ndarray
    rejected: np.ndarray

    def order(self) -> np.ndarray:
        """Indices along the last axis from worst to best: failures first, then by loss."""
        return np.lexsort((self.loss, self.success), axis=-1)


def ranked(outcome: Outcome, shape: tuple[int, ...]) -> Ranked:
    """An outcome, brought to the host.

    Raises:
        UserError: its fields are not of this shape.
    """
    for name in ("loss", "margin", "detector"):
        value = getattr(outcome, name)
        if value is not None and np.shape(value) != shape:
            raise UserError(
                f"attack: {name} is {list(np.shape(value))} for {list(shape)} texts; return one "
                "number a text"
            )
    loss = np.asarray(outcome.loss, np.float32)
    valid = ~np.isnan(loss)
    success = np.asarray(outcome.success) & valid
    return Ranked(np.where(valid, loss, -np.inf), success, np.asarray(outcome.rejected))
