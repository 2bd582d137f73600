"""Rows of one large JSON value, read piece by piece: no more of it is held than a row.

``json.loads`` of a file of 300 MB takes more than a gigabyte, and of half a download gives nothing.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import archives
from crossguard_jax.io.files import note
from crossguard_jax.io.lines import CUT, Row, RowError

CHUNK = 2**20
MAX_ELEMENT = 16 * 2**20
"""Most characters of one element."""

_DECODER = json.JSONDecoder()


class _Damaged(Exception):
    """What is wrong with the text from here on."""


class _Text:
    """A file's text, of which only what is not taken yet is held."""

    def __init__(self, read: Callable[[int], bytes]):
        self._read = read
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._held, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._held):
                if not self._held[self._at].isspace():
                    return self._held[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """Takes the next character, which is one of those expected."""
        character = self.peek()
        if not character:
            raise _Damaged("it ends before its end")
        if character not in expected:
            raise _Damaged(f"{character!r} stands where {' or '.join(expected)} should")
        self._at += 1
        return character

    def value(self) -> Any:
        """Takes the next value whole."""
        if not self.peek():
            raise _Damaged("it ends before its end")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
            except RecursionError:
                raise _Damaged("an element is nested too deep") from None
            except ValueError as error:
                problem = short(error)
            else:
                if end < len(self._held) or self._ended:  # a number might go on
                    self._at = end
                    return value
                problem = ""
            held = len(self._held) - self._at
            if held > MAX_ELEMENT:
                raise _Damaged(problem or f"an element is over {MAX_ELEMENT:,} characters")
            # As much again, so that an element is not tried once for every chunk of it.
            if not self._more(held) and problem:
                raise _Damaged(problem)

    def _more(self, least: int = 0) -> bool:
        """Reads on; False at the end of the file."""
        if self._ended:
            return False
        data = self._read(max(CHUNK, least))
        self._ended = not data
        try:
            text = self._decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _Damaged("it is not UTF-8") from error
        self._held, self._at = self._held[self._at :] + text, 0
        return not self._ended


def read_json_rows(path: str | Path, *where: str, key: str = "") -> Iterator[Row]:
    """Yields ``(position from 1, dict or RowError)`` for each element of a file's array or object.

    Of a file that is cut short or damaged, the elements before come first, and one error stands for
    all that is lost.

    Args:
      path: the file, which may lie in an archive.
      where: the names under which the elements lie, from the outermost; none: the whole file.
      key: the elements are an object's values, and each row gets its name there under this one.

    Raises:
      UserError: the file cannot be opened, is no JSON, or holds something else than that.
    """
    row, problem = 0, ""
    try:
        note(Path(path))
        with archives.opened(path) as file:
            text = _Text(file.read)
            for name, value in _elements(text, f"{path}: holds", where, bool(key)):
                row += 1
                if not isinstance(value, dict):
                    yield row, RowError(f"not a JSON object but a {type(value).__name__}")
                else:
                    yield row, {**value, key: name} if key else value
            if not where and (extra := text.peek()):
                raise _Damaged(f"{extra!r} stands behind its end")
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        problem = getattr(error, "strerror", None) or short(error)
        if row == 0:
            raise UserError(f"{path}: cannot be read ({problem}); correct the path") from error
    except _Damaged as error:
        problem = str(error)
        if row == 0:
            raise UserError(f"{path}: not JSON ({problem}); download or write it again") from error
    if problem:
        yield (
            row + 1,
            RowError(f"{CUT} ({problem}); download it again: the {row:,} rows before were read"),
        )


def _elements(
    text: _Text, holds: str, where: tuple[str, ...], named: bool
) -> Iterator[tuple[str, Any]]:
    start = text.peek()
    expected = "{" if where or named else "["
    if start and start != expected:
        kind = {"[": "an array", "{": "an object"}.get(start) or type(text.value()).__name__
        rows = f"an object with {where[0]!r} in it" if where else "an array of rows"
        rows = "an object of rows" if named and not where else rows
        raise UserError(f"{holds} {kind}, expected {rows}; download it again")
    for name in _names(text):
        if not where:
            yield name, text.value()
        elif name == where[0]:
            yield from _elements(text, f"{holds} in {name!r}", where[1:], named)
            return
        else:
            _skip(text)
    if where:
        raise UserError(f"{holds} nothing called {where[0]!r}; download the file again")


def _names(text: _Text) -> Iterator[str]:
    """Goes through an array or an object, up to each of its values: the values' names, "" in an
    array. Whoever iterates takes the value."""
    end = "]" if text.take("[{") == "[" else "}"
    if text.peek() == end:
        text.take(end)
        return
    while True:
        name = ""
        if end == "}":
            name = text.value()
            if not isinstance(name, str):
                raise _Damaged("a name in an object is no text")
            text.take(":")
        yield name
        if text.take("," + end) == end:
            return


def _skip(text: _Text) -> None:
    """Takes a value and holds no more of it than an element."""
    if text.peek() not in "[{":
        text.value()
        return
    for _ in _names(text):
        text.value()
