"""Batches of records, by Grain: mixed by weight, shuffled, resumable.

What a model needs of a record (token ids, pixels) is made by a ``transform`` that the caller hands
in. It is run on a whole batch, in a thread, while the step before it computes. Every process of a
run goes through the same batches, so that their order is one process's and can be gone on with by
any number; a transform that makes this process's rows alone (`runtime.placement.Share`) knows from
the whole batch in which shapes.
"""

import functools
import math
import operator
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record

Batch = dict[str, np.ndarray]
Transform = Callable[[list[Record]], Batch]
Key = Callable[[list[Record]], Sequence[Any]]
"""What each of some records is put with its like by."""

POOL = 32
"""Batches whose rows are put with their like: with fewer, a batch of leftovers comes more often."""


def mixture(
    sources: Mapping[str, RecordSource],
    weights: Mapping[str, float | int],
    *,
    seed: int,
    batch_size: int,
    transform: Transform,
    key: Key | None = None,
    prefetch: int = 2,
    threads: int = 1,
) -> "Batches":
    """Endless training batches in which each source has its weight's share.

    Shares hold in every stretch of batches, not only on average: the sources take turns (weights
    are rounded to a hundredth of the smallest). Each source is reshuffled every time it has been
    gone through. With a ``key`` they hold in every `POOL` batches instead: so many are filled with
    the same rows as without it, but each with rows that have about one key.

    Args:
      sources: records by position, by name.
      weights: relative weights by name, one for each source; 0 leaves a source out.
      seed: decides the order, and nothing else does; 0 or more.
      batch_size: records in a batch of all processes.
      transform: ``batch_size`` records to arrays with a leading axis B, or this process's rows.
      key: what can be sorted, of each record; looked at once a record. None leaves the order.
      prefetch: batches made ahead.
      threads: threads that make them; the order does not depend on it.

    Raises:
      UserError: a weight without a source or the reverse, no weight above 0, or a source without
        records.
    """
    import grain

    used = _used_weights(sources, weights)

    def mixed(read: Mapping[str, Any]) -> Any:
        endless = [grain.MapDataset.source(_Shuffled(read[name], name, seed)) for name in used]
        return grain.MapDataset.mix(endless, list(used.values()))

    if key is None:
        batches = mixed(sources).batch(
            batch_size, drop_remainder=True, batch_fn=_on_list(transform)
        )
    else:
        places = mixed({name: _Places(name, len(sources[name])) for name in used})
        pools = _Pools(places, sources, key, batch_size, seed)
        batches = grain.MapDataset.source(pools).map(transform)
    return Batches(
        batches.to_iter_dataset(_ahead(prefetch, threads)),
        identity={
            "seed": seed,
            "batch_size": batch_size,
            "weights": used,
            "records": {name: len(sources[name]) for name in used},
            "pool": None if key is None else POOL,
        },
    )


def evaluation(
    source: RecordSource,
    *,
    batch_size: int,
    transform: Transform,
    prefetch: int = 2,
    threads: int = 1,
) -> "Batches":
    """Every record once, in order, in batches of one size.

    Beside the transform's arrays a batch has ``row`` (int64 [B], the record's position in
    ``source``) and ``mask`` (bool [B], False where a row only fills up the last batch: it repeats
    the last record).

    Args:
      source: records by position.
      batch_size: rows in a batch.
      transform: ``batch_size`` records to arrays with a leading axis B.
      prefetch: batches made ahead.
      threads: threads that make them.

    Raises:
      UserError: the source is empty.
    """
    import grain

    total = len(source)
    if not total:
        raise UserError("evaluation: the source holds no records; check its split and rejects")

    def make(batch: int) -> Batch:
        first = batch * batch_size
        rows = np.arange(first, first + batch_size, dtype=np.int64)
        mask = rows < total
        rows = np.minimum(rows, total - 1)
        arrays = transform([source[int(row)] for row in rows])
        return arrays | {"row": rows, "mask": mask}

    batches = grain.MapDataset.range(math.ceil(total / batch_size)).map(make)
    return Batches(
        batches.to_iter_dataset(_ahead(prefetch, threads)),
        identity={"batch_size": batch_size, "records": total},
    )


class Batches(Iterator[Batch]):
    """An iterator whose place can be kept in a checkpoint and found again exactly."""

    def __init__(self, dataset: Any, identity: Mapping[str, Any]):
        """Starts at the first batch; ``identity`` is what the order of batches depends on."""
        self._iterator = iter(dataset)
        self._identity = dict(identity)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The place after the last batch handed out; fit for JSON, the same on all processes."""
        return {"place": self._iterator.get_state(), "identity": self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the place that ``get_state`` told; batches made ahead are dropped.

        Raises:
          UserError: the state is of other sources, weights, seed or batch size, with which the
            next batch would be another one.
        """
        for name, value in self._identity.items():
            if (saved := state["identity"].get(name)) != value:
                raise UserError(
                    f"data state: saved with {name} {saved}, now {value}; restore the old setting "
                    "or start a new run"
                )
        self._iterator.set_state(state["place"])

    def close(self) -> None:
        """Ends the threads that make batches ahead."""
        self._iterator.close()


class Interleaved(Iterator[Batch]):
    """Several streams' batches, each as often as its share says, in an order that is always the
    same: the turn is that of the stream which is furthest behind."""

    def __init__(self, streams: Sequence[Batches], shares: Sequence[float]):
        """Starts each stream at its first batch."""
        self._streams, self._shares = streams, [float(share) for share in shares]
        self._counts = [0] * len(streams)

    def __iter__(self) -> "Interleaved":
        return self

    def __next__(self) -> Batch:
        behind = [(n + 0.5) / share for n, share in zip(self._counts, self._shares, strict=True)]
        turn = behind.index(min(behind))
        batch = next(self._streams[turn])
        self._counts[turn] += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The place of every stream."""
        states = [stream.get_state() for stream in self._streams]
        return {"streams": states, "counts": list(self._counts), "shares": self._shares}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the place that ``get_state`` told.

        Raises:
          UserError: it is of other streams; see `Batches.set_state`.
        """
        if state.get("shares") != self._shares:
            raise UserError(
                f"data state: saved with shares {state.get('shares')}, now {self._shares}; restore "
                "the old setting or start a new run"
            )
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.set_state(saved)
        self._counts = [*state["counts"]]

    def close(self) -> None:
        """Ends the threads of all streams."""
        for stream in self._streams:
            stream.close()


class _Shuffled:
    """A source without end, in a new order each time through.

    Grain can shuffle too, but draws 16-bit numbers until one is small enough: measured, 4.7 ms a
    row for a source of 4 records, 0.2 ms for one of 100. This takes microseconds for any.
    """

    def __init__(self, source: "RecordSource | _Places", name: str, seed: int):
        self._source = source
        # By name, so that the order does not depend on which other sources are mixed in.
        self._key = [zlib.crc32(name.encode()), seed]
        # Two, because a batch may begin in one time through and end in the next.
        self._order = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Record | tuple[str, int]:
        epoch, place = divmod(index, len(self._source))
        return self._source[int(self._order(epoch)[place])]

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self._key, epoch]).permutation(len(self._source))


class _Places:
    """Where a source's records are, in place of them."""

    def __init__(self, name: str, n: int):
        self._name, self._n = name, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: SupportsIndex) -> tuple[str, int]:
        return self._name, operator.index(index)


class _Pools:
    """Lists of records that a key has put with their like, without end.

    Which rows a pool has follows from the mixture's order alone, and which of them are a batch from
    their keys: any batch can be gone to, and every process has the same.
    """

    def __init__(
        self,
        places: Any,
        sources: Mapping[str, RecordSource],
        key: Key,
        batch_size: int,
        seed: int,
    ):
        self._places, self._sources, self._key = places, sources, key
        self._batch_size, self._seed = batch_size, seed
        self._keys: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()
        self._pool = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: SupportsIndex) -> list[Record]:
        pool, batch = divmod(operator.index(index), POOL)
        with self._lock:
            rows = self._pool(pool)[batch]
        return [self._sources[name][row] for name, row in rows]

    def _draw(self, pool: int) -> list[list[tuple[str, int]]]:
        n = self._batch_size
        rows = [self._places[i] for i in range(pool * POOL * n, (pool + 1) * POOL * n)]
        new = [*dict.fromkeys(row for row in rows if row not in self._keys)]
        for start in range(0, len(new), n):
            some = new[start : start + n]
            keys = self._key([self._sources[name][row] for name, row in some])
            self._keys.update(zip(some, keys, strict=True))
        # Of equal keys the order stays, in which the sources take turns.
        rows.sort(key=self._keys.__getitem__, reverse=True)
        order = np.random.default_rng([self._seed, pool]).permutation(POOL).tolist()
        return [rows[i * n : (i + 1) * n] for i in order]


def _used_weights(
    sources: Mapping[str, RecordSource], weights: Mapping[str, float | int]
) -> dict[str, float]:
    if set(sources) != set(weights):
        odd = ", ".join(sorted(set(sources) ^ set(weights)))
        raise UserError(f"mixture: every source needs a weight and the reverse; mend {odd}")
    used = {name: float(weight) for name, weight in weights.items() if weight}
    if not used or min(used.values()) < 0 or not math.isfinite(sum(used.values())):
        raise UserError(f"mixture: weights must be 0 or more, and not all 0; got {dict(weights)}")
    for name in used:
        if not len(sources[name]):
            raise UserError(
                f"mixture: source {name!r} has no records; add some or set its weight to 0"
            )
    return used


def _on_list(transform: Transform) -> Callable[[Any], Batch]:
    return lambda records: transform(list(records))


def _ahead(prefetch: int, threads: int) -> Any:
    import grain

    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
