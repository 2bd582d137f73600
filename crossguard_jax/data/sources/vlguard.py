"""VLGuard (Zong et al., ICML 2024): safe and unsafe pictures with instructions."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import picture_name, records_of, required, text_field
from crossguard_jax.data.sources.downloads import Pictures, find
from crossguard_jax.io import archives
from crossguard_jax.io.files import note
from crossguard_jax.io.json_stream import read_json_rows
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
    path: str | Path,
    *,
    split: str = "train",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads ``path/SPLIT.json`` with pictures in ``path/SPLIT/``, ``path/images/`` or ``path``.

    An unsafe picture gives one record. A safe one gives two: a safe instruction, and an unsafe one
    about the same picture. ``provenance["subset"]`` is the paper's: unsafes, safe_safes or
    safe_unsafes, each with a denominator of its own. The category is the harmful one where the file
    has one, otherwise the subset. Training rows whose id is in ``test.json`` too are rejected, and
    so are empty instructions, and training rows' "N/A"; that of a test row is in its
    denominator as published.

    Args:
      path: the folder of the download, its archives unpacked or not, or one level from it.
      split: train or test.
      missing_pictures: what becomes of a row without its picture (`downloads.MISSING_PICTURES`).
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the JSON or the picture folder is missing, or a file of the other split is given.
    """
    other = "test" if split == "train" else "train"
    if Path(path).name == f"{other}.json":
        raise UserError(f"{path}: is split {other}, not {split}; choose it by its name")
    place = find(path, "VLGuard", f"{split}.json")
    file = place.file
    pictures = Pictures(place, split, "images", ".", check=check_pictures, missing=missing_pictures)
    test = {*_ids(place.root / "test.json")} if split != "test" else set()
    twice = {name for name, n in Counter(_ids(file)).items() if n > 1}

    def make(row: int, value: dict[str, Any]) -> list[Record | Rejected]:
        if "id" in value and str(value["id"]) in test:
            raise UserError(
                f"id {short(repr(value['id']))} is in test.json too; a guard is not trained on what"
                " it is tested on"
            )
        base = Record("", (), "", source="vlguard", provenance={"file": str(file), "row": str(row)})
        base = pictures.read((picture_name(value, "image"),), base, "field 'image'")
        entries = required(value, "instr-resp")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError("field 'instr-resp' is no list of objects; download the file again")
        own = str(value.get("id", row))
        own += f"-row{row}" if own in twice else ""  # the release has an id twice
        texts = [(name, entry) for entry in entries for name in INSTRUCTIONS if name in entry]
        if not texts:
            raise UserError("field 'instr-resp' has no instruction; download the file again")
        made: list[Record | Rejected] = []
        for name, entry in texts:
            try:
                text = text_field(entry, name)
                if split != "test" and text.strip().lower() in NONE:
                    what = short(repr(text))
                    raise UserError(f"field {name!r} is {what}, which asks nothing; leave it out")
            except UserError as error:  # a picture's other instruction may be good
                made.append(Rejected(str(file), row, str(error)))
                continue
            label, subset = INSTRUCTIONS[name]
            provenance = {**base.provenance, "subset": subset}
            if value.get("harmful_subcategory"):
                provenance["subcategory"] = str(value["harmful_subcategory"])
            made.append(
                replace(
                    base,
                    id=f"vlguard-{split}-{own}-{subset}",
                    text=text,
                    label=label,
                    category=str(value.get("harmful_category") or subset),
                    provenance=provenance,
                )
            )
        return made

    return records_of(file, read_json_rows(file), make, seed)


def _ids(file: Path) -> list[str]:
    """The ids of a split, row by row; none where it was not downloaded."""
    note(file)
    rows = read_json_rows(file) if archives.is_file(file) else ()
    return [str(row["id"]) for _, row in rows if not isinstance(row, RowError) and "id" in row]
