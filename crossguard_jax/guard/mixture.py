"""A configuration's sources as ArrayRecord datasets: read once, then opened at random."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.builders import RecordSource, open_dataset, write_dataset
from crossguard_jax.data.records import Record, Rejected, accepted
from crossguard_jax.io import jsonl

Reader = Callable[..., Iterable[Record | Rejected]]
Readers = Mapping[str, Reader]
"""Readers beside `data.sources`' own, called as ``reader(path, split=..., limit=...)``."""


def open_sources(
    specs: ConfigDict, folder: str | Path, readers: Readers
) -> dict[str, RecordSource]:
    """Every source with a weight above 0, as an open dataset in ``folder``.

    A source that was written before with the same settings is opened as it is. Bad rows go to
    ``NAME.rejected.jsonl``. Process 0 writes; the others wait.

    Raises:
        UserError: a reader's own, or a source without one good row.
    """
    folder = Path(folder)
    wanted = {name: spec for name, spec in specs.items() if spec.weight > 0}
    if jax.process_index() == 0:
        for name, spec in wanted.items():
            _write(name, spec, folder, readers)
    return {name: _wait_and_open(name, wanted[name], folder) for name in wanted}


def _settings(spec: ConfigDict) -> dict[str, Any]:
    """What decides the rows; the weight does not. A file is told by its bytes, not its name."""
    settings = {k: v for k, v in json.loads(spec.to_json()).items() if k != "weight"}
    path = Path(spec.path)
    if path.is_file():
        with path.open("rb") as file:
            settings["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return settings


def _write(name: str, spec: ConfigDict, folder: Path, readers: Readers) -> None:
    note = folder / f"{name}.settings.json"
    settings = json.dumps(_settings(spec), indent=2)
    if note.exists() and note.read_text() == settings:
        return
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    rejected = folder / f"{name}.rejected.jsonl"
    rejected.unlink(missing_ok=True)
    with jsonl.JsonlWriter(rejected) as writer:
        rows = accepted(_rows(spec, readers), writer)
        kept = (row for row in rows if not spec.labels or row.label in spec.labels)
        limited = islice(kept, spec.limit) if spec.limit else kept
        write_dataset({spec.split: limited}, folder, name)
    jsonl.write_atomic(note, settings)


def _rows(spec: ConfigDict, readers: Readers) -> Iterator[Record | Rejected]:
    if spec.reader in readers:
        # Twice the limit, since a filter on labels may drop half.
        wanted = spec.limit * (2 if spec.labels else 1)
        return iter(readers[spec.reader](spec.path, split=spec.split, limit=wanted))
    options = {} if spec.reader == "table" else {"split": spec.split}
    return sources.read(spec.reader, spec.path, **options)


def _wait_and_open(
    name: str, spec: ConfigDict, folder: Path, patience: float = 3600.0
) -> RecordSource:
    note, deadline = folder / f"{name}.settings.json", time.monotonic() + patience
    while not note.exists() or note.read_text() != json.dumps(_settings(spec), indent=2):
        if time.monotonic() > deadline:
            raise UserError(f"{note}: process 0 has not written it; is {folder} shared by all?")
        time.sleep(1.0)
    return open_dataset(folder, name, spec.split)
