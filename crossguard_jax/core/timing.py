"""Interleaved timing: A B A B ..., medians, and the machine's own matmul rate in the same run.

Machines are noisy and drift, so only ratios of neighbouring runs are worth quoting; compilation
is timed apart.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timed:
    """Seconds of one side's runs, and of its first call (compilation, warm-up)."""

    first: float
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the runs, in seconds."""
        return statistics.median(self.seconds)


def interleave(
    sides: Mapping[str, Callable[[], object]], rounds: Iterable[object]
) -> dict[str, Timed]:
    """Calls every side twice, then all in turn, once a round.

    The first call compiles and is timed apart, the second (whose memory is new) is not counted.

    Args:
        sides: each does one unit of work and returns when it is done.
        rounds: as many as there are counted runs a side; what it yields is not looked at.
    """
    first = {name: _seconds(run) for name, run in sides.items()}
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in rounds:
        for name, run in sides.items():
            seconds[name].append(_seconds(run))
    return {name: Timed(first[name], tuple(seconds[name])) for name in sides}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(baseline: Timed, ours: Timed) -> tuple[float, float, float]:
    """Lowest, median and highest of baseline / ours over neighbouring runs: above 1, we win."""
    each = sorted(b / o for b, o in zip(baseline.seconds, ours.seconds, strict=True))
    return each[0], statistics.median(each), each[-1]


def matmul_side(n: int = 2048) -> tuple[Callable[[], None], float]:
    """A float32 ``n x n`` matrix product by JAX, and its FLOPs: the machine's practical ceiling."""
    import jax

    a = jax.device_put(np.random.default_rng(0).normal(size=(n, n)).astype(np.float32))
    product = jax.jit(lambda x: x @ x)
    repeats = 3

    def run() -> None:
        for _ in range(repeats):
            product(a).block_until_ready()

    return run, repeats * 2.0 * n**3
