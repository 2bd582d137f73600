"""Which process of a run this is, and how the processes wait for one another.

The only module that asks JAX so. Outside of a run of several, all of it is a no-op.
"""

from typing import Any

import jax
import numpy as np


def index() -> int:
    """This process's number, from 0."""
    return jax.process_index()


def count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process writes what all share, and talks to people."""
    return index() == 0


def barrier(name: str) -> None:
    """Returns once every process is here.

    Args:
        name: the same on all of them, and of no other barrier that may be open.
    """
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
    """The whole of every array, on the host, in every process; all must call it alike.

    Args:
        tree: arrays that may span processes.

    Returns:
        The same tree of numpy arrays.
    """
    return jax.tree.map(_whole, tree)


def _whole(array: Any) -> Any:
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
