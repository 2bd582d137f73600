"""How rows and their pictures lie in arrays, in few shapes.

A batch has ``input_ids`` and ``attention_mask`` [B, L], ``pixel_values`` [M, 3, X, X] of all its
pictures and ``picture_index`` [B, I], the pictures that each row shows, in order. Rows may share a
picture: the windows of one request do. M and I are rounded up, so that few programs are compiled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from crossguard_jax.guard.shapes import filled, slots


def windows(total: int, size: int) -> list[tuple[int, int]]:
    """Stretches of at most ``size`` out of ``total`` that overlap by half, evenly spread."""
    if total <= size:
        return [(0, total)]
    n = 1 + -(-(total - size) // max(size // 2, 1))
    starts = np.linspace(0, total - size, n).round().astype(int).tolist()
    return [(start, start + size) for start in starts]


def arrange(
    shown: Sequence[Sequence[int]], pixels: Sequence[np.ndarray], size: int, room: int = 0
) -> dict[str, np.ndarray]:
    """``pixel_values`` and ``picture_index`` of a batch; empty where it shows nothing.

    Args:
        shown: the pictures of each row, by their place in ``pixels``.
        pixels: float32 [3, X, X] each.
        size: M; what is missing is zero.
        room: I; 0 is as many as the row with the most pictures needs.
    """
    if not pixels:
        return {}
    values = np.zeros((size, *pixels[0].shape), np.float32)
    values[: len(pixels)] = pixels
    return {"pixel_values": values, "picture_index": indexed(shown, room)}


def in_place(pictures: Sequence[Sequence[np.ndarray]], size: int, side: int) -> np.ndarray:
    """``pixel_values`` of a batch whose rows show a picture each, at the row's own place, or none,
    which is zero there; they need no index.

    Args:
        pictures: of each row, float32 [3, X, X].
        size: B.
        side: X.
    """
    values = np.zeros((size, 3, side, side), np.float32)
    for value, own in zip(values, pictures, strict=False):
        if own:
            value[...] = own[0]
    return values


def indexed(shown: Sequence[Sequence[int]], room: int = 0) -> np.ndarray:
    """``picture_index``, int32 [B, I], of the places of each row's pictures; see `arrange`."""
    index = np.zeros((len(shown), room or slots(max(map(len, shown)))), np.int32)
    for row, places in zip(index, shown, strict=True):
        row[: len(places)] = places
    return index


def fill(batch: Mapping[str, np.ndarray], size: int, pictures: int = 0) -> dict[str, np.ndarray]:
    """A batch filled up to ``size`` rows with its last one, and its pictures to ``pictures``; where
    that is 0 by as much, or where rows share pictures, to a size of `filled`."""
    n = len(batch["input_ids"])
    missing = size - n
    out = {}
    for name, values in batch.items():
        if name == "pixel_values" and "picture_index" in batch:
            own = len(values) % n == 0
            total = pictures or (len(values) // n * size if own else filled(len(values)))
            space = total - len(values)
            out[name] = np.pad(values, [(0, space), *[(0, 0)] * (values.ndim - 1)])
        else:
            out[name] = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
    return out


def microbatches(batch: Mapping[str, Any], parts: int) -> dict[str, Any]:
    """A batch as ``parts`` batches, stacked, each row with its own pictures, to be traced.

    Strided, so that each keeps the batch's own sharding over devices.
    """
    arrays = dict(batch)
    if "picture_index" in arrays:
        index = arrays["picture_index"]
        arrays["pixel_values"] = arrays["pixel_values"][index]

    def split(x: Any) -> Any:
        return x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    out = {name: split(x) for name, x in arrays.items()}
    if "picture_index" in arrays:
        pixels, index = out["pixel_values"], out["picture_index"]
        out["pixel_values"] = pixels.reshape(parts, -1, *pixels.shape[3:])
        own = jnp.arange(index[0].size, dtype=index.dtype).reshape(index.shape[1:])
        out["picture_index"] = jnp.broadcast_to(own, index.shape)
    return out
