"""Benchmarks of danger that neither the picture nor the text shows alone: evaluation only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import name_field, picture_name, required, text_field
from crossguard_jax.data.sources.downloads import Draft, FileRows, Pictures, drafted, find
from crossguard_jax.io.json_stream import read_json_rows

HOLISAFE_TYPES = ("SSU", "SSS", "SUU", "USU", "UUU")
"""[picture][query][together], each safe or unsafe; SSU is danger by the combination alone."""


def siuo(
    path: str | Path,
    *,
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """SIUO (Wang et al., NAACL 2025): ``siuo_gen.json`` and ``images/``, also below ``data/``.

    Every record is unsafe. Its provenance has the ``safety_warning`` and the ``reference_answer``,
    which the benchmark's judge is shown.

    Args:
      path: the folder or the archive of the download, or one level from it.
      missing_pictures: what becomes of a row without its picture (`downloads.MISSING_PICTURES`).
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the file or all pictures are missing.
    """
    place = find(path, "SIUO", "siuo_gen.json", "data/siuo_gen.json")
    pictures = Pictures(place, "images", check=check_pictures, missing=missing_pictures)

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        kept = ("safety_warning", "reference_answer")
        return [
            Draft(
                id=f"siuo-{name_field(value, 'question_id')}",
                text=text_field(value, "question"),
                label="unsafe",
                category=text_field(value, "category", blank=True),
                pictures=(picture_name(value, "image"),),
                extra={name: str(value[name]) for name in kept if value.get(name)},
            )
        ]

    part = FileRows(place.file, read_json_rows(place.file), drafts, pictures)
    return drafted("siuo", [part], seed)


def vlsbench(
    path: str | Path,
    *,
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """VLSBench (Hu et al., ACL 2025): ``data.json``, also below ``data/``, and ``imgs/``.

    Every record is unsafe, also the one whose instruction is empty: its picture stands alone. The
    provenance has the ``subcategory`` and the ``safety_reason``.

    Args:
      path, missing_pictures, seed, check_pictures: as in `siuo`.

    Raises:
      UserError: as in `siuo`.
    """
    place = find(path, "VLSBench", "data.json", "data/data.json")
    pictures = Pictures(place, ".", "imgs", check=check_pictures, missing=missing_pictures)

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        kept = {"sub_category": "subcategory", "safety_reason": "safety_reason"}
        return [
            Draft(
                id=f"vlsbench-{name_field(value, 'instruction_id')}",
                text=text_field(value, "instruction", blank=True),
                label="unsafe",
                category=text_field(value, "category", blank=True),
                pictures=(picture_name(value, "image_path"),),
                extra={ours: str(value[name]) for name, ours in kept.items() if value.get(name)},
            )
        ]

    part = FileRows(place.file, read_json_rows(place.file), drafts, pictures)
    return drafted("vlsbench", [part], seed)


def holisafe(
    path: str | Path,
    *,
    split: str = "SSU",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """HoliSafe-Bench (Lee et al., 2025): ``holisafe_bench.json`` and ``images/``.

    A type such as SUU says whether the picture, the query and the two together are safe; the last
    letter is the label. The provenance has the type as ``subset``, the ``subcategory``, and in
    ``group`` the picture, about which there are several queries.

    Args:
      path, missing_pictures, seed, check_pictures: as in `siuo`.
      split: one of the types, or "all".

    Raises:
      UserError: as in `siuo`, or there is no such type.
    """
    if split not in (*HOLISAFE_TYPES, "all"):
        types = ", ".join(HOLISAFE_TYPES)
        raise UserError(f"holisafe: no split {split!r}; choose one of {types}, all")
    place = find(path, "HoliSafe-Bench", "holisafe_bench.json", "data/holisafe_bench.json")
    pictures = Pictures(place, "images", check=check_pictures, missing=missing_pictures)

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        kind = required(value, "type")
        if kind not in HOLISAFE_TYPES:
            raise UserError(f"field 'type' is {short(repr(kind))}, none of {HOLISAFE_TYPES}")
        if split not in (kind, "all"):
            return []
        image = picture_name(value, "image")
        extra = {"subset": kind, "group": f"holisafe-{image}"}
        if value.get("subcategory"):
            extra["subcategory"] = str(value["subcategory"])
        return [
            Draft(
                id=f"holisafe-{name_field(value, 'id')}",
                text=text_field(value, "query"),
                label="unsafe" if kind.endswith("U") else "safe",
                category=text_field(value, "category", blank=True),
                pictures=(image,),
                extra=extra,
            )
        ]

    part = FileRows(place.file, read_json_rows(place.file), drafts, pictures)
    return drafted("holisafe", [part], seed)
