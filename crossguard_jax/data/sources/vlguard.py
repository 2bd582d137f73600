"""VLGuard (Zong et al., ICML 2024): safe and unsafe pictures with instructions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import (
    first_folder,
    named_picture,
    records_of,
    required,
    text_field,
)
from crossguard_jax.io.jsonl import read_json_array

# The field of an ``instr-resp`` entry that holds its instruction: (label, the paper's subset).
INSTRUCTIONS = {
    "instruction": ("unsafe", "unsafes"),
    "safe_instruction": ("safe", "safe_safes"),
    "unsafe_instruction": ("unsafe", "safe_unsafes"),
}


def vlguard(
    path: str | Path, *, split: str = "train", check_pictures: bool = True
) -> Iterator[Record | Rejected]:
    """Reads ``path/SPLIT.json`` with pictures in ``path/SPLIT/``, ``path/images/`` or ``path``.

    An unsafe picture gives one record. A safe one gives two: a safe instruction, and an unsafe one
    about the same picture. ``provenance["subset"]`` is the paper's: unsafes, safe_safes or
    safe_unsafes. The category is the harmful one where the file has one, otherwise the subset.

    Raises:
      UserError: the JSON or the picture folder is missing.
    """
    root = Path(path)
    file = root / f"{split}.json"
    rows = read_json_array(file)
    pictures = first_folder(root, split, "images", ".")

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        image = named_picture(value, "image", pictures, check_pictures)
        entries = required(value, "instr-resp")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError("field 'instr-resp' is no list of objects; download the file again")
        texts = [(name, entry) for entry in entries for name in INSTRUCTIONS if name in entry]
        if not texts:
            raise UserError("field 'instr-resp' has no instruction; download the file again")
        records = []
        for name, entry in texts:
            label, subset = INSTRUCTIONS[name]
            provenance = {"file": str(file), "row": str(row), "subset": subset}
            if value.get("harmful_subcategory"):
                provenance["subcategory"] = str(value["harmful_subcategory"])
            records.append(
                Record(
                    id=f"vlguard-{split}-{value.get('id', row)}-{subset}",
                    images=(image,),
                    text=text_field(entry, name),
                    label=label,
                    category=str(value.get("harmful_category") or subset),
                    source="vlguard",
                    provenance=provenance,
                )
            )
        return records

    return records_of(file, rows, make)
