"""VLGuard (Zong et al., ICML 2024): safe and unsafe pictures with instructions."""

from collections.abc import Iterator
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
from crossguard_jax.io.files import note
from crossguard_jax.io.jsonl import read_json_array
from crossguard_jax.io.lines import RowError

# The field of an ``instr-resp`` entry that holds its instruction: (label, the paper's subset).
INSTRUCTIONS = {
    "instruction": ("unsafe", "unsafes"),
    "safe_instruction": ("safe", "safe_safes"),
    "unsafe_instruction": ("unsafe", "safe_unsafes"),
}


# Where the file has no instruction, it may say so.
NONE = {"n/a", "na", "none", "null", "nan"}


def vlguard(
    path: str | Path, *, split: str = "train", seed: int | None = None, check_pictures: bool = True
) -> Iterator[Record | Rejected]:
    """Reads ``path/SPLIT.json`` with pictures in ``path/SPLIT/``, ``path/images/`` or ``path``.

    An unsafe picture gives one record. A safe one gives two: a safe instruction, and an unsafe one
    about the same picture. ``provenance["subset"]`` is the paper's: unsafes, safe_safes or
    safe_unsafes. The category is the harmful one where the file has one, otherwise the subset.
    Training rows whose id is in ``test.json`` too are rejected, and so are instructions that are
    empty or "N/A".

    Args:
      path: the folder of the download.
      split: train or test.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the JSON or the picture folder is missing.
    """
    root = Path(path)
    file = root / f"{split}.json"
    rows = read_json_array(file)
    pictures = first_folder(root, split, "images", ".")
    test = _ids(root / "test.json") if split != "test" else set()

    def make(row: int, value: dict[str, Any]) -> list[Record | Rejected]:
        if "id" in value and str(value["id"]) in test:
            raise UserError(
                f"id {short(repr(value['id']))} is in test.json too; a guard is not trained on what"
                " it is tested on"
            )
        image = named_picture(value, "image", pictures, check_pictures)
        entries = required(value, "instr-resp")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError("field 'instr-resp' is no list of objects; download the file again")
        texts = [(name, entry) for entry in entries for name in INSTRUCTIONS if name in entry]
        if not texts:
            raise UserError("field 'instr-resp' has no instruction; download the file again")
        made: list[Record | Rejected] = []
        for name, entry in texts:
            try:
                text = _instruction(entry, name)
            except UserError as error:  # a picture's other instruction may be good
                made.append(Rejected(str(file), row, str(error)))
                continue
            label, subset = INSTRUCTIONS[name]
            provenance = {"file": str(file), "row": str(row), "subset": subset}
            if value.get("harmful_subcategory"):
                provenance["subcategory"] = str(value["harmful_subcategory"])
            made.append(
                Record(
                    id=f"vlguard-{split}-{value.get('id', row)}-{subset}",
                    images=(image,),
                    text=text,
                    label=label,
                    category=str(value.get("harmful_category") or subset),
                    source="vlguard",
                    provenance=provenance,
                )
            )
        return made

    return records_of(file, rows, make, seed)


def _ids(file: Path) -> set[str]:
    """The ids of a split; none where it was not downloaded."""
    note(file)
    rows = [value for _, value in read_json_array(file)] if file.exists() else []
    return {str(row["id"]) for row in rows if not isinstance(row, RowError) and "id" in row}


def _instruction(entry: dict[str, Any], name: str) -> str:
    text = text_field(entry, name)
    if text.strip().lower() in NONE:
        raise UserError(f"field {name!r} is {short(repr(text))}, which asks nothing; leave it out")
    return text
