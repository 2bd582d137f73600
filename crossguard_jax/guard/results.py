"""The files of one scoring run, so that it can be killed at any moment and go on.

Beside ``OUT.jsonl`` lie ``rejected.jsonl`` and ``OUT.jsonl.run.json``, which says what the verdicts
were made from. Rows are written in the order of the input, each to one of the two files; a run that
goes on reads its input again from the start and drops what is already there.
"""

import fcntl
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.io import jsonl

Item = Record | Rejected
REJECTED = "rejected.jsonl"


def row_of(item: Item) -> int:
    """The row of its file that an item was read from."""
    return item.row if isinstance(item, Rejected) else int(item.provenance["row"])


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

        After a power failure one file may reach further than the other. What lies behind the first
        gap is cut off, and scored again.
        """
        found = {p: _Rows(p) for p in (self.output, self.rejected)}
        for item in items:
            verdict, refusal = found[self.output].row, found[self.rejected].row
            if isinstance(item, Record) and (item.id, row_of(item)) == _key(verdict):
                match = found[self.output]
            elif row_of(item) == _key(refusal)[1]:
                match = found[self.rejected]
            else:
                items = itertools.chain([item], items)
                break
            done(match.row)
            match.advance()
        for path, rows in found.items():
            _keep_lines(path, rows.count)
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
        self.row: dict[str, Any] = {} if isinstance(value, jsonl.RowError) else value
        self.count += 1


def _key(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("id"), row.get("row")


def _keep_lines(path: Path, count: int) -> None:
    with path.open("r+b") as file:
        for _ in range(count):
            file.readline()
        file.truncate(file.tell())


def _refuse_other(output: Path, before: Any, now: Any) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        what = "; ".join(f"{n}: {_short(before.get(n))}, now {_short(now[n])}" for n in changed)
        raise UserError(
            f"{output}: holds verdicts of another run ({what}); give another output, or --restart"
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
