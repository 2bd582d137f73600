"""Rows of a source without their pictures, so that what a text or a label decides reads no picture.

At the sizes of a real mixture pictures are gigabytes, and may lie on another machine.
"""

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import SupportsIndex

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.io.jsonl import read_jsonl


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

    def line(self) -> str:
        """As a line of the file that `read_outlines` reads."""
        return json.dumps(asdict(self)) + "\n"


def read_outlines(path: Path, n: int) -> list[Outline]:
    """The outlines of a source's ``n`` rows, in their order.

    Raises:
        UserError: the file is damaged.
    """
    try:
        read = [Outline(**row) for _, row in read_jsonl(path) if isinstance(row, dict)]
    except (TypeError, UserError):
        read = []
    if len(read) != n:
        raise UserError(f"{path}: does not list {n:,} rows; remove it, and all is written anew")
    return read


class Outlined:
    """A source whose rows' outlines are known."""

    def __init__(self, source: RecordSource, outlines: Sequence[Outline]):
        """``outlines``: one a row of ``source``."""
        self._source, self.outlines = source, outlines

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """The record at ``index``."""
        return self._source[index]


class Selected:
    """Some records of a source, in its order."""

    def __init__(self, source: RecordSource, rows: Sequence[int]):
        """``rows``: positions in ``source``."""
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """The record at ``index`` of those selected."""
        return self._source[self._rows[operator.index(index)]]

    @property
    def outlines(self) -> Sequence[Outline]:
        """Those of the source."""
        every = outlines(self._source)
        return [every[i] for i in self._rows]


def outlines(source: RecordSource) -> Sequence[Outline]:
    """A source's rows without their pictures; they are read only where nobody wrote them down."""
    if isinstance(source, Outlined | Selected):
        return source.outlines
    return [Outline.of(record) for record in _records(source)]


def _records(source: RecordSource) -> Iterator[Record]:
    return (source[i] for i in range(len(source)))
