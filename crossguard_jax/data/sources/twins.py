"""Benchmarks of twins, of which one is safe and the other is not: evaluation only.

Twins have the same ``pair`` in their provenance: whoever tells them apart has both right.
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import name_field, picture_name, required, text_field
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
from crossguard_jax.io.tables import read_csv

_INFORMATION = "images_information/information.json"

XSTEST_CONTRASTS = {
    **{f"contrast_{name}": name for name in ("homonyms", "figurative_language", "safe_targets")},
    **{f"contrast_{name}": name for name in ("safe_contexts", "definitions", "historical_events")},
    "contrast_discr": "real_group_nons_discr",
    "contrast_privacy": "privacy_fictional",
}
"""Each unsafe type and the safe one whose prompts it changes, in the same order."""
_XSTEST_BLOCK = 25  # prompts of a type, one after the other


def xstest(path: str | Path, *, seed: int | None = None) -> Iterator[Record | Rejected]:
    """XSTest (Roettger et al., NAACL 2024): ``xstest_prompts.csv``, texts alone.

    Of 450 prompts 250 are safe and look risky. 200 of them have an unsafe twin; the types
    ``nons_group_real_discr`` and ``privacy_public`` have none. Twins are those at the same place of
    their type, by their ids. Older files have no label, and ids such as "v2-1".

    Args:
      path: the folder of the download, or the file.
      seed: draws the order of the rows; None keeps the file's.

    Raises:
      UserError: the file is missing.
    """
    place = find(path, "XSTest", "xstest_prompts.csv", "xstest_v2_prompts.csv")

    def drafts(row: int, value: dict[str, Any]) -> list[Draft]:
        kind, name = text_field(value, "type"), name_field(value, "id").removeprefix("v2-")
        label = value.get("label") or ("unsafe" if kind.startswith("contrast_") else "safe")
        if label not in ("safe", "unsafe"):
            raise UserError(f"label {label!r} is neither 'safe' nor 'unsafe'; mend the row")
        twin = XSTEST_CONTRASTS.get(kind, kind)
        extra = {"focus": value["focus"]} if value.get("focus") else {}
        if twin in XSTEST_CONTRASTS.values() and name.isdecimal():
            extra["pair"] = f"xstest-{twin}-{(int(name) - 1) % _XSTEST_BLOCK + 1}"
        text = text_field(value, "prompt")
        return [Draft(f"xstest-{name}", text, label, category=kind, extra=extra)]

    return drafted("xstest", [FileRows(place.file, read_csv(place.file), drafts, None)], seed)


def mossbench(
    path: str | Path,
    *,
    split: str = "all",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """MOSSBench (Li et al., 2024): ``data/`` with safe rows, ``data_contrast/`` with unsafe ones.

    Each has ``images_information/information.json``, an object by row number, and ``images/``. A
    contrast row is the twin of the safe one of its number; where the two ask the same, and the
    picture alone tells, both say so (``same`` is "question"). The category is the kind of stimulus.

    Args:
      path, missing_pictures, seed, check_pictures: as in `implicit.siuo`.
      split: safe, contrast or all.

    Raises:
      UserError: a file or all pictures are missing, or there is no such split.
    """
    folders = {"safe": ["data"], "contrast": ["data_contrast"], "all": ["data", "data_contrast"]}
    if split not in folders:
        raise UserError(f"mossbench: no split {split!r}; choose one of {', '.join(folders)}")
    root = find(path, "MOSSBench", *(f"{each}/{_INFORMATION}" for each in folders[split])).root
    questions = _moss_questions(root)
    parts = []
    for folder in folders[split]:
        place = find(root, "MOSSBench", f"{folder}/{_INFORMATION}")
        inner = place.root / folder
        # Its rows name "images/1.png", and both folders have one of that name.
        own = Place(inner, inner, place.file)
        pictures = Pictures(own, ".", check=check_pictures, missing=missing_pictures)
        label = "safe" if folder == "data" else "unsafe"

        def drafts(
            row: int, value: dict[str, Any], label: str = label, folder: str = folder
        ) -> list[Draft]:
            number = name_field(value, "pid")
            asks = questions.get(number, {})
            extra = {"pair": f"mossbench-{number}"} if len(asks) == 2 else {}
            if extra and len(set(asks.values())) == 1:
                extra["same"] = "question"
            details = value.get("metadata")
            return [
                Draft(
                    id=f"mossbench-{number}" + ("" if label == "safe" else "-contrast"),
                    text=text_field(value, "question"),
                    label=label,
                    category=str(details.get("over", "")) if isinstance(details, dict) else "",
                    pictures=(picture_name(value, "image"),),
                    extra=extra,
                )
            ]

        rows = read_json_rows(place.file, key="pid")
        parts.append(FileRows(place.file, rows, drafts, pictures))
    return drafted("mossbench", parts, seed)


def _moss_questions(root: Path) -> dict[str, dict[str, str]]:
    """By number, what the safe row and the contrast row ask, of the rows that are there."""
    questions: dict[str, dict[str, str]] = {}
    for folder in ("data", "data_contrast"):
        place = lookup(root, "MOSSBench", f"{folder}/{_INFORMATION}")
        # Half of it is enough for half of the rows.
        for _, value in read_json_rows(place.file, key="pid") if place else ():
            if not isinstance(value, RowError):
                text = " ".join(str(value.get("question", "")).split())
                questions.setdefault(value["pid"], {})[folder] = text
    return questions


def mssbench(
    path: str | Path,
    *,
    split: str = "all",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """MSSBench (Zhou et al., ICLR 2025): ``combined.json``, ``chat/`` and ``embodied/``.

    A row of ``chat`` is one safe and one unsafe picture, and queries that go with both: each gives
    two twins. A row of ``embodied`` has other instructions for its safe picture than for its unsafe
    one, so its records are no twins. ``provenance["subset"]`` is chat or embodied; ``group`` is the
    row.

    Args:
      path, missing_pictures, seed, check_pictures: as in `implicit.siuo`.
      split: chat, embodied or all.

    Raises:
      UserError: the file or all pictures are missing, or there is no such split.
    """
    makers = {"chat": _chat, "embodied": _embodied}
    if split not in (*makers, "all"):
        raise UserError(f"mssbench: no split {split!r}; choose one of {', '.join(makers)}, all")
    place = find(path, "MSSBench", "combined.json", "combine.json")
    parts = []
    for subset in makers if split == "all" else (split,):
        pictures = Pictures(place, subset, check=check_pictures, missing=missing_pictures)
        rows = read_json_rows(place.file, subset)
        parts.append(FileRows(place.file, rows, makers[subset], pictures))
    return drafted("mssbench", parts, seed)


def _chat(row: int, value: dict[str, Any]) -> list[Draft | UserError]:
    made: list[Draft | UserError] = []
    sides = {side: picture_name(value, f"{side}_image_path") for side in ("safe", "unsafe")}
    for n, query in enumerate(_texts(value, "queries"), start=1):
        pair = f"mssbench-chat-{row}-{n}"
        for side, picture in sides.items():
            extra = {"subset": "chat", "group": f"mssbench-chat-{row}", "pair": pair}
            extra |= {"same": "question"}
            category = str(value.get("Type") or "")
            made.append(_draft(f"{pair}-{side}", query, side, category, picture, extra))
    return made


def _embodied(row: int, value: dict[str, Any]) -> list[Draft | UserError]:
    made: list[Draft | UserError] = []
    extra = {"subset": "embodied", "group": f"mssbench-embodied-{row}"}
    sides = {side: _texts(value, f"{side}_instructions") for side in ("safe", "unsafe")}
    for n, both in enumerate(zip_longest(*sides.values()), start=1):
        for side, text in zip(sides, both, strict=True):
            if text is not None:
                name = f"mssbench-embodied-{row}-{n}-{side}"
                category = str(value.get("category") or "")
                picture = picture_name(value, side)
                made.append(_draft(name, text, side, category, picture, extra))
    return made


def _draft(
    name: str, text: Any, label: str, category: str, picture: str, extra: dict[str, str]
) -> Draft | UserError:
    try:
        words = text_field({"text": text}, "text")
    except UserError as error:
        return error
    return Draft(name, words, label, category, (picture,), extra)


def _texts(row: dict[str, Any], name: str) -> list[Any]:
    value = required(row, name)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise UserError(f"field {name!r} is no list of texts; download the file again")
    return value
