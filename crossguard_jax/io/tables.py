"""Rows of CSV and TSV files, in which one that is malformed costs nothing but itself."""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io.lines import Row, RowError, lines

# A quoted text of more lines than this was most likely never closed.
MAX_RECORD_LINES = 1_000

_Line = tuple[int, bytes | RowError]


def read_csv(path: str | Path, delimiter: str = ",") -> Iterator[Row]:
    r"""Yields ``(row, dict or RowError)`` for each row under the header; every value is a string.

    ``path`` may end in ``.gz`` or ``.xz``. Fields are quoted as RFC 4180 has it, so a quoted one
    may go on over several lines. A row is an error where a quote is not closed, where something
    else than a delimiter follows a closing quote, where it has more or fewer fields than the
    header, or where it holds NUL bytes or is not UTF-8. **Such an error costs the line on which the
    row began, and reading goes on with the next line**, whatever a quote left open has swallowed
    by then: a quote counts as never closed when the file ends, or `MAX_RECORD_LINES` lines or
    ``csv.field_size_limit()`` characters (131,072 unless changed) have come, before it is.

    Raises:
      UserError: the file cannot be opened, or its header is missing or names a column twice.
    """
    rows = _NumberedLines(lines(path))
    first = next(rows, None)
    header = _fields(rows, first, delimiter) if first else []
    if isinstance(header, RowError):
        raise UserError(f"{path}: the header cannot be read ({header.reason}); mend line 1")
    if not any(header) or len(set(header)) < len(header):
        raise UserError(f"{path}: line 1 must name every column once; it reads {short(header)}")
    for line in rows:
        fields = _fields(rows, line, delimiter, len(header))
        if isinstance(fields, RowError):
            yield line[0], fields
        elif fields:
            yield line[0], dict(zip(header, fields, strict=True))


class _NumberedLines:
    """Numbered lines, of which some may be put back."""

    def __init__(self, rows: Iterator[_Line]):
        self._rows, self._back = rows, deque[_Line]()

    def __iter__(self) -> "_NumberedLines":
        return self

    def __next__(self) -> _Line:
        return self._back.popleft() if self._back else next(self._rows)

    def put_back(self, rows: list[_Line]) -> None:
        self._back.extendleft(reversed(rows))


def _fields(
    rows: _NumberedLines, first: _Line, delimiter: str, n_fields: int | None = None
) -> list[str] | RowError:
    """The fields of the row that begins with a line; none of a blank one.

    Lines after it are taken from ``rows`` as long as a quote is open, and put back on an error.
    """
    start = first[1]
    if isinstance(start, RowError):
        return start
    more: list[_Line] = []

    def texts() -> Iterator[str]:
        # Bytes that are not UTF-8 come through as surrogates, so that they spoil one row only.
        yield start.decode("utf-8", errors="surrogateescape")
        for row in rows:
            more.append(row)
            if isinstance(row[1], RowError) or len(more) >= MAX_RECORD_LINES:
                return
            yield row[1].decode("utf-8", errors="surrogateescape")

    try:
        fields = next(csv.reader(texts(), delimiter=delimiter, strict=True), [])
        reason = _fault(fields, n_fields)
    except csv.Error as error:
        reason = f"not CSV ({error})"
        if more or "unexpected end" in str(error):
            reason = "a quote is not closed, or something else than a delimiter follows it"
    if reason:
        rows.put_back(more)
        return RowError(reason)
    return fields


def _fault(fields: list[str], n_fields: int | None) -> str:
    if n_fields is not None and fields and len(fields) != n_fields:
        return f"{len(fields)} fields where the header has {n_fields}"
    if any("\0" in field for field in fields):
        return "the row holds NUL bytes"
    if any("\udc80" <= character <= "\udcff" for field in fields for character in field):
        return "the row is not UTF-8"
    return ""
