"""VQAv2 (Goyal et al., CVPR 2017) as downloaded: benign questions about COCO pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import required, text_field
from crossguard_jax.data.sources.downloads import (
    Draft,
    FileRows,
    Pictures,
    Place,
    drafted,
    find,
    lookup,
)
from crossguard_jax.io.json_stream import read_json_rows
from crossguard_jax.io.lines import RowError

# The COCO release of each split, as it stands in file and folder names.
RELEASES = {"train": "train2014", "val": "val2014", "test": "test2015"}


def vqav2(
    path: str | Path,
    *,
    split: str = "train",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads the questions, the answers where they are there, and ``RELEASE/`` pictures.

    ``path`` holds ``v2_OpenEnded_mscoco_RELEASE_questions.json``, perhaps
    ``v2_mscoco_RELEASE_annotations.json``, and ``RELEASE/COCO_RELEASE_000000000123.jpg`` (also in
    ``path/images/``), with RELEASE train2014, val2014 or test2015. Every record is safe, of
    category ``benign``; with annotations its provenance has the answer most people gave, its type
    and the ten answers, separated by line breaks.

    Args:
      path: the folder of the download, its archives unpacked or not, or one level from it.
      split: train, val or test.
      missing_pictures: what becomes of a row without its picture (`downloads.MISSING_PICTURES`).
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the questions or the picture folder are missing, or there is no such split.
    """
    if split not in RELEASES:
        raise UserError(f"vqav2: no split {split!r}; choose one of {', '.join(RELEASES)}")
    release = RELEASES[split]
    place = find(path, "VQAv2", f"v2_OpenEnded_mscoco_{release}_questions.json")
    annotations = f"v2_mscoco_{release}_annotations.json"
    answers = _answers(lookup(place.given, "VQAv2", annotations))
    folders = (release, f"images/{release}")
    pictures = Pictures(place, *folders, check=check_pictures, missing=missing_pictures)

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        number, image = required(value, "question_id"), required(value, "image_id")
        if not isinstance(number, int) or not isinstance(image, int):
            ids = f"question_id {short(repr(number))}, image_id {short(repr(image))}"
            raise UserError(f"{ids}: expected two numbers")
        return [
            Draft(
                id=f"vqav2-{split}-{number}",
                text=text_field(value, "question"),
                label="safe",
                category="benign",
                pictures=(f"COCO_{release}_{image:012d}.jpg",),
                extra=answers.get(number, {}),
            )
        ]

    rows = read_json_rows(place.file, "questions")
    return drafted("vqav2", [FileRows(place.file, rows, drafts, pictures)], seed)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _answers(place: Place | None) -> dict[Any, dict[str, str]]:
    """Provenance by question id; nothing when the annotations were not downloaded."""
    answers: dict[Any, dict[str, str]] = {}
    if place is None:
        return answers
    for row, entry in read_json_rows(place.file, "annotations"):
        if isinstance(entry, RowError):
            raise UserError(f"{place.file}, row {row}: {entry.reason}")
        number = entry.get("question_id")
        if not isinstance(number, int):
            raise UserError(f"{place.file}, row {row}: no question_id; download the file again")
        texts = [
            a.get("answer", "") if isinstance(a, dict) else a for a in _list(entry.get("answers"))
        ]
        answers[number] = {
            "answer": str(entry.get("multiple_choice_answer", "")),
            "answer_type": str(entry.get("answer_type", "")),
            "answers": "\n".join(str(text).replace("\n", " ") for text in texts),
        }
    return answers
