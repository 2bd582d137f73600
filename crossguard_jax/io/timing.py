"""Interleaved timing: A B A B ..., medians, and the machine's own matmul rate in the same run.

Machines are noisy and drift, so only ratios of neighbouring runs are worth quoting; compilation
is timed apart.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from crossguard_jax.io.progress import Progress


@dataclass(frozen=True)
class Timed:
    """Seconds of one side's runs, and of its first call (compilation, warm-up)."""

    first: float
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the runs, in seconds."""
        return statistics.median(self.seconds)


def interleave(sides: Mapping[str, Callable[[], None]], runs: int, what: str) -> dict[str, Timed]:
    """Calls every side twice, then all in turn ``runs`` times.

    The first call compiles and is timed apart, the second (whose memory is new) is not counted.

    Args:
        sides: each does one unit of work and returns when it is done.
        runs: counted runs a side.
        what: for the progress line.
    """
    first = {name: _seconds(run) for name, run in sides.items()}
    for run in sides.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in sides}
    with Progress(what, runs, unit="round") as progress:
        for _ in range(runs):
            for name, run in sides.items():
                found[name].append(_seconds(run))
            progress.update()
    return {name: Timed(first[name], tuple(found[name])) for name in sides}


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(baseline: Timed, ours: Timed) -> tuple[float, float, float]:
    """Lowest, median and highest of baseline / ours over neighbouring runs: above 1, we win."""
    found = sorted(b / o for b, o in zip(baseline.seconds, ours.seconds, strict=True))
    return found[0], statistics.median(found), found[-1]


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
