"""Records in TFDS folders of ArrayRecord files: written once, read at random, no TensorFlow."""

import contextlib
import json
import logging
import operator
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record
from crossguard_jax.io.progress import Progress


@runtime_checkable
class RecordSource(Protocol):
    """Records by position: a list of them, or an open dataset."""

    def __len__(self) -> int:
        """The number of records."""

    def __getitem__(self, index: SupportsIndex, /) -> Record:
        """The record at a position."""


def write_dataset(
    splits: Mapping[str, Iterable[Record]], folder: str | Path, name: str
) -> dict[str, int]:
    """Writes a source, all its splits at once, in the order given; an older one is replaced.

    Plain TFDS opens the result too: ``tfds.builder_from_directory(folder/crossguard/NAME/2.0.0)``.

    Args:
      splits: the records of each split, such as ``train`` and ``test``; read once, one by one.
      folder: the data folder, shared by all sources.
      name: implicit, explicit, typographic, benign, or any other name in lower case.

    Returns:
      The number of records written, by split.

    Raises:
      UserError: a split has no name that TFDS takes, is empty, or two of its records have one id.
    """
    import tensorflow_datasets as tfds

    from crossguard_jax.data import tfds_builder

    for split in splits:
        if not re.fullmatch(r"\w+", split):
            raise UserError(f"{name}: split {split!r}: letters, digits and underscores, like train")
    counted = {split: _Counted(records, f"{name}/{split}") for split, records in splits.items()}
    config = tfds_builder.Crossguard.builder_configs.get(name)
    target = Path(folder) / "crossguard" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved there when whole, so that a failure spoils no older one.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch, _quiet(tfds):
        builder = tfds_builder.Crossguard(
            splits=counted,
            data_dir=scratch,
            file_format="array_record",
            config=config or tfds.core.BuilderConfig(name=name, description=name),
        )
        builder.download_and_prepare(
            download_dir=f"{scratch}/downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
        if target.exists():
            shutil.rmtree(target)
        os.replace(Path(scratch) / "crossguard" / name, target)
    return {split: records.count for split, records in counted.items()}


def open_dataset(folder: str | Path, name: str, split: str) -> "ArrayRecordSource":
    """Opens a split that ``write_dataset`` wrote; nothing is read until a record is asked for.

    Raises:
      UserError: it is not there; the message says what is.
    """
    import tensorflow_datasets as tfds

    root = Path(folder) / "crossguard" / name
    versions = sorted(path.parent for path in root.glob("*/dataset_info.json"))
    if not versions:
        there = sorted({p.parts[-3] for p in root.parent.glob("*/*/dataset_info.json")})
        raise UserError(f"{folder}: no source {name!r} in it (there are {', '.join(there)})")
    builder = tfds.builder_from_directory(versions[-1])
    if split not in builder.info.splits:
        there = sorted(builder.info.splits)
        raise UserError(f"{root}: no split {split!r} in it (there are {', '.join(there)})")
    skip = {"image": tfds.decode.SkipDecoding()}
    rows = builder.as_data_source(split, decoders=skip)
    return ArrayRecordSource(rows, f"{root}, {split}", Path(folder) / f"{name}.settings.json")


class ArrayRecordSource:
    """Random access to the records of one split."""

    def __init__(self, rows: Any, where: str, note: Path):
        """Wraps a TFDS data source with the features of ``tfds_builder``.

        Args:
          rows: the data source.
          where: what errors call it.
          note: the file without which a recipe writes the source anew.
        """
        self._rows, self._where, self._note = rows, where, note

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Record:
        """The record at ``index``, bit for bit as it was written.

        Raises:
          UserError: the file is damaged there.
        """
        try:
            row = self._rows[index]
        except RuntimeError as error:  # by ArrayRecord's checksums
            raise UserError(
                f"{self._where}: record {operator.index(index)} cannot be read ({short(error)}); "
                f"remove {self._note}, and it is written anew"
            ) from error
        return Record(
            id=row["id"].decode(),
            images=tuple(filter(None, (row["image"], *row.get("more_images", ())))),
            text=row["text"].decode(),
            label=row["label"].decode(),
            category=row["category"].decode(),
            source=row["source"].decode(),
            provenance=json.loads(row["provenance"]),
        )


class _Counted:
    """The records of a split, counted and shown as they pass; their ids must differ."""

    def __init__(self, records: Iterable[Record], what: str):
        self.count = 0
        self._records, self._what = records, what

    def __iter__(self) -> Iterator[Record]:
        seen: set[str] = set()
        with Progress(f"writing {self._what}") as progress:
            for record in self._records:
                if record.id in seen:
                    raise UserError(f"{self._what}: two records are called {record.id!r}; rename")
                seen.add(record.id)
                self.count += 1
                progress.update()
                yield record
        if not self.count:
            raise UserError(f"{self._what}: no records to write; see the rejected rows")


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS's bars, its notes on downloads and its warnings about new names to itself."""
    log = logging.getLogger("absl")
    tfds.display_progress_bar(False)
    log.addFilter(_only_errors)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        log.removeFilter(_only_errors)
        tfds.display_progress_bar(True)


def _only_errors(line: logging.LogRecord) -> bool:
    return line.levelno >= logging.ERROR
