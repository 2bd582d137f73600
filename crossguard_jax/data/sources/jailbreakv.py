"""JailBreakV-28K (Luo et al., COLM 2024): wrapped requests beside pictures; evaluation only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import name_field, picture_name, required, text_field
from crossguard_jax.data.sources.downloads import Draft, FileRows, Pictures, drafted, find
from crossguard_jax.io.tables import read_csv

_FOLDERS = ("JailBreakV_28K/", "")
_WHOLE = tuple(f"{folder}JailBreakV_28K.csv" for folder in _FOLDERS)
FILES = {
    # Older revisions call the small file so; the whole one marks its rows.
    "mini": (
        *(
            f"{folder}{name}"
            for name in ("mini_JailBreakV_28K.csv", "sample.csv")
            for folder in _FOLDERS
        ),
        *_WHOLE,
    ),
    "full": _WHOLE,
}


def jailbreakv(
    path: str | Path,
    *,
    split: str = "mini",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads ``mini_JailBreakV_28K.csv`` or ``JailBreakV_28K.csv`` and the pictures beside it.

    Most of the pictures were never published, so that ``full`` misses many: see
    ``missing_pictures``. Every record is unsafe. The provenance has the ``format`` of the attack,
    and in ``group`` the picture, which up to hundreds of rows share.

    Args:
      path, missing_pictures, seed, check_pictures: as in `implicit.siuo`.
      split: mini or full.

    Raises:
      UserError: the file is missing, or there is no such split.
    """
    if split not in FILES:
        raise UserError(f"jailbreakv: no split {split!r}; choose one of {', '.join(FILES)}")
    place = find(path, "JailBreakV-28K", *FILES[split])
    pictures = Pictures(place, ".", check=check_pictures, missing=missing_pictures)
    marked = split == "mini" and place.file.name == Path(_WHOLE[0]).name

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        if marked and str(required(value, "selected_mini")).strip().lower() != "true":
            return []
        image = picture_name(value, "image_path")
        extra = {"format": str(value.get("format") or ""), "group": f"jailbreakv-{image}"}
        return [
            Draft(
                id=f"jailbreakv-{split}-{name_field(value, 'id')}",
                text=text_field(value, "jailbreak_query"),
                label="unsafe",
                category=str(value.get("policy") or ""),
                pictures=(image,),
                extra=extra,
            )
        ]

    return drafted(
        "jailbreakv", [FileRows(place.file, read_csv(place.file), drafts, pictures)], seed
    )
