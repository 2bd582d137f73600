"""MM-Vet (Yu et al., ICML 2024) and its v2: harmless questions that are hard; evaluation only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import picture_name, text_field
from crossguard_jax.data.sources.downloads import Draft, FileRows, Pictures, drafted, find
from crossguard_jax.io.json_stream import read_json_rows

FILES = {"v1": "mm-vet.json", "v2": "mm-vet-v2.json"}
_BETWEEN = "<IMG>"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def mm_vet(
    path: str | Path,
    *,
    split: str = "v1",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads ``mm-vet.json`` or ``mm-vet-v2.json`` and ``images/``.

    Every record is safe: whoever flags one refuses a harmless question. A question of v2 has its
    pictures' names between its words; a record has them in that order, and the words without them.
    The category is what it takes to answer; the provenance has the ``answer``, and the version as
    ``subset``, since the two are never pooled.

    Args:
      path, missing_pictures, seed, check_pictures: as in `implicit.siuo`.
      split: v1 or v2.

    Raises:
      UserError: the file or all pictures are missing, or there is no such split.
    """
    if split not in FILES:
        raise UserError(f"mm_vet: no split {split!r}; choose one of {', '.join(FILES)}")
    folder = Path(FILES[split]).stem
    place = find(path, f"MM-Vet {split}", FILES[split], f"{folder}/{FILES[split]}")
    pictures = Pictures(place, "images", check=check_pictures, missing=missing_pictures)

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        question = text_field(value, "question")
        if split == "v1":
            text, names = question, [picture_name(value, "imagename")]
        else:
            pieces = [piece.strip() for piece in question.split(_BETWEEN)]
            names = [piece for piece in pieces if piece.lower().endswith(_ENDINGS)]
            text = " ".join(piece for piece in pieces if piece and piece not in names)
        capability = value.get("capability")
        return [
            Draft(
                id=f"mm_vet-{value['id']}",
                text=text_field({"question": text}, "question", blank=bool(names)),
                label="safe",
                category="+".join(map(str, capability)) if isinstance(capability, list) else "",
                pictures=tuple(names),
                extra={"subset": split, "answer": str(value.get("answer") or "")},
            )
        ]

    rows = read_json_rows(place.file, key="id")
    return drafted("mm_vet", [FileRows(place.file, rows, drafts, pictures)], seed)
