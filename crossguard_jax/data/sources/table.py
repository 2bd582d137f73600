"""A folder of pictures with a JSON-lines, JSON, CSV or TSV table of rows that name them; or a file
of rows with their pictures in it, Parquet, ArrayRecord or tar."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected, listed
from crossguard_jax.data.sources.common import check_range, named_picture, records_of, text_field
from crossguard_jax.data.sources.packed import reader_of
from crossguard_jax.io.jsonl import read_rows
from crossguard_jax.io.lines import CUT, Row, RowError, lines

TABLE_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv")


def table(
    path: str | Path,
    *,
    pictures: str | Path | None = None,
    id: str = "id",
    image: str | None = "image",
    text: str = "text",
    label: str = "label",
    category: str = "category",
    default_label: str = "",
    labels: Mapping[str, str] | None = None,
    source: str | None = None,
    seed: int | None = None,
    check_pictures: bool = True,
    rows: tuple[int, int] | None = None,
) -> Iterator[Record | Rejected]:
    """Reads rows that name their pictures, in the order of the file.

    A row needs the text and the picture, a path, a ``data:`` URL, its bytes, or a list of several;
    a picture given as null (in CSV: left empty) makes it a row of text alone, and a text given as
    null or "" one of pictures alone. Rows with the same ``pair`` are twins (`evals.benchmarks`).

    Args:
      path: the table, or a folder that holds exactly one.
      pictures: the folder that picture paths are relative to; the table's own unless given.
      id: the column that names the row; a row without it is called STEM-ROW.
      image: the column of the picture's path (``images`` does too where there is no ``image``);
        None for a table of texts alone.
      text: the column of the text.
      label: the column of the label, which may be missing.
      category: the column of the category, which may be missing.
      default_label: the label of rows that have none.
      labels: what the table's labels mean, such as ``{"1": "unsafe", "0": "safe"}``.
      source: the source of rows without a ``source`` of their own; the table's file name without
        ending unless given.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.
      rows: the first and the last row to be read, by their numbers; None reads all.

    Raises:
      UserError: the table cannot be opened, a folder holds none or several, or ``rows`` end behind
        its last one.
    """
    path = _the_table(Path(path))
    root = Path(pictures) if pictures is not None else path.parent
    source = path.stem if source is None else source

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        pictures = () if image is None else _pictures(value, image, root, check_pictures)
        words = text_field(value, text, blank=bool(pictures))
        word = _word(value.get(label)) or default_label
        twins = {"pair": pair} if (pair := _word(value.get("pair"))) else {}
        return [
            Record(
                id=_word(value.get(id)) or f"{path.stem}-{row}",
                images=pictures,
                text=words,
                label=word if labels is None else _mapped(word, labels),
                category=_word(value.get(category)),
                source=_word(value.get("source")) or source,
                provenance={"file": str(path), "row": str(row), **twins},
            )
        ]

    return records_of(path, _rows(path, rows), make, seed)


def _rows(path: Path, limits: tuple[int, int] | None) -> Iterator[Row]:
    """The rows within limits, which must lie in the file."""
    first, last = limits or (1, sys.maxsize)
    read = reader_of(path)
    end = 0
    for row, value in read_rows(path) if read is None else read(path, first):
        if row > last:
            return
        end = row
        # What cannot be read on is said to whoever wants what lies behind, too.
        cut = isinstance(value, RowError) and value.reason.startswith(CUT)
        if row >= first or cut:
            yield row, value
        if cut or row == last:
            return
    if limits is not None:
        # A row's number is its first line's: the last one may have more, and blank ones behind it.
        lined = read is None and path.suffix.lower() != ".json"
        check_range(path, limits, max(end, sum(1 for _ in lines(path))) if lined else end)


def _the_table(path: Path) -> Path:
    if not path.is_dir():
        return path
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in TABLE_ENDINGS)
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables) or "none"
        raise UserError(f"{path}: expected one table ({', '.join(TABLE_ENDINGS)}), found {names}")
    return tables[0]


def _pictures(value: Mapping[str, Any], image: str, root: Path, check: bool) -> tuple[bytes, ...]:
    """The pictures of a row; none of a row of text alone."""
    if image == "image" and image not in value:
        image = "images" if "images" in value else image
    if image not in value:
        raise UserError(f"no field {image!r}; give a picture's path, or null for text alone")
    return tuple(named_picture({image: name}, image, root, check) for name in listed(value[image]))


def _word(value: Any) -> str:
    """A label, id or category as text: JSON's ``true`` reads ``"true"``, null reads ``""``."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise UserError(f"expected a word or a number, found {short(repr(value))}")
    return str(value).strip()


def _mapped(label: str, labels: Mapping[str, str]) -> str:
    if label not in labels:
        raise UserError(f"label {short(repr(label))} is none of {', '.join(map(repr, labels))}")
    return labels[label]
