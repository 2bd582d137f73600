"""Independent runs of a table side by side, a share of the cores each.

XLA compiles on one thread, and small models leave cores idle: on two cores, two processes of a core
each got through 1.37 times the runs of one process that had both.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from crossguard_jax.core.errors import UserError

T = TypeVar("T")


def spread(function: Callable[..., T], units: Sequence[tuple[Any, ...]], jobs: int) -> list[T]:
    """``function(*unit)`` for every unit, in their order.

    Args:
        function: at the top of a module, for other processes to find; takes and returns what can be
            pickled where there are several.
        units: arguments. Runs of several processes must not write the same files.
        jobs: processes; with 1 it is all done here.

    Raises:
        UserError: no job; or ``function``'s own, and what has not begun is not begun.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: 1 at least")
    if jobs == 1 or len(units) < 2:
        return [function(*unit) for unit in units]
    # JAX has threads, which a fork would lose.
    context = multiprocessing.get_context("spawn")
    taken = context.Value("i", 0)
    with ProcessPoolExecutor(jobs, context, _begin, (taken, jobs)) as pool:
        futures = [pool.submit(function, *unit) for unit in units]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(taken: Any, jobs: int) -> None:
    """Readies a new process: it ends with the one that it works for, and keeps to its own cores,
    where the system knows how."""
    # A killed command's workers would go on in folders where the next command goes on, too.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with taken.get_lock():
        index = taken.value
        taken.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index % len(cores) :: jobs])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
