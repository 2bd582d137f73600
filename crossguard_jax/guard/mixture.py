"""A configuration's sources as ArrayRecord datasets: read once, then opened at random."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data import sources
from crossguard_jax.data.builders import RecordSource, open_dataset, write_dataset
from crossguard_jax.data.records import LeftOut, Record, Rejected
from crossguard_jax.data.sources.catalogue import refuse_training
from crossguard_jax.guard.outlines import (
    Outline,
    Selected,
    contents_of,
    outlines,
    read_outlines,
    selected,
)
from crossguard_jax.hf.trained import TrainedRow
from crossguard_jax.io import jsonl
from crossguard_jax.io.files import noting, unchanged
from crossguard_jax.io.jsonl import read_json
from crossguard_jax.runtime import processes, remote

Reader = Callable[..., Iterable[Record | Rejected]]
Readers = Mapping[str, Reader]
"""Readers beside `data.sources`' own, called as ``reader(path, split=..., limit=...)``; their first
rows are a random draw."""

TENTHS = ("", "without", "only")
"""All rows of a source; those without the tenth that is held out; that tenth alone."""


def open_sources(
    specs: ConfigDict, folder: str | Path, readers: Readers, seed: int = 0
) -> dict[str, RecordSource]:
    """Every source with a weight above 0, as an open dataset in ``folder``.

    A source that was written before is opened as it is, if its settings are the same and so is
    every file that it was read from, or that was looked for and not found. Bad rows go to
    ``NAME.rejected.jsonl``, and how many there are is said every time. The first process writes;
    the others wait.

    Args:
        specs: the configuration's sources.
        folder: of the datasets.
        readers: beside `data.sources`' own, by the name that a source may use.
        seed: draws the rows of a source that has a limit.

    Raises:
        UserError: a reader's own, a source without one good row or one that no model may learn
            from (`refuse_training`), or a ``tenth`` that is none of `TENTHS`.
    """
    folder = Path(folder)
    weighted = {name: spec for name, spec in specs.items() if spec.weight > 0}
    for spec in weighted.values():
        refuse_training(spec.reader, spec.split)

    def write() -> None:
        for name, spec in weighted.items():
            _write(name, spec, _settings(spec, readers, seed), folder, readers)

    processes.by_first(write)
    remote.share(folder)
    opened = {name: open_dataset(folder, name, spec.split) for name, spec in weighted.items()}
    return {
        name: Selected(
            source,
            range(len(source)),
            read_outlines(folder / f"{name}.rows.jsonl", contents_hash(folder, name)),
        )
        for name, source in opened.items()
    }


def answered(
    opened: Mapping[str, RecordSource], answers: Collection[str]
) -> dict[str, RecordSource]:
    """What `open_sources` opened, without rows whose label is none of ``answers``.

    How many those are is said.

    Raises:
        UserError: a source that has no other.
    """
    return {name: _answered(name, source, answers) for name, source in opened.items()}


def fitting(
    opened: Mapping[str, RecordSource], harmless: str, fits: Callable[[str], bool]
) -> dict[str, RecordSource]:
    """Sources without the rows of which a part alone may be learned from, and may not say so.

    What is harmless is so in every part. How many are left out is said.

    Args:
        opened: by name.
        harmless: the label of rows that stay, however long.
        fits: whether a text leaves nothing out.

    Raises:
        UserError: a source that has no other.
    """
    kept: dict[str, RecordSource] = {}
    for name, source in opened.items():
        rows = [i for i, r in enumerate(outlines(source)) if r.label == harmless or fits(r.text)]
        what = f"{len(source) - len(rows):,} rows are too long to be learned from whole"
        if not rows:
            raise UserError(f"{name}: all {what}; raise data.max_length")
        if len(rows) < len(source) and processes.is_first():
            print(f"{name}: {what}; they are left out (data.max_length)")
        kept[name] = source if len(rows) == len(source) else selected(source, rows)
    return kept


def _answered(name: str, source: RecordSource, answers: Collection[str]) -> RecordSource:
    labels = [outline.label for outline in outlines(source)]
    rows = [i for i, label in enumerate(labels) if label in answers]
    if len(rows) == len(source):
        return source
    others = Counter(label for label in labels if label not in answers)
    shown = ", ".join(f"{n:,} {short(repr(label))}" for label, n in others.most_common(5))
    what = f"{len(source) - len(rows):,} rows have a label that is no answer ({shown})"
    if not rows:
        raise UserError(f"{name}: all {what}; the answers are {', '.join(answers)}")
    if processes.is_first():
        print(f"{name}: {what}; they are left out")
    return selected(source, rows)


def _settings(spec: ConfigDict, readers: Readers, seed: int) -> dict[str, Any]:
    """What decides the rows, the files aside: the weight does not, the seed only where it draws."""
    settings = {k: v for k, v in json.loads(spec.to_json()).items() if k != "weight"}
    return settings | ({"seed": seed} if spec.limit and spec.reader not in readers else {})


def _current(note: Path, rows: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a dataset is what its settings and its files would give now."""
    try:
        made = read_json(note) if note.exists() else {}
    except UserError:  # a failing disk's; it is written anew
        return False
    whole = isinstance(made, dict) and made.keys() >= {"settings", "files", "contents"}
    if not whole or not isinstance(made["files"], dict) or not rows.exists():
        return False
    return made["settings"] == settings and unchanged(made["files"])


def _write(
    name: str, spec: ConfigDict, settings: dict[str, Any], folder: Path, readers: Readers
) -> None:
    note = folder / f"{name}.settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / f"{name}.rows.jsonl"
    current = _current(note, listed, settings)
    with LeftOut(folder / f"{name}.rejected.jsonl", keep=current) as left_out:
        if not current:
            note.unlink(missing_ok=True)
            with noting() as files:
                rows = left_out.accepted(_rows(spec, readers, settings.get("seed")))
                kept = (row for row in rows if _asked_for(name, spec, row))
                limited = islice(kept, spec.limit) if spec.limit else kept
                rows_listed: list[Outline] = []
                write_dataset({spec.split: _listing(limited, rows_listed)}, folder, name)
            jsonl.write_atomic(listed, b"".join(outline.line() for outline in rows_listed))
            made = {"settings": settings, "files": files, "contents": contents_of(rows_listed)}
            jsonl.write_atomic(note, json.dumps(made, indent=1))
    for line in left_out.lines():
        print(line if line.startswith(" ") else f"{name}: {line}")


def _asked_for(name: str, spec: ConfigDict, record: Record) -> bool:
    """Whether a record has a label that is asked for, and lies in the part that is."""
    tenth = spec.get("tenth", "")
    if tenth not in TENTHS:
        raise UserError(f"{name}: tenth {tenth!r} is none of {', '.join(map(repr, TENTHS))}")
    if spec.labels and record.label not in spec.labels:
        return False
    return not tenth or in_tenth(record) == (tenth == "only")


def in_tenth(record: Record) -> bool:
    """Whether a record is of the tenth of its source that is held out, wherever it is read.

    Records of one ``provenance["group"]`` go together, or else those of one picture (VLGuard's two
    instructions, a forged row and its benign twin), or of one text.
    """
    group = record.provenance.get("group", "").encode()
    digest = hashlib.sha256(group or record.image or record.text.encode(errors="replace")).digest()
    return digest[0] * 10 < 256


def _listing(records: Iterable[Record], listed: list[Outline]) -> Iterator[Record]:
    """Passes records on, and lists their outlines."""
    for record in records:
        listed.append(Outline.of(record))
        yield record


def contents_hash(folder: str | Path, name: str) -> str:
    """SHA-256 over the records of a source that `open_sources` opened in ``folder``."""
    return json.loads((Path(folder) / f"{name}.settings.json").read_text())["contents"]


def listed_rows(opened: Mapping[str, RecordSource]) -> list[TrainedRow]:
    """The rows of sources, as the card of a model has them that learned from all."""
    return [
        TrainedRow(outline.id, name, outline.content)
        for name, source in opened.items()
        for outline in outlines(source)
    ]


def _rows(spec: ConfigDict, readers: Readers, seed: int | None) -> Iterator[Record | Rejected]:
    if spec.reader in readers:
        # More than the limit, since what is not wanted is dropped.
        limit = spec.limit * (2 if spec.labels or spec.get("tenth") == "without" else 1)
        limit *= 20 if spec.get("tenth") == "only" else 1
        return iter(readers[spec.reader](spec.path, split=spec.split, limit=limit))
    options: dict[str, Any] = {"seed": seed}
    if sources.has_option(spec.reader, "split"):
        options["split"] = spec.split
    return sources.read(spec.reader, spec.path, **options)
