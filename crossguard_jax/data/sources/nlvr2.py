"""NLVR2 (Suhr et al., ACL 2019): a sentence about a pair of photographs, true or false."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import (
    first_file,
    picture,
    records_of,
    required,
    text_field,
)
from crossguard_jax.io.jsonl import read_jsonl


def nlvr2(
    path: str | Path,
    *,
    split: str | None = None,
    pictures: str | Path | None = None,
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads ``path/SPLIT.json`` (or ``path/data/SPLIT.json``) and the two pictures of each row.

    A record has two pictures, the left one first. Row
    ``SPLIT-SET-PAIR-SENTENCE`` has the pictures ``SPLIT-SET-PAIR-img0.png`` and ``-img1.png``, in
    the folder ``images/SPLIT/``, ``SPLIT/`` or ``images/``, or in one of its folders by the number
    that is the row's ``directory``. Labels are ``true`` and ``false``.

    Args:
      path: the folder of the download, or one split's JSON file itself.
      split: train, dev or test1; the file's own name when ``path`` is a file.
      pictures: the folder of the pictures, if another one.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the JSON cannot be opened, or no split is given.
    """
    path = Path(path)
    if split is None and path.is_dir():
        raise UserError(f"{path}: say which split to read, such as split=dev")
    root = path if path.is_dir() else path.parent
    places = [root / f"{split}.json", root / "data" / f"{split}.json"]
    file = next(filter(Path.is_file, places), places[0]) if path.is_dir() else path

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        identifier = required(value, "identifier")
        parts = identifier.split("-") if isinstance(identifier, str) else []
        if len(parts) != 4:
            raise UserError(
                f"identifier {short(repr(identifier))} is not split-set-pair-sentence; mend it"
            )
        label = str(required(value, "label")).lower()
        if label not in ("true", "false"):
            raise UserError(
                f"label {short(repr(label))} is neither 'True' nor 'False'; mend the row"
            )
        folders = [root / "images" / parts[0], root / parts[0], root / "images"]
        if pictures is not None:
            folders = [Path(pictures)]
        stem, directory = "-".join(parts[:3]), str(value.get("directory", "."))
        return [
            Record(
                id=f"nlvr2-{identifier}",
                images=tuple(
                    picture(_file(folders, directory, f"{stem}-img{n}.png"), check_pictures)
                    for n in (0, 1)
                ),
                text=text_field(value, "sentence"),
                label=label,
                category="nlvr2",
                source="nlvr2",
                provenance={"file": str(file), "row": str(row)},
            )
        ]

    return records_of(file, read_jsonl(file), make, seed)


def _file(folders: list[Path], directory: str, name: str) -> Path:
    return first_file([folder / inner / name for folder in folders for inner in (directory, ".")])
