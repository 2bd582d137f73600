"""``--on``: runs a job's shards that are not done yet, and says what became of all of them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime.executors.array import part_of
from crossguard_jax.runtime.executors.here import work_here
from crossguard_jax.runtime.executors.local import work_beside
from crossguard_jax.runtime.joining import launch_arguments
from crossguard_jax.runtime.shards import (
    Counts,
    Shard,
    ShardJob,
    ShardReport,
    added,
    check_made,
    finished,
    refuse_others,
    sweep,
)

WHERE = "local|ray[:ADDRESS]|array"
"""What ``--on`` takes; without it, this process works."""


@dataclass(frozen=True)
class ShardSummary:
    """What a run over shards came to.

    Attributes:
        reports: one a shard of this run's, in the order of the manifest.
        now: those of them that are this run's work.
    """

    reports: Sequence[ShardReport]
    now: Sequence[ShardReport]

    @property
    def before(self) -> int:
        """How many shards had been done before."""
        return len(self.reports) - len(self.now)

    @property
    def counts(self) -> Counts:
        """What the workers counted, added up."""
        return added(report.counts for report in self.reports)

    @property
    def counts_now(self) -> Counts:
        """The same of this run's work."""
        return added(report.counts for report in self.now)

    @property
    def failed(self) -> list[ShardReport]:
        """Of the shards without an output."""
        return [report for report in self.reports if report.bytes < 0]

    def lines(self, shown: int = 12) -> Iterator[str]:
        """For people."""
        done = len(self.reports) - len(self.failed)
        before = f", {self.before:,} of them before" if self.before else ""
        yield f"{len(self.reports):,} shards: {done:,} done{before}, {len(self.failed):,} rejected"
        reasons = Counter(report.reason for report in self.failed)
        for report in self.failed[:shown]:
            path = f"{report.shard.path}: "
            yield f"  {path}{report.reason.removeprefix(path)}"
        if len(self.failed) > shown:
            yield f"  ... and {len(self.failed) - shown:,} others, {len(reasons):,} reasons in all"


def check_where(on: str | None) -> None:
    """Raises a UserError for what ``--on`` does not take."""
    name, colon, address = (on or "local").partition(":")
    if name not in ("local", "ray", "array") or (colon and (name != "ray" or not address)):
        raise UserError(f"--on {on}: give one of {WHERE}, or nothing for this process")


def run_shards(
    job: ShardJob,
    shards: Sequence[Shard],
    on: str | None = None,
    workers: int | None = None,
    *,
    others: bool = False,
    unit: str = "shard",
) -> ShardSummary:
    """Does what is not done yet.

    Args:
        job: what is done.
        shards: with what: the whole manifest.
        on: see `WHERE`; an array's task does its part alone.
        workers: how many, for ``local`` and ``ray``.
        others: its folder may hold what is of other shards.
        unit: what progress calls a shard.

    Raises:
        UserError: the job cannot be done, or its folder holds what is of other shards, or was made
            from something else.
    """
    check_where(on)
    if on != "array" and launch_arguments(os.environ) is not None:
        raise UserError(
            "several processes of one run, and each would do all of it: start one (--on local or "
            "ray finds it workers), or tasks of an array that each do their part (--on array)"
        )
    _make_folder(job)
    if not others:
        refuse_others(job, shards)
    part = part_of(os.environ, shards) if on == "array" else shards
    reports = {shard: report for shard in part if (report := finished(job, shard))}
    waiting = [shard for shard in part if shard not in reports]
    if part and not waiting:  # else whoever works compares
        check_made(job)
    failed = 0
    with Progress(f"{unit}s", len(part), unit=unit, start=len(reports)) as progress:
        for report in _reports(job, waiting, on, workers) if waiting else ():
            reports[report.shard] = report
            failed += report.bytes < 0
            progress.update(note=f"{failed:,} rejected" if failed else "")
    if on != "array":
        sweep(job)
    return ShardSummary([reports[s] for s in part], [reports[s] for s in waiting])


def _make_folder(job: ShardJob) -> None:
    """Before any worker loads a model for what cannot be put down."""
    try:
        os.makedirs(job.folder, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{job.folder}: no folder can be there ({error.strerror}); outputs of shards need one"
        ) from error


def _reports(
    job: ShardJob, shards: Sequence[Shard], on: str | None, workers: int | None
) -> Iterator[ShardReport]:
    where, _, address = (on or "").partition(":")
    if where == "local":
        return work_beside(job, shards, workers)
    if where == "ray":
        from crossguard_jax.runtime.executors.on_ray import work_on_ray

        return work_on_ray(job, shards, address, workers)
    return work_here(job, shards)
