"""Verdicts on disk, by what they are about and what made them: nothing is computed twice.

A store is a folder. Each system has a file in it, ``HASH.jsonl``, one line a verdict by the content
of the request (text and pictures, not its name), and ``HASH.json`` says which system that is. A
verdict's threshold is not kept: it is laid on what is read. Several processes may write one store;
those of one run divide what has to be made, and its first one reads and writes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from crossguard_jax.cmai.review import content_key
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io.jsonl import RowError, exclusive_writer, read_jsonl, write_atomic
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import spans_processes
from crossguard_jax.systems.load import System, identity

_REQUEST = ("images", "text")
_FIELDS = ("p_unsafe", "rejected", "s_c", "branch", "windows")
_LATER = ("complied",)
"""Fields that rows of earlier versions lack; theirs are the defaults."""
WINDOW = 1_024
"""Requests that are encoded at once; the memory that pictures take is bounded by it."""
WINDOW_SECONDS = 20.0
"""About how long verdicts are made before they are on the disk: what a kill costs."""


def request_key(record: Record) -> str:
    """What a verdict is kept by: the content of the request, not its name."""
    return content_key(record.text, (hashlib.sha256(image).hexdigest() for image in record.images))


class VerdictStore:
    """The verdicts of one system in a store's folder.

    Args:
        folder: the store's; made if need be. None keeps nothing.
        system: whose verdicts.
        together: records that are scored at once are all taken from the store, or all made: the
            last bits of a verdict may depend on who shares its batch, so that of a call then
            depends on the call alone, and not on what others have stored meanwhile.

        key: gives a record's key, for whoever has made it before; what `request_key` gives.
        facts: the system's `identity`, for whoever has it already.

    Attributes:
        path: the file; None where nothing is kept.
        system: whose they are.
        computed: verdicts that had to be made.
    """

    def __init__(
        self,
        folder: str | Path | None,
        system: System,
        together: bool = False,
        key: Callable[[Record], str] = request_key,
        facts: Mapping[str, Any] | None = None,
    ):
        self.system, self.computed, self._together, self._key = system, 0, together, key
        self._rows: dict[str, dict[str, Any]] = {}
        self.path: Path | None = None
        if folder is None:
            return
        facts = identity(system) if facts is None else facts
        self.path = Path(folder) / f"{store_name(facts)}.jsonl"
        if not processes.is_first():
            return
        write_atomic(self.path.with_suffix(".json"), _as_text(facts) + "\n")
        if self.path.exists():
            for _, row in read_jsonl(self.path):
                if not isinstance(row, RowError) and {"key", *_FIELDS} <= row.keys():
                    self._rows[row["key"]] = row

    def verdicts(
        self,
        records: Iterable[Record],
        *,
        batch_size: int = 16,
        threshold: float | None = None,
        window: int = WINDOW,
    ) -> Iterator[tuple[Record, Verdict | UserError]]:
        """Each record with its verdict, or why it has none, in order, as they come.

        A verdict that is not there yet is made, and is on the disk before it is given out.

        Args:
            records: read one window at a time.
            batch_size: windows of texts to a forward pass, about.
            threshold: the least p_unsafe that is unsafe; None is the system's own.
            window: records at once, at most; fewer where they take longer than `WINDOW_SECONDS`,
                so that a kill costs no more than that.
        """
        records = iter(records)
        rows = min(4 * batch_size, window)
        while some := list(islice(records, rows)):
            began = time.monotonic()
            verdicts = self.score(some, batch_size, threshold)
            seconds = time.monotonic() - began
            slow = processes.by_first(lambda seconds=seconds: seconds > WINDOW_SECONDS)
            rows = max(rows // 2, 1) if slow else min(2 * rows, window)
            yield from zip(some, verdicts, strict=True)

    def score(
        self, records: Sequence[Record], batch_size: int = 16, threshold: float | None = None
    ) -> list[Verdict | UserError]:
        """`verdicts` of records that fit into memory."""
        keys = [self._key(record) for record in records]
        # What the first process has, so that all make the same.
        there = {key: self._rows[key] for key in keys if key in self._rows}
        self._rows |= processes.by_first(lambda: there)
        missing = [i for i, key in enumerate(keys) if key not in self._rows]
        if self._together and missing:
            missing = [*range(len(keys))]
        first = {keys[i]: i for i in reversed(missing)}  # two that are alike are made once
        places = sorted(first.values())

        def make(some: Sequence[int]) -> list[Verdict | UserError]:
            images, texts = ([getattr(records[i], name) for i in some] for name in _REQUEST)
            return self.system.score_each(images, texts, batch_size=batch_size, threshold=threshold)

        together = processes.count() > 1 and spans_processes(self.system.mesh)
        made: Sequence[Verdict | UserError] = []
        if places:  # else the system need not even be there
            made = make(places) if together else processes.divided(places, make)
        failed: dict[str, UserError] = {}
        rows = []
        for i, each in zip(places, made, strict=True):
            if isinstance(each, UserError):
                failed[keys[i]] = each
            else:
                fields = {name: getattr(each, name) for name in (*_FIELDS, *_LATER)}
                rows.append({"key": keys[i], **fields})
        self._keep(rows)
        self.computed += len(rows)
        cut = self.system.settings.threshold if threshold is None else threshold
        return [failed.get(key) or self._verdict(key, cut) for key in keys]

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows |= {row["key"]: row for row in rows}
        if self.path is None or not rows or not processes.is_first():
            return
        with exclusive_writer(self.path) as writer:
            for row in rows:
                writer.append(row)

    def _verdict(self, key: str, cut: float) -> Verdict:
        row, words = self._rows[key], self.system.settings.prompt
        unsafe = row["p_unsafe"] >= cut
        return Verdict(
            unsafe=unsafe,
            threshold=cut,
            label=words.positive if unsafe else words.negative,
            **{name: row[name] for name in (*_FIELDS, *_LATER) if name in row},
        )


def store_name(facts: Mapping[str, Any]) -> str:
    """What a system's files in a store are called: a hash of its `identity`."""
    return hashlib.sha256(_as_text(facts).encode()).hexdigest()[:24]


def _as_text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, sort_keys=True)


def store_folder(given: str | None) -> str | None:
    """The folder that ``--store`` says, the usual one where it says nothing, None for ""."""
    folder = os.environ.get("CROSSGUARD_STORE", "runs/verdicts") if given is None else given
    return folder or None
