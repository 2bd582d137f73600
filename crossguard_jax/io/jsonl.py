"""Rows in and out of files: durable JSON lines, JSON arrays, whole-file writes.

A reader yields ``(row, value)`` for each row: ``row`` is the line of the file on which it starts,
counted from 1, and ``value`` is a dict, or a ``RowError`` that says why it is none. One bad row
never stops a file.
"""

import fcntl
import itertools
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import archives
from crossguard_jax.io.files import note
from crossguard_jax.io.json_stream import read_json_rows
from crossguard_jax.io.lines import ENDINGS, MAX_LINE_BYTES, Row, RowError, lines
from crossguard_jax.io.tables import read_csv


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a ``.jsonl``, ``.ndjson``, ``.json`` (lines, or one array), ``.csv`` or ``.tsv``.

    All but ``.json`` may be packed: ``.jsonl.gz``, ``.csv.xz``.

    Raises:
      UserError: the file cannot be opened, or its ending is none of these.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".json": lambda p: read_json_rows(p) if _is_array(p) else read_jsonl(p),
        ".csv": read_csv,
        ".tsv": lambda p: read_csv(p, delimiter="\t"),
    }
    path = Path(path)
    packed = path.suffix.lower() in ENDINGS[1:]
    ending = Path(path.stem).suffix if packed else path.suffix
    reader = readers.get(ending.lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(readers)}")
    return reader(path)


def read_jsonl(path: str | Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Yields ``(row, dict or RowError)`` for each line that is not blank.

    Raises:
      UserError: the file cannot be opened, or holds one JSON value and no rows.
    """
    rows = (
        (row, line)
        for row, line in lines(path, max_line_bytes)
        if isinstance(line, RowError) or line.strip()
    )
    start = list(itertools.islice(rows, 2))
    _refuse_document(path, [line for _, line in start])
    for row, line in itertools.chain(start, rows):
        yield row, line if isinstance(line, RowError) else parse_line(line)


def _refuse_document(path: str | Path, start: list[bytes | RowError]) -> None:
    """Refuses what is no rows but one JSON value, by its first two lines."""
    if not start or isinstance(start[0], RowError):
        return
    first = start[0].strip()
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # A row is on one line; a value that goes on over several leaves something open there.
        whole = not (first[:1] in b"[{" and first[-1:] in b"[{,")
        what = "array" if first[:1] == b"[" else "object"
    else:
        rows = len(start) > 1 or not isinstance(value, list | dict)
        whole = rows or isinstance(value, dict) and not _only_rows(value)
        what = "array" if isinstance(value, list) else "object"
    if not whole:
        raise UserError(
            f"{short(path)}: the file is one JSON {what}, not an object a line; write a row a line "
            "(or one array of objects, in a table called .json)"
        )


def _only_rows(value: dict[str, Any]) -> bool:
    """Whether an object rather holds rows, by their ids or by list, than is one."""
    return len(value) > 1 and all(isinstance(each, list | dict) for each in value.values())


def read_json(path: str | Path, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """The one JSON value in a file; ``object_hook`` may shrink each object as it is parsed.

    Raises:
      UserError: the file cannot be opened, or is not JSON.
    """
    with _opened(path) as file:
        try:
            return json.loads(file.read().decode("utf-8-sig"), object_hook=object_hook)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not JSON ({short(error)}); download or write it again"
            ) from error


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


@contextmanager
def exclusive_writer(path: str | Path) -> Iterator[JsonlWriter]:
    """A writer of a file that others append to as well: each waits until the one before has closed.

    What was appended is on the disk when the context ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Opened under the lock, since opening repairs: a row that another is writing looks torn.
        with JsonlWriter(path, sync_seconds=math.inf) as writer:
            yield writer


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
    # A name of its own: threads and processes may write the same file at once.
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    try:
        note(Path(path))
        with archives.opened(path) as file:
            yield file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read ({reason}); correct the path") from error


def _is_array(path: Path) -> bool:
    with _opened(path) as file:
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


def _last_line_start(file: Any, block: int = 2**16) -> int:
    """Offset just after the file's last newline, found from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0
