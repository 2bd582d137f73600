"""Lines of plain, ``.gz`` and ``.xz`` files; a download cut short keeps the lines that arrived."""

import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import archives
from crossguard_jax.io.files import note

MAX_LINE_BYTES = 16 * 2**20
ENDINGS = ("", ".gz", ".xz")
CUT = "the file is cut short or damaged here"
"""How the reason begins that stands for all rows from there on."""

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, ValueError)  # ValueError: a NUL in a path
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row of a file could not be read."""

    reason: str


Row = tuple[int, dict[str, Any] | RowError]
"""The line of its file on which a row starts, from 1, and the row, or why it is none."""


def lines(
    path: str | Path, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, bytes | RowError]]:
    r"""Yields ``(line number from 1, line with its end, or RowError)``.

    A line ends with ``\n``, ``\r\n`` or ``\r``; a byte-order mark of UTF-8 is taken off. A line
    that is too long is an error of its own. Where the packed data ends early or is damaged, the
    lines before come first and one error stands for all that is lost.

    Raises:
      UserError: the file cannot be opened, is UTF-16 or UTF-32, or not even its first line can be
        unpacked.
    """
    path, row = Path(path), 0
    try:
        note(path)
        unpacked = _OPENERS.get(path.suffix.lower(), nullcontext)
        with archives.opened(path) as packed, unpacked(packed) as file:
            for row, line in enumerate(_lines(file, max_line_bytes), start=1):
                if row == 1 and isinstance(line, bytes):
                    _refuse_wide(path, line)
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield row, line
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or short(error)
        if row == 0:
            mend = " or download it again" if path.suffix in _OPENERS else ""
            raise UserError(
                f"{short(path)}: cannot be read ({reason}); correct the path{mend}"
            ) from error
        yield (
            row + 1,
            RowError(f"{CUT} ({reason}); download it again: the {row:,} lines before were read"),
        )


def _lines(file: Any, max_line_bytes: int) -> Iterator[bytes | RowError]:
    rest = b""
    while chunk := file.readline(max_line_bytes + 1 - len(rest)):
        rest += chunk
        if b"\r" not in rest[:-2] and rest.endswith(b"\n"):
            parts, rest = [rest], b""
        else:
            parts = rest.splitlines(keepends=True)
            rest = b"" if parts[-1].endswith((b"\n", b"\r")) else parts.pop()
        yield from parts
        if len(rest) > max_line_bytes:
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(max_line_bytes)
            yield RowError(f"the line is over {max_line_bytes:,} bytes")
            rest = b""
    if rest:
        yield rest


def _refuse_wide(path: Path, start: bytes) -> None:
    """Refuses an encoding in which every other byte of English is zero."""
    if start.startswith(_WIDE) or b"\0" in start[:2] and len(start.strip(b"\0")) > 1:
        raise UserError(f"{short(path)}: the text is UTF-16 or UTF-32; save it as UTF-8")
