"""The queue for human review: what was flagged, in full, on disk before anybody goes on.

``review.jsonl`` has one JSON line a request, and the folder ``review.pictures`` beside it holds the
pictures by the hash of their bytes. A row's key is of its content alone, so a request that is
flagged again, by another model or under another id, is the row that is there. What people decide
on the rows is `cmai.rulings`' matter.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected, listed
from crossguard_jax.io.images import read_picture
from crossguard_jax.io.jsonl import RowError, exclusive_writer, parse_line, read_jsonl, write_atomic


@dataclass(frozen=True)
class Flagged:
    """A request that a person is to look at, and what the system made of it.

    Attributes:
        record: the request; its label is nobody's to see.
        reason: why, in a line.
        p_unsafe: the model's probability of harm; None where it gave none.
        s_c: how well text and picture agree; None where nothing checked.
        branch: of the policy.
        model: which one was asked, by name or path.
    """

    record: Record
    reason: str
    p_unsafe: float | None = None
    s_c: float | None = None
    branch: str = "flag"
    model: str = ""

    @property
    def key(self) -> str:
        """What the request is known by; see `content_key`."""
        return content_key(self.record.text, map(_digest, self.record.images))


def content_key(text: str, pictures: Iterable[str]) -> str:
    """SHA-256 of a request's content: the text and its pictures' hashes, in order, nothing else."""
    content = json.dumps([text, *pictures])  # ASCII, whatever the text holds
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Queued:
    """A row of a queue as it is read back; its pictures are read when they are asked for.

    Attributes:
        line: of the queue's file, from 1.
        key: see `content_key`.
        pictures: files, in order.
        time: when it was first flagged, ISO 8601 in UTC.
        others: as in `Flagged` and `Record`.
    """

    line: int
    key: str
    id: str
    text: str
    pictures: tuple[Path, ...]
    reason: str
    time: str
    p_unsafe: float | None
    s_c: float | None
    branch: str
    model: str
    category: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def images(self) -> tuple[bytes, ...]:
        """The encoded pictures.

        Raises:
            UserError: one is gone, or is another one than was flagged.
        """
        data = tuple(read_picture(path) for path in self.pictures)
        for path, picture in zip(self.pictures, data, strict=True):
            if _digest(picture) != path.name:
                raise UserError(f"{path}: not the picture that was flagged; copy the folder again")
        return data


class ReviewQueue:
    """Adds requests to a queue's file so that neither a kill nor a power cut loses one it has
    taken, and other processes may add to the same file.

    Example:
        >>> queue = ReviewQueue("runs/review.jsonl")
        >>> queue.add([Flagged(record, "S_c 0.12 is below 0.3", p_unsafe=0.4, s_c=0.12)])
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._keys: set[str] = set()
        self._read_to = (0, 0)  # the file, and how many bytes of it `_keys` are of

    def add(self, rows: Iterable[Flagged]) -> int:
        """Adds requests, and returns when they are on the disk.

        Returns:
            How many are new; the others had been flagged before.
        """
        new = 0
        with exclusive_writer(self.path) as writer:
            self._catch_up()
            for row in rows:
                if (key := row.key) not in self._keys:
                    writer.append(_line(row, key, self._keep(row.record.images)))
                    self._keys.add(key)
                    new += 1
        return new

    def _catch_up(self) -> None:
        """Learns the keys of what was added since, by whomever."""
        with self.path.open("rb") as file:
            inode = self.path.stat().st_ino
            size = self.path.stat().st_size
            if inode != self._read_to[0] or size < self._read_to[1]:
                self._keys, self._read_to = set(), (inode, 0)  # a new file under the old name
            file.seek(self._read_to[1])
            for line in file:
                value = parse_line(line)
                if not isinstance(value, RowError) and isinstance(value.get("key"), str):
                    self._keys.add(value["key"])
            self._read_to = (inode, size)

    def _keep(self, pictures: Iterable[bytes]) -> list[str]:
        """Writes pictures before the row that names them; their paths beside the queue."""
        folder = pictures_of(self.path)
        names = []
        for data in pictures:
            path = folder / _digest(data)
            if not path.exists():
                write_atomic(path, data)
            names.append(f"{folder.name}/{path.name}")
        return names


def pictures_of(queue: Path) -> Path:
    """The folder of a queue's pictures."""
    return queue.with_name(f"{queue.stem}.pictures")


def read_queue(path: str | Path) -> Iterator[Queued | Rejected]:
    """The requests of a queue in the order in which they came, each once; damaged rows by reason.

    Raises:
        UserError: the file cannot be opened.
    """
    path = Path(path)
    seen: set[str] = set()
    for number, value in read_jsonl(path):
        if isinstance(value, RowError):
            yield Rejected(str(path), number, value.reason)
            continue
        try:
            row = _queued(path, number, value)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no row of a queue ({error!r}); flag the request again"
            yield Rejected(str(path), number, reason)
            continue
        if row.key not in seen:
            seen.add(row.key)
            yield row


def _queued(path: Path, number: int, value: Mapping[str, Any]) -> Queued:
    names = [Path(name) for name in listed(value["image"])]
    texts = {n: value[n] for n in ("id", "text", "reason", "time", "branch", "model", "category")}
    scores = {name: value[name] for name in ("p_unsafe", "s_c")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("a text is none")
    if not all(score is None or isinstance(score, int | float) for score in scores.values()):
        raise TypeError("a score is no number")
    if value["key"] != content_key(texts["text"], (name.name for name in names)):
        raise ValueError("its content is not what its key was made of")
    return Queued(
        line=number,
        key=value["key"],
        pictures=tuple(path.parent / name for name in names),
        provenance=dict(value["provenance"]),
        **texts,
        **scores,
    )


def _line(row: Flagged, key: str, pictures: list[str]) -> dict[str, Any]:
    record = row.record
    return {
        "key": key,
        "id": record.id,
        "image": pictures if len(pictures) > 1 else next(iter(pictures), None),
        "text": record.text,
        "p_unsafe": _number(row.p_unsafe),
        "s_c": _number(row.s_c),
        "branch": row.branch,
        "reason": row.reason,
        "model": row.model,
        "time": now(),
        "category": record.category,
        "provenance": dict(record.provenance),
    }


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _number(value: float | None) -> float | None:
    """A score as JSON has it: what is no number is none."""
    return None if value is None or not math.isfinite(value) else float(value)


def _digest(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()
