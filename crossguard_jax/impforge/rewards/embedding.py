"""Vectors of many rows from a frozen model, in batches of one size."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.typing import Array, Float
from crossguard_jax.io.progress import Progress


class Embedder:
    """A frozen model with what it reads.

    Args:
        model: the model.
        embed: the model and a batch of arrays to vectors [B, D].
        read: rows to those arrays, each [B, ...].
        width: D.
        unit: what a row is, in the singular.
        mesh: where the model is; None is the first device.
        size: B of every batch; the last one is filled up.
    """

    def __init__(
        self,
        model: nnx.Module,
        embed: Callable[..., Array],
        read: Callable[[Any], tuple[np.ndarray, ...]],
        width: int,
        unit: str,
        mesh: Mesh | None = None,
        size: int = 64,
    ):
        graph, self._state = nnx.split(model, graph=False)
        self._run = jax.jit(
            lambda state, *rows: embed(nnx.merge(graph, state), *rows),
            # Whole on every device, so that every process can read it.
            out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()),
        )
        self._read, self._width, self._size, self._unit = read, width, size, unit

    def __call__(self, rows: Sequence[Any]) -> Float[np.ndarray, "B D"]:
        """The vectors, in float32."""
        embeddings = np.zeros((len(rows), self._width), np.float32)
        with Progress(f"embedding {self._unit}s", len(rows), unit=self._unit) as progress:
            for start in range(0, len(rows), self._size):
                part = rows[start : start + self._size]
                arrays = [_filled(a, self._size) for a in self._read(part)]
                vectors = self._run(self._state, *arrays)
                embeddings[start : start + len(part)] = np.asarray(vectors)[: len(part)]
                progress.update(len(part))
        return embeddings


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
