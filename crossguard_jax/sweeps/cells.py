"""A cell is one run, a row of the table and a seed; what a sweep does with cells that are not done.

In the sweep's folder a cell is ``cells/ROW-SEED.json``, what it is to do; ``runs/ROW-SEED``, where
it works, in one process at a time; and, once it is done, a file in ``figures``. Cells are shards to
the executors of `runtime`: who works on which, and how often one is tried, is theirs to say. A
sweep that is started again makes what is not there, what failed, and what is to do something else
than before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.io import jsonl
from crossguard_jax.io.files import stamp
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.runtime.shards import (
    Beat,
    Counts,
    Shard,
    ShardJob,
    Work,
    finished,
    read_report,
)
from crossguard_jax.sweeps.held import held

Figures = Mapping[str, Estimate]
LEFT = "figures.json"
PATIENCE = 7 * 86_400.0
"""Seconds that a cell's work may go on without a sign of life: it has a watchdog of its own."""


@dataclass(frozen=True)
class SweepCell:
    """One run.

    Attributes:
        row: the table's, in characters that a file's name may have, without a dot.
        seed: which of the row's runs.
        work: what there is to do, JSON values.
    """

    row: str
    seed: int
    work: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its file and its folder are called."""
        return f"{self.row}-{self.seed}"


@dataclass(frozen=True)
class CellOutcome:
    """What a cell came to.

    Attributes:
        cell: which one.
        figures: what it measured; None where it is not done.
        reason: why it failed, on one line; "" where it did not, or has not been tried.
    """

    cell: SweepCell
    figures: Figures | None
    reason: str = ""

    @property
    def settled(self) -> bool:
        """Whether it was done or has failed."""
        return self.figures is not None or bool(self.reason)


Measure = Callable[[SweepCell, Path, Beat], Figures]
"""Does a cell's work in its folder, and measures; raises UserError where it cannot be done."""


@dataclass(frozen=True)
class Sweep:
    """Cells, and who can do them.

    Attributes:
        folder: takes everything.
        cells: in the order in which they are begun; no two of a row and a seed.
        factory: ``module:function`` of a `Measure`'s `work_of`; see `ShardJob`.
        spec: what it is told, JSON values.
        threads: of XLA on each worker's CPU; see `ShardJob`.
    """

    folder: Path
    cells: Sequence[SweepCell]
    factory: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    @property
    def job(self) -> ShardJob:
        """The work as executors take it."""
        place = str(self.folder / "figures")
        return ShardJob(self.factory, self.spec, place, ".json", PATIENCE, threads=self.threads)

    def shard(self, cell: SweepCell) -> Shard:
        """A cell as executors take it: its output sorts by seed, and keeps its name where other
        cells join."""
        return Shard(cell.seed, str(self.folder / "cells" / f"{cell.name}.json"))

    def run(self, on: str | None = None, workers: int | None = None) -> list[CellOutcome]:
        """Does the cells that are not done; see `run_shards` for the arguments and errors.

        Returns:
            What became of each one, in their order; others may be at work on some of them.
        """
        for cell in self.cells:
            text = json.dumps(asdict(cell), indent=1) + "\n"
            path = Path(self.shard(cell).path)
            # The same text keeps its time, by which what was made of it is known.
            if not path.exists() or path.read_text() != text:
                jsonl.write_atomic(path, text)
        shards = [self.shard(cell) for cell in self.cells]
        run_shards(self.job, shards, on, workers, others=True, unit="cell")
        return self.outcomes()

    def outcomes(self) -> list[CellOutcome]:
        """What has become of each cell, in their order."""
        return [self._outcome(cell) for cell in self.cells]

    def _outcome(self, cell: SweepCell) -> CellOutcome:
        job, shard = self.job, self.shard(cell)
        if finished(job, shard):
            return CellOutcome(cell, read_figures(job.output(shard)))
        report = read_report(job.report(shard))
        tried = report is not None and report.stamp == stamp(shard.path)
        return CellOutcome(cell, None, report.reason if report and tried else "")


def work_of(measure: Measure, folder: str) -> Work:
    """What a worker does with a cell; factories return it.

    Args:
        measure: the work.
        folder: of the figures, as a factory is given it.
    """

    def work(shard: Shard, output: Path, beat: Beat) -> Counts:
        value = jsonl.read_json(shard.path)
        if not isinstance(value, dict) or not {"row", "seed", "work"} <= value.keys():
            raise UserError(f"{shard.path}: is no cell; remove it, and start the sweep again")
        cell = SweepCell(value["row"], value["seed"], value["work"])
        place = Path(folder).parent / "runs" / cell.name
        with held(place, beat) as waited:
            # Whoever had the folder first may have measured just this.
            entries = _left(place, cell) if waited else None
            if entries is None:
                (place / LEFT).unlink(missing_ok=True)
                figures = measure(cell, place, beat)
                entries = {name: estimate.as_dict() for name, estimate in figures.items()}
                content = {"work": cell.work, "figures": entries}
                jsonl.write_atomic(place / LEFT, json.dumps(content) + "\n")
        jsonl.write_atomic(output, json.dumps(entries) + "\n")
        return {"figures": len(entries)}

    return work


def _left(place: Path, cell: SweepCell) -> dict[str, Any] | None:
    """The figures that lie in a cell's folder; None where they are not of the same work."""
    content = jsonl.read_json(place / LEFT) if (place / LEFT).exists() else {}
    return content["figures"] if content.get("work") == cell.work else None


def read_figures(path: Path) -> Figures:
    """The figures that a cell left."""
    entries = json.loads(path.read_bytes())
    return {name: Estimate.from_dict(entry) for name, entry in entries.items()}
