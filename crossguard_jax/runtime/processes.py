"""Which process of a run this is, and what its processes do together.

The only module that asks JAX so: of its record of the run, since ``jax.process_index`` takes hold
of the devices first. Outside of a run of several, all of it is a no-op. What one calls here all
must call, in the same order.
"""

import itertools
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # named nowhere else: the record, and the coordinator's client

from crossguard_jax.core.errors import UserError

PIECE = 2**20
"""Bytes that go through the coordinator in one message."""
PATIENCE = 24 * 60 * 60 * 1000
"""Milliseconds. A process that dies ends the others long before, by the coordinator's heartbeats;
one that lives may be writing a data set."""
_exchanges = itertools.count()

T = TypeVar("T")
Row = TypeVar("Row")


def index() -> int:
    """This process's number, from 0."""
    return distributed.global_state.process_id or 0


def count() -> int:
    """How many processes the run has."""
    return distributed.global_state.num_processes or 1


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
    # It waits for hours where a collective would not, and takes no device.
    client: Any = distributed.global_state.client
    name = f"crossguard-exchange/{next(_exchanges)}"
    content = pickle.dumps(value)
    pieces = range(0, len(content), PIECE)
    for i, start in enumerate(pieces):
        client.key_value_set_bytes(f"{name}/{index()}/{i}", content[start : start + PIECE])
    client.key_value_set_bytes(f"{name}/{index()}/pieces", b"%d" % len(pieces))

    def read(key: str) -> bytes:
        return client.blocking_key_value_get_bytes(f"{name}/{key}", PATIENCE)

    values = []
    for process in range(count()):
        n = int(read(f"{process}/pieces"))
        values.append(pickle.loads(b"".join(read(f"{process}/{i}") for i in range(n))))
    client.wait_at_barrier(name, PATIENCE)
    client.key_value_delete(f"{name}/{index()}/")
    return values


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


def spread(work: Callable[[Row], T], items: Iterable[Row]) -> list[T]:
    """``map`` as a list, each item by one of the processes; see `divided`."""
    return divided([*items], lambda some: [work(item) for item in some])
