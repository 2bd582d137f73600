"""What every executor shares: workers that hold a model, shards tried a bounded number of times.

An executor is a function that starts a `Holder`. All of them go through `attempt`, so a worker that
dies, fails or exceeds its deadline is the same everywhere: another one takes its place, and the
shard is given up once it has cost so many.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.shards import Shard, ShardJob, ShardReport, give_up

STARTS = 5
"""How often in a row a worker may end before it has its model."""


class WorkerLost(Exception):
    """A worker died, failed without anyone foreseeing it, or was ended for its deadline."""


@runtime_checkable
class Holder(Protocol):
    """A worker that has been started, from the outside."""

    def work(self, shard: Shard) -> ShardReport:
        """Does a shard.

        Raises:
            WorkerLost: it cannot be used any more.
            UserError: no worker can do any shard.
        """

    def close(self) -> None:
        """Ends it, whatever it does; closing twice is harmless."""


Start = Callable[[int], Holder]
"""Starts the worker of a place (0, 1, ...), and returns once it has its model.

It raises `WorkerLost` where another try may do, and UserError where the job cannot be done."""


def attempt(
    job: ShardJob, shards: Iterable[Shard], start: Start, place: int = 0
) -> Iterator[ShardReport]:
    """Does shards one after the other with one worker at a time.

    Raises:
        UserError: the job cannot be done, or no worker starts.
    """
    holder: Holder | None = None
    try:
        for shard in shards:
            starts = tries = 0
            while True:
                try:
                    if holder is None:
                        starts += 1
                        holder = start(place)
                        starts = 0
                    tries += 1
                    report = holder.work(shard)
                    break
                except WorkerLost as lost:
                    if holder is not None:
                        holder.close()
                        holder = None
                    if starts == STARTS:
                        raise UserError(f"no worker starts, {starts} tries: {lost}") from lost
                    if tries == job.attempts:
                        report = give_up(job, shard, f"given up after {tries} workers: {lost}")
                        break
            yield report
    finally:
        if holder is not None:
            holder.close()


class _Remaining:
    """Shards that several threads draw from, each to be had once."""

    def __init__(self, shards: Sequence[Shard]):
        self._shards, self._lock, self.closed = iter(shards), threading.Lock(), False

    def __iter__(self) -> Iterator[Shard]:
        return self

    def __next__(self) -> Shard:
        with self._lock:
            if self.closed:
                raise StopIteration
            return next(self._shards)


def side_by_side(
    job: ShardJob, shards: Sequence[Shard], start: Start, workers: int
) -> Iterator[ShardReport]:
    """The reports of several workers as they come; each has one shard in hand and asks for its
    next when that is done.

    Raises:
        UserError: as `attempt`.
    """
    shared, reports = _Remaining(shards), queue.Queue[ShardReport | Exception | None]()

    def start_still(place: int) -> Holder:
        if shared.closed:
            raise UserError("nobody waits for this shard any more")
        return start(place)

    def drive(place: int) -> None:
        try:
            for report in attempt(job, shared, start_still, place):
                reports.put(report)
        except Exception as error:  # told to whoever waits for reports
            reports.put(error)
        finally:
            reports.put(None)

    workers = min(workers, len(shards))
    threads = [threading.Thread(target=drive, args=(i,), daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        running = workers
        while running:
            report = reports.get()
            if isinstance(report, Exception):
                raise report
            if report is None:
                running -= 1
            else:
                yield report
    finally:
        shared.closed = True
