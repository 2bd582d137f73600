"""Batches onto a mesh that several processes share: each makes the rows that its devices hold.

The global batch is what one process would have; which part of it a process makes follows from the
sharding alone, so that neither rows nor their order depend on how many processes there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


@dataclass(frozen=True)
class Share:
    """The parts of a batch that this process's devices hold.

    Attributes:
        parts: their numbers, from 0, in order.
        of: how many parts of one size the leading axis is cut into.
    """

    parts: tuple[int, ...] = (0,)
    of: int = 1

    @classmethod
    def under(cls, sharding: NamedSharding | None) -> "Share":
        """What a sharding of the leading axis leaves to this process; None is one device's."""
        if sharding is None or sharding.is_fully_addressable:
            return cls()
        size = sharding.mesh.size
        everywhere = sharding.devices_indices_map((size,))
        here = sharding.addressable_devices_indices_map((size,))
        starts = sorted({index[0].start or 0 for index in everywhere.values()})
        mine = {index[0].start or 0 for index in here.values() if index is not None}
        return cls(tuple(starts.index(start) for start in sorted(mine)), len(starts))

    def rows(self, size: int) -> np.ndarray:
        """The positions, of ``size`` along the leading axis, that this process makes."""
        each = size // self.of
        return np.concatenate([np.arange(i * each, (i + 1) * each) for i in self.parts])

    def own(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows of whole arrays."""
        return {name: array[self.rows(len(array))] for name, array in batch.items()}


WHOLE = Share()
"""Of a process that makes all rows."""


def place(batch: Any, sharding: NamedSharding | None) -> Any:
    """Host arrays onto devices as one global array each.

    Args:
        batch: this process's rows of each array (`Share.own`).
        sharding: of the leading axis; None is the first device.
    """
    if sharding is None:
        return jax.tree.map(jax.numpy.asarray, batch)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    share = Share.under(sharding)

    def one(array: np.ndarray) -> jax.Array:
        each = len(array) // len(share.parts)
        whole = (each * share.of, *array.shape[1:])

        def rows_of(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start = share.parts.index((index[0].start or 0) // each) * each
            return array[start : start + each]

        return jax.make_array_from_callback(whole, sharding, rows_of)

    return jax.tree.map(one, batch)


def put(batch: Any, sharding: NamedSharding) -> Any:
    """Host arrays that every process has whole, onto devices as one global array each."""
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), batch
    )
