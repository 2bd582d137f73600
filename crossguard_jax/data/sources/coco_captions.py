"""COCO captions (Chen et al., 2015) as downloaded: pictures, each with what five people say."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import (
    first_folder,
    named_picture,
    records_of,
    required,
    text_field,
)
from crossguard_jax.io.jsonl import read_json
from crossguard_jax.io.lines import Row, RowError


def coco_captions(
    path: str | Path,
    *,
    split: str = "val2017",
    captions: int | None = None,
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads ``annotations/captions_SPLIT.json`` and the pictures of ``SPLIT/``, one record each.

    SPLIT is the release: train2014, val2014, train2017 or val2017; its pictures lie in ``SPLIT/``,
    ``images/SPLIT/`` or ``images/``. The text of a record is the caption with the lowest
    annotation id; its provenance has all ``captions``, one a line. Every record is safe, of
    category ``benign``. The reason of a rejected row names the list in which it counts:
    ``annotations`` or ``images``.

    Args:
      path: the folder of the download.
      split: the release.
      captions: keep only the first so many captions of each picture.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the captions or the picture folder are missing.
    """
    root = Path(path)
    file = root / "annotations" / f"captions_{split}.json"
    content = read_json(file, object_hook=_shrink)
    written, named = rows_of(content, "annotations", file), rows_of(content, "images", file)
    folder = first_folder(root, split, f"images/{split}", "images")
    pairs = {
        (value.get("id"), str(value.get("file_name")))
        for _, value in named
        if isinstance(value, dict) and isinstance(value.get("id"), int)
    }
    numbers = Counter(number for number, _ in pairs)
    texts: dict[int, list[tuple[int, str]]] = defaultdict(list)

    def keep(row: int, value: dict[str, Any]) -> list[Record]:
        number = _number(value, "image_id")
        if number not in numbers:
            raise UserError(f"image_id {number} is none of the images; mend it or drop the caption")
        texts[number].append((_number(value, "id"), one_line(value, "caption")))
        return []

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        number = _number(value, "id")
        if numbers[number] > 1:
            raise UserError(f"image id {number} is {numbers[number]} pictures'; give each its own")
        return [
            captioned(
                f"coco_captions-{split}-{number}",
                named_picture(value, "file_name", folder, check_pictures),
                [text for _, text in sorted(texts[number])][:captions],
                "coco_captions",
                {"file": str(file), "row": str(row)},
            )
        ]

    def records() -> Iterator[Record | Rejected]:
        for name, rows, use in (("annotations", written, keep), ("images", named, make)):
            for row in records_of(file, rows, use, seed):
                if isinstance(row, Rejected):
                    row = replace(row, reason=f"{name}: {row.reason}")
                yield row

    return records()


def captioned(
    id: str, image: bytes, captions: list[str], source: str, provenance: dict[str, str]
) -> Record:
    """The record of a picture with its captions, all of them in its provenance, one a line.

    Raises:
      UserError: there is no caption.
    """
    if not captions:
        raise UserError("the picture has no caption; add one or drop it")
    return Record(
        id=id,
        images=(image,),
        text=captions[0],
        label="safe",
        category="benign",
        source=source,
        provenance=provenance | {"captions": "\n".join(captions)},
    )


def one_line(row: Mapping[str, Any], name: str) -> str:
    """The row's text called ``name``, its line breaks as spaces."""
    return " ".join(text_field(row, name).split())


def rows_of(content: Any, name: str, file: Path) -> list[Row]:
    """The objects of a JSON file's list called ``name``, with their positions from 1."""
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{file}: no list called {name!r} in it; download the file again")
    return [
        (row, value if isinstance(value, dict) else RowError("the row is not an object"))
        for row, value in enumerate(rows, start=1)
    ]


def _number(row: Mapping[str, Any], name: str) -> int:
    value = required(row, name)
    if not isinstance(value, int):
        raise UserError(f"field {name!r} is {short(repr(value))}; give a number")
    return value


def _shrink(entry: dict[str, Any]) -> dict[str, Any]:
    """Only what is needed of each object while the file is parsed, which takes gigabytes whole."""
    if "annotations" in entry:
        return entry
    return {key: entry[key] for key in ("id", "image_id", "caption", "file_name") if key in entry}
