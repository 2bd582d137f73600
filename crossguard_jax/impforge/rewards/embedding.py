"""Vectors of many rows from a frozen model, in batches of one size."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crossguard_jax.core.typing import Array, Float
from crossguard_jax.io.progress import Progress

Fold = Callable[[np.ndarray], np.ndarray]
"""Vectors of a text's windows [W, D] to its own [D]; one vector stays as it is."""


def worst(vectors: Float[np.ndarray, "W D"]) -> Float[np.ndarray, " D"]:
    """The least: what a text earns that is harmful in any of its windows."""
    return vectors.min(axis=0)


def mean_direction(vectors: Float[np.ndarray, "W D"]) -> Float[np.ndarray, " D"]:
    """The unit vector of their mean: what a text is about, from its beginning to its end."""
    if len(vectors) == 1:
        return vectors[0]
    mean = vectors.mean(axis=0)
    return mean / np.maximum(np.linalg.norm(mean), 1e-12)


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


class WholeTexts:
    """Vectors of texts of any length, from those of their windows.

    Args:
        embed: windows to vectors: an `Embedder`.
        windows: texts to each one's rows, one or more.
        fold: a text's vectors to one.
    """

    def __init__(
        self,
        embed: Callable[[Sequence[list[int]]], np.ndarray],
        windows: Callable[[Sequence[str]], list[list[list[int]]]],
        fold: Fold,
    ):
        self._embed, self._windows, self._fold = embed, windows, fold

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """A vector a text, in float32."""
        parts = self._windows(texts)
        vectors = self._embed([row for rows in parts for row in rows])
        ends = np.cumsum([len(rows) for rows in parts])
        if len(vectors) == len(parts):
            return vectors
        return np.stack([self._fold(each) for each in np.split(vectors, ends[:-1])])


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
