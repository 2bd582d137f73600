"""Rows to learn from, where a record has several things that are to be said of its picture."""

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import SupportsIndex

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record
from crossguard_jax.guard.outlines import Outline
from crossguard_jax.runtime import processes

Expand = Callable[[Record], list[Record]]
"""A record to the rows that are made of it; none where there is nothing to learn from it."""


class Spoken:
    """What `Expand` makes of a source's records, in their order.

    Attributes:
        origin: the source.
        outlines: one a row.
    """

    def __init__(self, origin: RecordSource, expand: Expand):
        self.origin, self._expand = origin, expand
        self._places: list[tuple[int, int]] = []
        self.outlines: list[Outline] = []
        for row in range(len(origin)):
            made = expand(origin[row])
            self._places += [(row, part) for part in range(len(made))]
            self.outlines += map(Outline.of, made)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """The row at ``index``."""
        row, part = self._places[operator.index(index)]
        return self._expand(self.origin[row])[part]

    @property
    def left_out(self) -> int:
        """Records that nothing is made of."""
        return len(self.origin) - len({row for row, _ in self._places})


def expanded(sources: Mapping[str, RecordSource], expand: Expand) -> dict[str, RecordSource]:
    """`Spoken` of each source. How many records nothing is learned from is said.

    Raises:
        UserError: a source that has no other.
    """
    made = {name: Spoken(source, expand) for name, source in sources.items()}
    for name, rows in made.items():
        what = f"{rows.left_out:,} rows have no picture, or nothing is said of it"
        if not len(rows):
            raise UserError(f"{name}: all {what}")
        if rows.left_out and processes.is_first():
            print(f"{name}: {what}; they are left out")
    return dict(made)


def captions(record: Record, form: str) -> list[Record]:
    """A row for each of a record's captions, those of its provenance or its own text: ``form`` is
    asked, and the caption is to be said (its label)."""
    if record.image is None:
        return []
    lines = record.provenance.get("captions", record.text).split("\n")
    return [
        replace(record, id=f"{record.id}#{k}", images=record.images[:1], text=form, label=caption)
        for k, caption in enumerate(lines)
        if caption.strip()
    ]


def answer(record: Record, form: str) -> list[Record]:
    """A row of a question, put into ``form``, and what most people answered."""
    given = record.provenance.get("answers") or record.provenance.get("answer", "")
    if record.image is None or not given.strip() or not record.text.strip():
        return []
    ((most, _),) = Counter(given.split("\n")).most_common(1)
    text = form.replace("{text}", record.text)
    return [replace(record, images=record.images[:1], text=text, label=most)]


def pairs(record: Record, form: str) -> list[Record]:
    """A row for each of a record's captions, as text and label: it and the picture are a pair."""
    return [replace(row, text=row.label) for row in captions(record, form)]
