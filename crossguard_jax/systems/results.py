"""The files of one scoring run, so that it can be killed at any moment and go on.

Beside ``OUT.jsonl`` lie ``rejected.jsonl`` and ``OUT.jsonl.run.json``, which says what the verdicts
were made from. Rows are written in the order of the input, each to one of the two files, with a
digest of the record that they are about. A run that goes on reads its input again from the start
and passes over what is there. From the first record on that has changed, or that could not be read
before, the files are written anew, with what the store of verdicts knows already (`systems.store`).
"""

import fcntl
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected, rejection
from crossguard_jax.io import jsonl
from crossguard_jax.io.lines import RowError

Item = Record | Rejected
REJECTED = "rejected.jsonl"


def row_of(item: Item) -> int:
    """The row of its file that an item was read from."""
    return item.row if isinstance(item, Rejected) else int(item.provenance["row"])


def digest_of(record: Record) -> str:
    """Tells a record from what it was before something of it was changed."""
    text, label = (each.encode(errors="surrogatepass") for each in (record.text, record.label))
    h = hashlib.blake2b(digest_size=12)
    for part in (*record.images, text, label):
        h.update(b"%d " % len(part))
        h.update(part)
    return h.hexdigest()


def row_out(item: Item, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The row to write for an item: a verdict's fields, or a ``reason``, with what names the item.

    A row that was rejected as it was read has no digest: it is read anew each time.
    """
    if isinstance(item, Rejected):
        return asdict(item)
    if "reason" in outcome:
        row = asdict(rejection(item, outcome["reason"])) | {"id": item.id}
    else:
        row = {"id": item.id, **outcome, "row": row_of(item)}
        row |= {"true_label": item.label} if item.label else {}
    return row | {"digest": digest_of(item)}


class Results:
    """Verdicts and rejected rows of one run, on disk.

    Args:
        output: the file of verdicts.
        identity: what the verdicts are made from, as JSON values; all of it must be the same for
            a run to go on.
        restart: begin anew where an earlier run's files are.

    Raises:
        UserError: another process writes there, a file there is no run's output, or it is the
            output of a run with another identity and ``restart`` is not set.
    """

    def __init__(self, output: str | Path, identity: Mapping[str, Any], restart: bool = False):
        self.output = Path(output)
        self.sidecar = self.output.with_name(self.output.name + ".run.json")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.output.open("ab")
        try:
            self._start(identity, restart)
        except BaseException:
            self._lock.close()
            raise
        self._verdicts = jsonl.JsonlWriter(self.output)
        self._rejections = jsonl.JsonlWriter(self.rejected)

    def _start(self, identity: Mapping[str, Any], restart: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{self.output}: another process is writing it; wait for it, or give another output"
            ) from error
        earlier = self._earlier()
        if earlier is None:
            self.rejected = self._claim_rejected()
        else:
            self.rejected = self.output.with_name(earlier["rejected"])
            if restart:
                self.output.write_bytes(b"")
                self.rejected.write_bytes(b"")
            else:
                _refuse_other(self.output, earlier["identity"], identity)
        content = {"rejected": self.rejected.name, "identity": identity}
        jsonl.write_atomic(self.sidecar, json.dumps(content, indent=2) + "\n")

    def _earlier(self) -> dict[str, Any] | None:
        """What the sidecar says, None on a first start."""
        if self.sidecar.exists():
            content = jsonl.read_json(self.sidecar)
            if isinstance(content, dict) and {"rejected", "identity"} <= content.keys():
                return content
        elif self.output.stat().st_size == 0:
            return None
        raise UserError(
            f"{self.output}: not an output that can go on (its {self.sidecar.name} is missing or "
            "damaged); remove it, or give another output"
        )

    def _claim_rejected(self) -> Path:
        """``rejected.jsonl``, or ``OUT.rejected.jsonl`` where that belongs to another output."""
        own = self.output.with_name(f"{self.output.stem}.{REJECTED}")
        for path in (self.output.with_name(REJECTED), own):
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            return path
        if own.stat().st_size:
            raise UserError(
                f"{own}: belongs to an output that is gone; remove it, or give another output"
            )
        return own

    def remaining(
        self, items: Iterator[Item], done: Callable[[Mapping[str, Any]], None]
    ) -> Iterator[Item]:
        """The items that are not in the files yet; ``done`` is given the row of each that is.

        After a power failure one file may reach further than the other, and an item may have
        changed. What lies behind the first one that is not there is cut off.
        """
        rows = {p: _Rows(p) for p in (self.output, self.rejected)}
        for item in items:
            key = _key_of(item)
            match = next((each for each in rows.values() if each.key == key), None)
            if match is None:
                items = itertools.chain([item], items)
                break
            done(match.row)
            match.advance()
        for path, of_file in rows.items():
            _keep_lines(path, of_file.count)
        return items

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one row: to the rejected ones if it has a ``reason``."""
        (self._rejections if "reason" in row else self._verdicts).append(row)

    def close(self) -> None:
        """Syncs and closes; closing twice is harmless."""
        self._verdicts.close()
        self._rejections.close()
        self._lock.close()

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Rows:
    """A file's rows one after the other; the row is empty at the end and where one is damaged."""

    def __init__(self, path: Path):
        self._rows = jsonl.read_jsonl(path)
        self.count = -1
        self.advance()

    def advance(self) -> None:
        _, value = next(self._rows, (0, {}))
        self.row: dict[str, Any] = {} if isinstance(value, RowError) else value
        self.count += 1

    @property
    def key(self) -> "_Key":
        return _key(self.row)


_Key = tuple[Any, ...]
"""What an item and its row have in common: row, and id and digest; or row and reason, where the
item itself could not be read."""


def _key(row: Mapping[str, Any]) -> _Key:
    if "digest" in row:
        return row.get("row"), row.get("id"), row["digest"]
    return row.get("row"), row.get("reason")


def _key_of(item: Item) -> _Key:
    if isinstance(item, Rejected):
        return item.row, item.reason
    return row_of(item), item.id, digest_of(item)


def _keep_lines(path: Path, count: int) -> None:
    with path.open("r+b") as file:
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())


def _refuse_other(output: Path, before: Any, now: Any) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        what = "; ".join(f"{n}: {_as_text(before.get(n))}, now {_as_text(now[n])}" for n in changed)
        raise UserError(
            f"{output}: holds verdicts of another run ({what}); give another output, or --restart"
        )


def _as_text(value: Any) -> str:
    return short(value if isinstance(value, str) else json.dumps(value), 60)
