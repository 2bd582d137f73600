"""This process works itself."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.runtime.executors.holders import WorkerLost, attempt
from crossguard_jax.runtime.shards import Shard, ShardJob, ShardReport, do_shard, make_work


def work_here(job: ShardJob, shards: Sequence[Shard]) -> Iterator[ShardReport]:
    """Does the shards one after the other.

    A deadline interrupts what Python does or waits for; a program on a device is waited for first,
    since nothing can end it but the process's own end.
    """
    os.environ.update(job.environ())
    yield from attempt(job, shards, lambda place: _Here(job))


class _Here:
    def __init__(self, job: ShardJob):
        self._job = job
        with _Deadline(job.deadline):
            try:
                self._work = make_work(job)
            except UserError:
                raise
            except Exception as error:
                raise WorkerLost(reason(error)) from error

    def work(self, shard: Shard) -> ShardReport:
        with _Deadline(self._job.deadline) as deadline:
            try:
                return do_shard(self._job, self._work, shard, deadline.begin)
            except UserError:
                raise
            except Exception as error:
                raise WorkerLost(reason(error)) from error

    def close(self) -> None:
        pass


class _Deadline:
    """An alarm that goes off unless it is begun anew; none outside of the main thread."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._rings = threading.current_thread() is threading.main_thread()

    def begin(self) -> None:
        if self._rings:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __enter__(self) -> "_Deadline":
        if self._rings:
            self._before = signal.signal(signal.SIGALRM, self._ring)
        self.begin()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._rings:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no batch within {self._seconds:g} s")
