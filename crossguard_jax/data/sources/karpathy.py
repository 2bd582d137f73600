"""The splits of COCO and Flickr30k by Karpathy and Fei-Fei (CVPR 2015)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.coco_captions import captioned, one_line, rows_of
from crossguard_jax.data.sources.common import (
    first_file,
    picture,
    picture_name,
    records_of,
    required,
)
from crossguard_jax.io.jsonl import read_json

SPLITS = ("train", "restval", "val", "test")
# Where the downloads unpack to; COCO's rows name val2014 or train2014 below one of these.
FOLDERS = (".", "images", "flickr30k-images")


def karpathy(
    path: str | Path,
    *,
    split: str = "test",
    captions: int | None = None,
    pictures: str | Path | None = None,
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads the pictures of one split from ``dataset.json``, each with all its captions.

    The text of a record is the first caption; its provenance has all ``captions``, one a line, and
    the ``split``. Every record is safe, of category ``benign``; its source is ``karpathy-`` and the
    data set's name.

    Args:
      path: the JSON file, or the folder with it (``dataset.json``, ``dataset_coco.json``, ...).
      split: train, restval, val or test, or several with ``+``: COCO's ``train+restval``.
      captions: keep only the first so many captions of each picture: retrieval is measured on five.
      pictures: the folder of the pictures; otherwise they lie beside the JSON file, in
        ``images/``, or in ``flickr30k-images/``.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the JSON is missing or is none of Karpathy's, or there is no such split.
    """
    parts = split.split("+")
    if unknown := [name for name in parts if name not in SPLITS]:
        raise UserError(f"karpathy: no split {unknown[0]!r}; choose of {', '.join(SPLITS)}")
    file = _file(Path(path))
    content = read_json(file, object_hook=_shrink)
    rows = rows_of(content, "images", file)
    name = str(content.get("dataset", file.stem.removeprefix("dataset_")))
    root = file.parent if pictures is None else Path(pictures)

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        part = required(value, "split")
        if part not in SPLITS:
            raise UserError(f"field 'split' is {short(repr(part))}; choose of {', '.join(SPLITS)}")
        if part not in parts:
            return []
        image = picture_name(value, "filename")
        places = [root / folder / str(value.get("filepath", "")) / image for folder in FOLDERS]
        return [
            captioned(
                f"karpathy-{name}-{Path(image).stem}",
                picture(first_file(places), check_pictures),
                _captions(value)[:captions],
                f"karpathy-{name}",
                {"file": str(file), "row": str(row), "split": part},
            )
        ]

    return records_of(file, rows, make, seed)


def _captions(value: dict[str, Any]) -> list[str]:
    sentences = required(value, "sentences")
    if not isinstance(sentences, list) or not all(isinstance(each, dict) for each in sentences):
        raise UserError("field 'sentences' is no list of objects; mend the row")
    return [one_line(sentence, "raw") for sentence in sentences]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("dataset*.json"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{path}: expected one dataset*.json, found {names}; give the file itself")
    return files[0]


def _shrink(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("tokens", None)  # most of the file, and the raw sentence says the same
    return entry
