"""Rows of plain, ``.gz`` and ``.xz`` files; a download cut short keeps the rows that arrived."""

import codecs
import csv
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.jsonl import MAX_LINE_BYTES, Row, RowError, parse_line

ENDINGS = ("", ".gz", ".xz")

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error)


def lines(
    path: str | Path, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | RowError]]:
    """Yields ``(line number from 1, line with its newline, or RowError)``.

    A line that is too long is an error of its own. Where the packed data ends early or is damaged,
    the lines before come first and one error stands for all that is lost.

    Raises:
      UserError: the file cannot be opened, or not even its first line can be unpacked.
    """
    path, row = Path(path), 0
    opener = _OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            for row, line in enumerate(_lines(file, max_line_bytes), start=1):
                yield row, line
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if row == 0:
            raise UserError(
                f"{path}: cannot be read ({reason}); correct the path or download it again"
            ) from error
        yield (
            row + 1,
            RowError(
                f"the file is cut short or damaged here ({reason}); download it again: the "
                f"{row:,} lines before were read"
            ),
        )


def json_rows(path: str | Path) -> Iterator[Row]:
    """Yields ``(line number, dict or RowError)`` for each line that is not blank.

    Raises:
      UserError: as `lines` does.
    """
    for row, line in lines(path):
        if isinstance(line, RowError):
            yield row, line
        elif line.strip():
            yield row, parse_line(line.removeprefix(codecs.BOM_UTF8) if row == 1 else line)


def table_rows(path: str | Path, delimiter: str = ",") -> Iterator[Row]:
    """Yields ``(line number, dict or RowError)`` for each row under the header; values are text.

    Bytes that are not UTF-8 read as U+FFFD. A field may hold ``csv.field_size_limit()`` characters.

    Raises:
      UserError: as `lines` does, or the header names no column, or one twice.
    """
    lost: list[tuple[int, RowError]] = []

    def texts() -> Iterator[str]:
        for row, line in lines(path):
            if isinstance(line, RowError):
                lost.append((row, line))
            else:
                yield line.decode("utf-8-sig" if row == 1 else "utf-8", errors="replace")

    reader = csv.reader(texts(), delimiter=delimiter)
    header = next(reader, [])
    if not any(header) or len(set(header)) < len(header):
        raise UserError(f"{path}: line 1 must name every column once; it reads {header}")
    while True:
        row = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield row, RowError(f"not a table ({error})")
            continue
        if len(fields) == len(header):
            yield row, dict(zip(header, fields, strict=True))
        elif fields:
            yield row, RowError(f"{len(fields)} fields where the header has {len(header)}")
    yield from lost


def _lines(file: Any, max_line_bytes: int) -> Iterator[bytes | RowError]:
    while line := file.readline(max_line_bytes + 1):
        if len(line) <= max_line_bytes:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(max_line_bytes)
        yield RowError(f"the line is over {max_line_bytes:,} bytes")
