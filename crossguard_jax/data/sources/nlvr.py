"""NLVR (Suhr et al., ACL 2017): a sentence about a drawn picture, true or false."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import picture, records_of, required, text_field
from crossguard_jax.io.jsonl import read_jsonl


def nlvr(
    path: str | Path,
    *,
    split: str | None = None,
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads ``path/SPLIT/SPLIT.json`` with pictures in ``path/SPLIT/images/``.

    The picture of a row is the first of its six box orders. Labels are ``true`` and ``false``.

    Args:
      path: the folder with the splits, or one split's JSON file itself.
      split: train, dev or test; the file's own name when ``path`` is a file.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the JSON cannot be opened, or no split is given.
    """
    path = Path(path)
    if split is None and path.is_dir():
        raise UserError(f"{path}: say which split to read, such as split=dev")
    file = path / f"{split}" / f"{split}.json" if path.is_dir() else path
    split = split or file.stem

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        identifier, folder = required(value, "identifier"), required(value, "directory")
        label = str(required(value, "label"))
        if label not in ("true", "false"):
            raise UserError(
                f"label {short(repr(label))} is neither 'true' nor 'false'; mend the row"
            )
        image = file.parent / "images" / str(folder) / f"{split}-{identifier}-0.png"
        return [
            Record(
                id=f"nlvr-{split}-{identifier}",
                images=(picture(image, check_pictures),),
                text=text_field(value, "sentence"),
                label=label,
                category="nlvr",
                source="nlvr",
                provenance={"file": str(file), "row": str(row)},
            )
        ]

    return records_of(file, read_jsonl(file), make, seed)
