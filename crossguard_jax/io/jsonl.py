"""Rows in and out of files: durable JSON lines, CSV with the same interface, whole-file writes.

A reader yields ``(row, value)`` for each row: ``row`` is the line of the file on which it starts,
counted from 1, and ``value`` is a dict, or a ``RowError`` that says why it is none. One bad row
never stops a file.
"""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError

MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row of a file could not be read."""

    reason: str


Row = tuple[int, dict[str, Any] | RowError]


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a ``.jsonl``, ``.ndjson``, ``.json`` (lines, or one array), ``.csv`` or ``.tsv``.

    Raises:
      UserError: the file cannot be opened, or its ending is none of these.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".json": lambda p: read_json_array(p) if _is_array(p) else read_jsonl(p),
        ".csv": read_csv,
        ".tsv": lambda p: read_csv(p, delimiter="\t"),
    }
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(readers)}")
    return reader(Path(path))


def read_jsonl(path: str | Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Yields ``(row, dict or RowError)`` for each line that is not blank."""
    with _open(path) as file:
        row = 0
        while line := file.readline(max_line_bytes + 1):
            row += 1
            if len(line) > max_line_bytes:
                while line and not line.endswith(b"\n"):
                    line = file.readline(max_line_bytes)
                yield row, RowError(f"the line is over {max_line_bytes:,} bytes")
                continue
            if row == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield row, parse_line(line)


def read_json_array(path: str | Path) -> Iterator[Row]:
    """Yields ``(position from 1, dict or RowError)`` for each element of a file's one array."""
    elements = read_json(path)
    if not isinstance(elements, list):
        raise UserError(f"{path}: expected a JSON array of rows; check the file")
    for row, element in enumerate(elements, start=1):
        yield row, element if isinstance(element, dict) else RowError(_not_object(element))


def read_json(path: str | Path, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """The one JSON value in a file; ``object_hook`` may shrink each object as it is parsed.

    Raises:
      UserError: the file cannot be opened, or is not JSON.
    """
    with _open(path) as file:
        try:
            return json.loads(file.read().decode("utf-8-sig"), object_hook=object_hook)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}); download or write it again") from error


def read_csv(path: str | Path, delimiter: str = ",") -> Iterator[Row]:
    """Yields ``(row, dict or RowError)`` for each row under the header; every value is a string.

    A field may hold up to ``csv.field_size_limit()`` characters (131,072 unless changed).

    Raises:
      UserError: the file cannot be opened, or its header is missing or names a column twice.
    """
    # Bytes that are not UTF-8 come through as surrogates, so that they spoil one row only.
    with io.TextIOWrapper(_open(path), "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(iter(lambda: text.readline(MAX_LINE_BYTES), ""), delimiter=delimiter)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{path}: the header cannot be read ({error}); mend line 1") from error
        if not any(header) or len(set(header)) < len(header):
            raise UserError(f"{path}: line 1 must name every column once; it reads {header}")
        while True:
            row = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield row, RowError(f"not CSV ({error})")
                continue
            if fields:
                yield row, _named(header, fields)


class JsonlWriter:
    """Appends rows to a JSON-lines file so that a kill loses nothing that was appended.

    Every row goes to the operating system at once (it survives the end of this process) and to the
    disk at most ``sync_seconds`` later, at the next row or at ``close``. Opening repairs the end of
    a file that a kill left behind: a last line without its newline is cut off when torn, and
    finished when whole.
    """

    def __init__(self, path: str | Path, sync_seconds: float = 2.0):
        """Opens ``path`` for appending, with its folder, and repairs its last line."""
        self.path = Path(path)
        self.sync_seconds = sync_seconds
        self.path.parent.mkdir(parents=True, exist_ok=True)
        repair(self.path)
        self._file = self.path.open("ab")
        self._synced = time.monotonic()

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row. Raises ValueError for what JSON cannot hold (NaN, infinity)."""
        self._file.write(dumps(row))
        self._file.flush()
        if time.monotonic() - self._synced >= self.sync_seconds:
            self.sync()

    def sync(self) -> None:
        """Waits until everything appended is on the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes; closing twice is harmless."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def dumps(row: Mapping[str, Any]) -> bytes:
    """One row as one line of UTF-8 JSON, newline included."""
    line = json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate has no UTF-8; its backslash form is the JSON escape of the same character.
    return line.encode("utf-8", errors="backslashreplace")


def repair(path: str | Path) -> None:
    """Makes a JSON-lines file end in a newline: cuts a torn last line off, ends a whole one."""
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        start = _last_line_start(file)
        file.seek(start)
        tail = file.read()
        if not tail:
            return
        # No proper prefix of a JSON object is one, so a line that parses lacks its newline only.
        if isinstance(parse_line(tail), RowError):
            file.truncate(start)
        else:
            file.write(b"\n")
        os.fsync(file.fileno())


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes a whole file so that a reader, or a kill, sees the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _open(path: str | Path) -> Any:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read ({reason}); correct the path") from error


def _is_array(path: Path) -> bool:
    with _open(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def parse_line(line: bytes) -> dict[str, Any] | RowError:
    """One line of JSON, or why it is none."""
    if b"\0" in line:
        return RowError("the line holds NUL bytes")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return RowError("the line is not UTF-8")
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON ({error})")
    return value if isinstance(value, dict) else RowError(_not_object(value))


def _not_object(value: Any) -> str:
    return f"not a JSON object but a {type(value).__name__}"


def _named(header: list[str], fields: list[str]) -> dict[str, Any] | RowError:
    if len(fields) != len(header):
        return RowError(f"{len(fields)} fields where the header has {len(header)}")
    if any("\0" in field for field in fields):
        return RowError("the row holds NUL bytes")
    if any("\udc80" <= character <= "\udcff" for field in fields for character in field):
        return RowError("the row is not UTF-8")
    return dict(zip(header, fields, strict=True))


def _last_line_start(file: Any, block: int = 2**16) -> int:
    """Offset just after the file's last newline, found from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        if (found := file.read(end - start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0
