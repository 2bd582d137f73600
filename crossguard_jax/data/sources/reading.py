"""A reading of a source: its rows, and what is to be said of them once they are read."""

from collections import Counter
from collections.abc import Iterator

from crossguard_jax.data.records import Record, Rejected, kind
from crossguard_jax.data.sources.catalogue import CATALOGUE
from crossguard_jax.io.lines import CUT

MISSING = "missing_pictures"
"""In a record's provenance, how many of its pictures are not there."""
_NO_PICTURE = ("the picture does not exist", "the picture file is empty")


class SourceRows(Iterator[Record | Rejected]):
    """Passes the rows of a reader on and counts them against what is published.

    Attributes:
      name: the reader.
      split: which split it reads; "" where the set has one alone.
      licence: of the data; "" where the set is none of the catalogue.
      published: the set as published; None where it is none of the catalogue.
      records: how many good rows there were so far, by subset ("" where the set has none).
      missing: how many rows have a picture that is not there: (out of the records, among them).
    """

    def __init__(self, name: str, split: str, rows: Iterator[Record | Rejected]):
        """Takes the rows as the reader gives them; a reader that returns a number at its end says
        by it how many rows the files have."""
        self.name, self.split = name, split
        self.published = CATALOGUE.get(name)
        self.licence = self.published.licence if self.published else ""
        self.records: Counter[str] = Counter()
        self.missing = [0, 0]
        self._iterator = iter(rows)
        self._rows = self._rejected = 0
        self._last: tuple[str, int] | None = None
        self._whole = False

    def __next__(self) -> Record | Rejected:
        try:
            row = next(self._iterator)
        except StopIteration as end:
            self._whole = True
            self._rows = self._rows if end.value is None else end.value
            raise
        self._count(row)
        return row

    def _count(self, row: Record | Rejected) -> None:
        if isinstance(row, Rejected):
            self._rejected += 1
            self.missing[0] += kind(row.reason) in _NO_PICTURE
            if row.reason.startswith(CUT):
                return
            place = (row.file, row.row)
        else:
            self.records[subset_of(row)] += 1
            self.missing[1] += MISSING in row.provenance
            place = (row.provenance["file"], int(row.provenance["row"]))
        # The records of a row come one after the other.
        self._rows += place != self._last
        self._last = place

    def lines(self) -> Iterator[str]:
        """What to tell people; nothing of a set that is none of the catalogue."""
        if self.published is None:
            return
        title, records = self.published.title, self.records.total()
        use = "; for evaluation only" if self.published.trainable == () else ""
        split = f", split {self.split}" if len(self.published.rows) > 1 else ""
        yield f"{title}{split}: {records:,} records read; licence: {self.licence}{use}"
        if mismatch := "; ".join(self._mismatches()):
            why = (
                "the others are among the rows that cannot be used"
                if self._whole_but_for_rejected()
                else "part of it is not there, or it is another revision"
            )
            yield f"{title}: {mismatch}: {why}"
        for missing, what in zip(self.missing, ("out of", "in"), strict=True):
            if missing:
                rows = "row has no picture and stays"
                rows = rows if missing == 1 else "rows have no picture and stay"
                how = " (scored by what is there)" if what == "in" else ""
                yield f"{title}: {missing:,} {rows} {what} the denominator{how}"

    def _whole_but_for_rejected(self) -> bool:
        """Whether all rows are there, and as many as records are missing were rejected."""
        assert self.published is not None
        subsets = self.published.subsets.get(self.split, {})
        missing = sum(n - self.records[subset] for subset, n in subsets.items())
        rows = self.published.rows.get(self.split, self._rows)
        return rows == self._rows and 0 < missing <= self._rejected

    def _mismatches(self) -> Iterator[str]:
        if self.published is None or not self._whole:
            return
        rows = self.published.rows.get(self.split)
        if rows is not None and rows != self._rows:
            yield f"{self._rows:,} rows where {rows:,} are published"
        for subset, records in self.published.subsets.get(self.split, {}).items():
            if records != self.records[subset]:
                yield f"{self.records[subset]:,} of the {records:,} records of {subset!r}"


def subset_of(record: Record) -> str:
    """The part of its set that a record is of, with a denominator of its own; "" where the set is
    one whole."""
    return record.provenance.get("subset", "")


def row_name(record_id: str) -> str:
    """The name of a row in its set whatever the split: VLGuard's test set shares pictures with what
    guards are trained on, under the same number and perhaps another instruction."""
    parts = record_id.split("-")
    if parts[0] == "vlguard" and len(parts) > 3:
        return "-".join([parts[0], *parts[2:-1]])
    return record_id
