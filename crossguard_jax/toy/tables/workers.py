"""Independent runs of a table side by side, a share of the cores each.

XLA compiles on one thread, and small models leave cores idle: on two cores, two processes of a core
each got through 1.37 times the runs of one process that had both.
"""

import multiprocessing
import os
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
    with ProcessPoolExecutor(jobs, context, _take_cores, (taken, jobs)) as pool:
        futures = [pool.submit(function, *unit) for unit in units]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_cores(taken: Any, jobs: int) -> None:
    """Keeps a new process to its own cores, where the system knows how."""
    with taken.get_lock():
        index = taken.value
        taken.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index % len(cores) :: jobs])
