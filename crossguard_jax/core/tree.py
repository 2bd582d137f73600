"""Walking model states by dotted path."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx


def named_leaves(state: Any) -> Iterator[tuple[str, nnx.Variable]]:
    """``(dotted path, variable)`` of every variable in a module or state, in a fixed order."""
    if isinstance(state, nnx.Module):
        state = nnx.split(state, graph=False)[1]
    for path, variable in nnx.to_flat_state(state):
        yield ".".join(map(str, path)), variable


def count(state: Any) -> int:
    """How many numbers a tree of arrays (or shapes) holds."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state))


def n_bytes(state: Any) -> int:
    """How many bytes a tree of arrays (or shapes) takes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))


def digest(state: Any) -> str:
    """SHA-256 over names, shapes, types and bytes: equal only for bit-identical trees."""
    h = hashlib.sha256()
    for name, variable in named_leaves(state):
        value = np.asarray(variable[...])
        h.update(f"{name} {value.shape} {value.dtype}".encode())
        h.update(value.tobytes())
    return h.hexdigest()
