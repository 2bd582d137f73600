"""What every reader needs: checked fields, checked pictures, one bad row at a time."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Rejected
from crossguard_jax.io import images
from crossguard_jax.io.files import note
from crossguard_jax.io.lines import Row, RowError

_SURROGATE = re.compile("[\ud800-\udfff]")

RecordT = TypeVar("RecordT")


ItemT = TypeVar("ItemT")


def shuffled(rows: Iterable[ItemT], seed: int | None) -> Iterable[ItemT]:
    """The rows in an order that ``seed`` draws, all of them held at once; as they come for None."""
    if seed is None:
        return rows
    drawn = list(rows)
    random.Random(seed).shuffle(drawn)
    return drawn


def records_of(
    path: Path,
    rows: Iterable[Row],
    make: Callable[[int, dict[str, Any]], Sequence[RecordT | Rejected]],
    seed: int | None = None,
) -> Iterator[RecordT | Rejected]:
    """Turns each row into its records, or whatever else a reader makes of rows.

    A row for which ``make`` raises UserError is rejected. Rows are shuffled (`shuffled`) before
    ``make`` sees them, so that a draw of a few opens no other pictures.
    """
    for row, value in shuffled(rows, seed):
        if isinstance(value, RowError):
            yield Rejected(str(path), row, value.reason)
            continue
        try:
            made = make(row, value)
        except UserError as error:
            yield Rejected(str(path), row, str(error))
        else:
            yield from made


def check_range(path: Path, rows: tuple[int, int], end: int) -> None:
    """Refuses rows of a file that end behind its last one, which part of a file cut short or
    changed does.

    Args:
        path: the file.
        rows: the first and the last of them.
        end: the number of the file's last row; 0 where none was seen from the first one on.

    Raises:
        UserError: the last of them is behind the end.
    """
    if rows[1] > end:
        where = f"at row {end:,}" if end else f"before row {rows[0]:,}"
        raise UserError(
            f'{path}: rows {[*rows]}: the file ends {where}; correct "rows" in the manifest'
        )


def text_field(row: Mapping[str, Any], name: str, blank: bool = False) -> str:
    """The row's text called ``name``, fit for a tokenizer; empty or null only if ``blank``."""
    text = required(row, name)
    if blank and text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"field {name!r} is a {type(text).__name__}; give text")
    if not text.strip() and not blank:
        raise UserError(f"field {name!r} is empty; give a text")
    if "\0" in text:
        raise UserError(f"field {name!r} holds NUL bytes; remove them")
    if _SURROGATE.search(text):
        raise UserError(f"field {name!r} holds half a surrogate pair; write it as valid Unicode")
    return text


def required(row: Mapping[str, Any], name: str) -> Any:
    """The row's field called ``name``, whatever it holds."""
    if name not in row:
        there = short(", ".join(map(str, row)) or "none")
        raise UserError(f"no field {name!r} (there are {there})")
    return row[name]


def name_field(row: Mapping[str, Any], name: str) -> str:
    """The row's own name or number, whichever way the file writes it."""
    value = required(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"field {name!r} is no name but {short(repr(value))}")
    return str(value).strip()


def picture_name(row: Mapping[str, Any], name: str) -> str:
    """The row's picture path, as written."""
    value = required(row, name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(f"field {name!r} is no picture path but {short(repr(value))}")
    return value


def named_picture(row: Mapping[str, Any], name: str, folder: Path, check: bool) -> bytes:
    """The encoded picture that the row's field called ``name`` gives.

    The field holds a path below ``folder``, a ``data:`` URL, or the picture itself: bytes, or, as
    Hugging Face's data sets have it, an object with ``bytes``.
    """
    value = required(row, name)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        path = value.get("path") if isinstance(value, dict) else value
        path = picture_name({name: path}, name)
        if not images.is_url(path):
            return picture(folder / path, check)
        data = images.read_url(path, f"field {name!r}")
    if check:
        images.decode(data, f"field {name!r}")
    return data


def picture(path: Path, check: bool) -> bytes:
    """The encoded picture at ``path``; with ``check`` it must also decode to its last pixel."""
    data = images.read_picture(path)
    if check:
        images.decode(data, short(path))
    return data


def first_file(places: list[Path]) -> Path:
    """The first of the files that exists; the first of all where none does."""
    for place in places:
        note(place)
    return next((place for place in places if place.is_file()), places[0])


def first_folder(root: Path, *names: str) -> Path:
    """The first of ``root``'s folders of these names (``"."`` is ``root`` itself) that exists."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root}: no picture folder {' or '.join(names)} in it; unpack the pictures")
