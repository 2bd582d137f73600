"""Which triplets each iteration rewrites."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.placement import WHOLE, Share


class Rounds:
    """Endless batches of rows for the training loop; its place is one number.

    Rows come in shuffled order, every row once before any comes again. With a quota that holds
    inside each category, and categories take turns, so that each has its equal share of every
    batch however rare it is.

    Args:
        arrays: [T, ...] each; a batch has their rows, and ``row``, the rows' numbers.
        categories: each row's category, from 0.
        batch_size: rows of all processes.
        seed: of the order.
        quota: whether categories take turns.
        share: the rows of each batch that this process makes: all share one order.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        categories: Sequence[int],
        batch_size: int,
        seed: int,
        quota: bool,
        share: Share = WHOLE,
    ):
        if not len(categories):
            raise UserError("no triplets to rewrite: is the file empty, or all of it rejected?")
        labels = np.asarray(categories) if quota else np.zeros(len(categories), np.int64)
        self._members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
        self._arrays, self._size, self._seed, self._share = arrays, batch_size, seed, share
        self._done = 0

    def __next__(self) -> dict[str, np.ndarray]:
        slots = self._done * self._size + self._share.rows(self._size)
        rows = np.asarray([self._row(slot) for slot in slots.tolist()])
        self._done += 1
        return {"row": rows.astype(np.int32)} | {k: v[rows] for k, v in self._arrays.items()}

    def _row(self, slot: int) -> int:
        turn, group = divmod(slot, len(self._members))
        members = self._members[group]
        epoch, place = divmod(turn, len(members))
        order = np.random.default_rng([self._seed, group, epoch]).permutation(len(members))
        return int(members[order[place]])

    def get_state(self) -> dict[str, Any]:
        """The place: batches drawn so far."""
        return {"done": self._done}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a place."""
        self._done = int(state["done"])
