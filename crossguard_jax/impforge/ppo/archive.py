"""What has been written already, on the device: novelty, and a cap on near-duplicates.

A policy that found one good text writes it again and again. The archive keeps the sentence vectors
of the latest texts; a text is novel by its distance to the nearest of them, and where too many are
nearly the same it earns nothing.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.core.typing import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Archive:
    """A ring of unit vectors.

    Attributes:
        vectors: [S, D] float32; rows not yet written are zero.
        written: how many were ever put in, int32.
    """

    vectors: Any
    written: Any

    @classmethod
    def empty(cls, size: int, width: int) -> "Archive":
        """An archive of ``size`` places for vectors of ``width``."""
        return cls(jnp.zeros((size, width)), jnp.int32(0))


def nearest(archive: Archive, vectors: Float[Array, "B D"]) -> Float[Array, " B"]:
    """Cosine to the nearest vector of the archive; 0 where it is empty."""
    # An unwritten place is a zero vector, whose cosine of 0 is that of an empty archive.
    return jnp.maximum((vectors @ archive.vectors.T).max(axis=1), 0.0)


def crowd(archive: Archive, vectors: Float[Array, "B D"], threshold: float) -> Float[Array, " B"]:
    """How many near-duplicates of each vector there are, in the archive and before it in the batch.

    Args:
        archive: the archive.
        vectors: unit vectors.
        threshold: the least cosine of near-duplicates.
    """
    before = jnp.tril(vectors @ vectors.T >= threshold, k=-1).sum(axis=1)
    return ((vectors @ archive.vectors.T >= threshold).sum(axis=1) + before).astype(jnp.float32)


def insert(archive: Archive, vectors: Float[Array, "B D"], keep: Bool[Array, " B"]) -> Archive:
    """The archive with the kept vectors in place of its oldest."""
    size = archive.vectors.shape[0]
    place = (archive.written + jnp.cumsum(keep) - 1) % size
    # What is not kept is written nowhere: out of bounds, and dropped.
    place = jnp.where(keep, place, size)
    return Archive(
        archive.vectors.at[place].set(vectors, mode="drop"),
        archive.written + keep.sum().astype(jnp.int32),
    )
