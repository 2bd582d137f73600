"""Which process of a run this is, and what its processes do together.

The only module that asks JAX so. Outside of a run of several, all of it is a no-op. What one calls
here all must call, in the same order.
"""

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from crossguard_jax.core.errors import UserError

T = TypeVar("T")
Row = TypeVar("Row")


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
    """The whole of every array, on the host, in every process.

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


def exchange(value: T) -> list[T]:
    """What each process gave, by its number, in all of them."""
    if count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    sent = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(sent)))
    # A power of two, so that few programs are compiled.
    room = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    room[: len(sent)] = sent
    rows = multihost_utils.process_allgather(room)
    return [
        pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist(), strict=True)
    ]


def by_first(work: Callable[[], T], beside: Iterable[Any] = ()) -> T:
    """What the first process alone makes, in every process; none goes on before it is done.

    Args:
        work: writes what all share; its value has to be one that pickles.
        beside: what ``work`` goes through by computing that takes all processes (tensors to be
            gathered): the others go through it too, and so does the first where ``work`` fails.

    Raises:
        UserError: whatever was raised in the first process; that one raises it as it is.
    """
    if count() == 1:
        return work()
    value: Any = None
    failure: BaseException | None = None
    if is_first():
        try:
            value = work()
        except Exception as error:
            failure = error
    for _ in beside:
        pass
    reason = None if failure is None else str(failure) or repr(failure)
    (value, reason), *_ = exchange((value, reason))
    if failure is not None:
        raise failure
    if reason is not None:
        raise UserError(f"process 0: {reason}")
    return value


def divided(rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[T]]) -> list[T]:
    """``work`` of all rows, of which each process did a part, in the order of the rows.

    Args:
        rows: the same in every process.
        work: an outcome a row; it may not compute together with other processes.

    Raises:
        UserError: whatever was raised in any process; that one raises it as it is.
    """
    n = count()
    if n == 1:
        return list(work(rows))
    outcomes: Sequence[T] = []
    failure: BaseException | None = None
    try:
        mine = rows[index() :: n]
        outcomes = work(mine) if mine else []
    except Exception as error:
        failure = error
    reason = None if failure is None else str(failure) or repr(failure)
    parts = exchange((list(outcomes), reason))
    if failure is not None:
        raise failure
    for process, (_, reason) in enumerate(parts):
        if reason is not None:
            raise UserError(f"process {process}: {reason}")
    return [parts[i % n][0][i // n] for i in range(len(rows))]
