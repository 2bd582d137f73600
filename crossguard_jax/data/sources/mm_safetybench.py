"""MM-SafetyBench (Liu et al., ECCV 2024): three pictures to a question; evaluation only."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import name_field, required, text_field
from crossguard_jax.data.sources.downloads import Draft, FileRows, Pictures, Place, drafted, find
from crossguard_jax.data.sources.packed import read_parquet
from crossguard_jax.io import archives
from crossguard_jax.io.json_stream import read_json_rows
from crossguard_jax.io.jsonl import read_json

# The first is spelled so by its authors.
SCENARIOS = (
    *("01-Illegal_Activitiy", "02-HateSpeech", "03-Malware_Generation", "04-Physical_Harm"),
    *("05-EconomicHarm", "06-Fraud", "07-Sex", "08-Political_Lobbying", "09-Privacy_Violence"),
    *("10-Legal_Opinion", "11-Financial_Advice", "12-Health_Consultation", "13-Gov_Decision"),
)
KINDS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
}
"""What is drawn of the key phrase, the scene, both or its letters, and the field of its text."""
SPLITS = ("all", *KINDS, "tiny", *(f"tiny_{kind}" for kind in KINDS))

_Chosen = Callable[[str, str], bool]


def mm_safetybench(
    path: str | Path,
    *,
    split: str = "all",
    missing_pictures: str = "out",
    seed: int | None = None,
    check_pictures: bool = True,
) -> Iterator[Record | Rejected]:
    """Reads the authors' folders, or the Parquet mirror.

    Those are ``data/processed_questions/SCENARIO.json`` with ``data/imgs/SCENARIO/KIND/ID.jpg``
    (also in ``MM-SafetyBench(imgs)/``), and ``data/SCENARIO/KIND.parquet`` with the scenario's
    number left out. Every record is unsafe. ``provenance["subset"]`` is the kind of picture, each
    with a denominator of its own; ``group`` is the question that the three share.

    Args:
      path, missing_pictures, seed, check_pictures: as in `implicit.siuo`.
      split: a kind of picture (SD, SD_TYPO, TYPO), or "all"; after "tiny_", or as "tiny", of the
        168 questions of ``TinyVersion_ID_List.json`` alone.

    Raises:
      UserError: a scenario, the list or all pictures are missing, or there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"mm_safetybench: no split {split!r}; choose one of {', '.join(SPLITS)}")
    kind = split.removeprefix("tiny").removeprefix("_")
    kinds = tuple(KINDS) if kind in ("", "all") else (kind,)
    first = SCENARIOS[0]
    names = (
        *(f"{folder}processed_questions/{first}.json" for folder in ("data/", "")),
        *(f"{folder}{first[3:]}/{kind}.parquet" for folder in ("data/", "") for kind in kinds),
    )
    place = find(path, "MM-SafetyBench", *names)
    chosen = _tiny(place.root) if split.startswith("tiny") else lambda scenario, name: True
    if place.file.suffix == ".parquet":
        parts = _mirrored(place, kinds, chosen, check_pictures)
    else:
        folders = [f"{f}{name}" for f in ("data/", "") for name in ("imgs", "MM-SafetyBench(imgs)")]
        pictures = Pictures(place, *folders, check=check_pictures, missing=missing_pictures)
        parts = _as_published(place, kinds, chosen, pictures)
    return drafted("mm_safetybench", parts, seed)


def _tiny(root: Path) -> _Chosen:
    """Whether a question is one of the small set's."""
    place = find(
        root, "MM-SafetyBench", "TinyVersion_ID_List.json", "data/TinyVersion_ID_List.json"
    )
    content = read_json(place.file)
    try:
        names = {
            entry["Scenario"]: {str(name) for name in entry["Sampled_ID_List"]} for entry in content
        }
    except (TypeError, KeyError) as error:
        raise UserError(f"{place.file}: no list of scenarios and ids; download it again") from error
    return lambda scenario, name: name in names.get(scenario, ())


def _as_published(
    place: Place, kinds: tuple[str, ...], chosen: _Chosen, pictures: Pictures
) -> Iterator[FileRows]:
    for scenario in SCENARIOS:
        file = place.file.with_name(f"{scenario}.json")
        if not archives.is_file(file):
            raise UserError(f"{file}: no such scenario, of {len(SCENARIOS)}; download it again")

        def drafts(
            row: int, value: dict[str, Any], scenario: str = scenario
        ) -> list[Draft | UserError]:
            name = value["id"]
            if not chosen(scenario, name):
                return []
            made: list[Draft | UserError] = []
            for kind in kinds:
                picture = f"{scenario}/{kind}/{name}.jpg"
                made.append(_draft(scenario, kind, name, picture, value, KINDS[kind]))
            return made

        yield FileRows(file, read_json_rows(file, key="id"), drafts, pictures)


def _mirrored(
    place: Place, kinds: tuple[str, ...], chosen: _Chosen, check: bool
) -> Iterator[FileRows]:
    pictures = Pictures(place, ".", check=check)
    for scenario in SCENARIOS:
        for kind in kinds:
            file = place.file.parents[1] / scenario[3:] / f"{kind}.parquet"
            if not archives.is_file(file):
                raise UserError(f"{file}: no such file of the mirror; download it again")

            def drafts(
                row: int, value: dict[str, Any], scenario: str = scenario, kind: str = kind
            ) -> list[Draft | UserError]:
                name = re.sub(r"\.0$", "", name_field(value, "id"))
                if not chosen(scenario, name):
                    return []
                image = required(value, "image")
                data = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(data, bytes):
                    raise UserError(f"column 'image' holds no picture but {short(repr(image))}")
                return [_draft(scenario, kind, name, data, value, "question")]

            yield FileRows(file, read_parquet(file), drafts, pictures)


def _draft(
    scenario: str, kind: str, name: str, picture: str | bytes, row: Mapping[str, Any], field: str
) -> Draft | UserError:
    try:
        text = text_field(row, field)
    except UserError as error:  # the question may be good for the other kinds
        return error
    question = f"mm_safetybench-{scenario}-{name}"
    return Draft(
        id=f"{question}-{kind}",
        text=text,
        label="unsafe",
        category=scenario,
        pictures=(picture,),
        extra={"subset": kind, "group": question},
    )
