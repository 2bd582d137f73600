"""Rows of a source without their pictures, so that what a text or a label decides reads no picture.

At the sizes of a real mixture pictures are gigabytes, and may lie on another machine.
"""

import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.io.jsonl import dumps, read_jsonl


@dataclass(frozen=True)
class Outline:
    """What is known of a record without its pictures.

    Attributes:
        id, label, text: the record's.
        pictures: how many it has.
        content: its `content_hash`.
    """

    id: str
    label: str
    text: str
    pictures: int
    content: str

    @classmethod
    def of(cls, record: Record) -> "Outline":
        """A record's."""
        content = content_hash(record.text, record.images)
        return cls(record.id, record.label, record.text, len(record.images), content)

    def line(self) -> bytes:
        """As a line of the file that `read_outlines` reads."""
        return dumps(asdict(self))


def contents_of(outlines: Iterable[Outline]) -> str:
    """SHA-256 over all that is learned from rows, in their order."""
    contents = hashlib.sha256()
    for row in outlines:
        contents.update(json.dumps([row.id, row.content, row.label]).encode())
    return contents.hexdigest()


def read_outlines(path: Path, contents: str) -> list[Outline]:
    """The outlines of a source's rows, in their order.

    Args:
        path: their file.
        contents: their `contents_of`, by which another source's are told.

    Raises:
        UserError: the file is damaged.
    """
    try:
        # A row was read from a line that may be as long as any; this one is its text again.
        rows = read_jsonl(path, max_line_bytes=1 << 40)
        read = [Outline(**row) for _, row in rows if isinstance(row, dict)]
    except (TypeError, UserError):
        read = []
    if contents_of(read) != contents:
        raise UserError(f"{path}: does not list the rows there; remove it, and all is written anew")
    return read


@runtime_checkable
class Listed(Protocol):
    """A source whose rows' outlines are known."""

    @property
    def outlines(self) -> Sequence[Outline]:
        """One a row."""
        ...


class Selected:
    """Some records of a source, in its order.

    Attributes:
        outlines: one a record.
    """

    def __init__(self, source: RecordSource, rows: Sequence[int], outlines: Sequence[Outline]):
        """``rows``: positions in ``source``; ``outlines``: one for each of them."""
        self._source, self._rows, self.outlines = source, rows, outlines

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """The record at ``index`` of those selected."""
        return self._source[self._rows[operator.index(index)]]


def selected(source: RecordSource, rows: Sequence[int]) -> Selected:
    """The records at some positions of a source."""
    every = outlines(source)
    return Selected(source, rows, [every[i] for i in rows])


def outlines(source: RecordSource) -> Sequence[Outline]:
    """A source's rows without their pictures; they are read only where nobody wrote them down."""
    if isinstance(source, Listed):
        return source.outlines
    return [Outline.of(record) for record in _records(source)]


def _records(source: RecordSource) -> Iterator[Record]:
    return (source[i] for i in range(len(source)))
