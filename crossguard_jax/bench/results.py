"""What the benches share in telling: figures of a measurement, its table, and where both go.

A measurement is printed and written out as soon as it is there, so that a bench that is stopped
keeps what it measured.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossguard_jax.core.timing import Timed, ratios
from crossguard_jax.io.jsonl import write_atomic

HEADINGS = ("work", "instead", "theirs", "this package", "ratio (low to high)", "floor")


class Measurements:
    """The figures of a run by measurement, in ``path`` after each.

    Args:
        path: the JSON file; an older one is replaced with the first measurement.
        threads: what the other sides may use.
        versions: of the libraries measured.
    """

    def __init__(self, path: Path, threads: int, versions: Mapping[str, str]):
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        self._path = path
        self._document: dict[str, Any] = {
            "machine": f"{machine}, {threads} threads for the other side",
            "versions": dict(versions),
        }

    def add(self, name: str, figures: Mapping[str, Any], shown: str) -> None:
        """Writes the figures out under ``name``, and prints what is shown of them."""
        self._document[name] = figures
        write_atomic(self._path, json.dumps(self._document, indent=2) + "\n")
        print(f"{shown}\n", flush=True)


@dataclass(frozen=True)
class Comparison:
    """A row of a bench's table: two ways to do the same work.

    Attributes:
        work: what is done.
        instead: the other way.
        theirs, ours: median seconds.
        ratio: theirs over ours in neighbouring runs, as `compared` gives it.
        floor: seconds at the machine's rate of what must be done at least.
        least: what that is (FLOPs, bytes), in words.
    """

    work: str
    instead: str
    theirs: float
    ours: float
    ratio: Mapping[str, float]
    floor: float
    least: str

    def cells(self) -> tuple[str, ...]:
        """By `HEADINGS`."""
        seconds = seconds_text(self.theirs), seconds_text(self.ours)
        floor = f"{seconds_text(self.floor)}, {self.least}"
        return self.work, self.instead, *seconds, ratio_text(self.ratio), floor


def table(rows: Sequence[Comparison], *notes: str) -> str:
    """Rows as Markdown, and what there is to say besides, a paragraph each."""
    lines = (HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows))
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([body, *notes])


def compared(timed: Mapping[str, Timed], baseline: str, ours: str) -> dict[str, float]:
    """Baseline's seconds over ours, of neighbouring runs: above 1, ours is faster."""
    low, median, high = ratios(timed[baseline], timed[ours])
    return {"median": median, "low": low, "high": high}


def medians(timed: Mapping[str, Timed], *but: str) -> dict[str, float]:
    """Median seconds of every side; of those in ``but`` not."""
    return {name: each.median for name, each in timed.items() if name not in but}


def first_calls(timed: Mapping[str, Timed], *but: str) -> dict[str, float]:
    """Seconds of every side's first call, with its compilation; of those in ``but`` not."""
    return {name: each.first for name, each in timed.items() if name not in but}


def gflop_text(gflop: float) -> str:
    """A count of floating-point operations."""
    return f"{gflop:.3g} GFLOP" if gflop < 1000 else f"{gflop:.0f} GFLOP"


def ratio_text(ratio: Mapping[str, float]) -> str:
    """What `compared` gives."""
    return f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"


def seconds_text(x: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x / 1e-6:.3g} us"
