"""VQAv2 (Goyal et al., CVPR 2017) as downloaded: benign questions about COCO pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import (
    first_folder,
    picture,
    records_of,
    required,
    text_field,
)
from crossguard_jax.io.jsonl import read_json
from crossguard_jax.io.lines import Row, RowError

# The COCO release of each split, as it stands in file and folder names.
RELEASES = {"train": "train2014", "val": "val2014", "test": "test2015"}


def vqav2(
    path: str | Path,
    *,
    split: str = "train",
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
      path: the folder of the download.
      split: train, val or test.
      seed: draws the order of the rows; None keeps the file's.
      check_pictures: decode each picture here, so that a damaged one is a rejected row.

    Raises:
      UserError: the questions or the picture folder are missing, or there is no such split.
    """
    if split not in RELEASES:
        raise UserError(f"vqav2: no split {split!r}; choose one of {', '.join(RELEASES)}")
    root, release = Path(path), RELEASES[split]
    file = root / f"v2_OpenEnded_mscoco_{release}_questions.json"
    answers = _answers(root / f"v2_mscoco_{release}_annotations.json")
    pictures = first_folder(root, release, f"images/{release}")

    def make(row: int, value: dict[str, Any]) -> list[Record]:
        number, image = required(value, "question_id"), required(value, "image_id")
        if not isinstance(number, int) or not isinstance(image, int):
            ids = f"question_id {short(repr(number))}, image_id {short(repr(image))}"
            raise UserError(f"{ids}: expected two numbers")
        name = f"COCO_{release}_{image:012d}.jpg"
        return [
            Record(
                id=f"vqav2-{split}-{number}",
                images=(picture(pictures / name, check_pictures),),
                text=text_field(value, "question"),
                label="safe",
                category="benign",
                source="vqav2",
                provenance={"file": str(file), "row": str(row)} | answers.get(number, {}),
            )
        ]

    return records_of(file, _questions(file), make, seed)


def _questions(file: Path) -> list[Row]:
    content = read_json(file)
    questions = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(questions, list):
        raise UserError(f"{file}: no list called 'questions' in it; download the file again")
    return [
        (row, value if isinstance(value, dict) else RowError("the question is not an object"))
        for row, value in enumerate(questions, start=1)
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _answers(file: Path) -> dict[Any, dict[str, str]]:
    """Provenance by question id; nothing when the annotations were not downloaded."""
    if not file.exists():
        return {}

    def shrink(entry: dict[str, Any]) -> Any:
        # Parsed whole, the 4.4 million answer objects of the training split take gigabytes.
        if "answer" in entry:
            return str(entry.get("answer", "")).replace("\n", " ")
        if "question_id" in entry:
            texts = {
                "answer": str(entry.get("multiple_choice_answer", "")),
                "answer_type": str(entry.get("answer_type", "")),
                "answers": "\n".join(map(str, _list(entry.get("answers")))),
            }
            return entry["question_id"], texts
        return entry

    content = read_json(file, object_hook=shrink)
    try:
        return dict(content["annotations"])
    except (TypeError, ValueError, KeyError):
        raise UserError(
            f"{file}: no list of answers called 'annotations' in it; download the file again"
        ) from None
