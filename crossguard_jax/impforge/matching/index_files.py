"""The files of an index of pictures, which survive being killed at any moment.

Two tables, ``embeddings.bin`` (unit vectors, one after the other) and ``pictures.jsonl`` (what each
of them is of), only grow. A batch's vectors are on the disk before its rows are written, so that
every row has its vector; what lies behind the last such row is cut off at the next start. Of a
picture that was changed there is a row for each time that it was embedded, and the last one counts.
``index.json`` says what they were made with, ``rejected.jsonl`` what could not be embedded.
"""

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Int
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import Rejected
from crossguard_jax.io import jsonl

FORMAT = 1
DTYPES = ("float16", "float32")
VECTORS, PICTURES = "embeddings.bin", "pictures.jsonl"
META, REJECTED = "index.json", "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class IndexedPicture:
    """A row of the index.

    Attributes:
        id: the picture's in its library.
        caption: what it shows; "" where nobody has said.
        digest: of the encoded file, as `digest_of` gives it.
        stamp: the picture's when it was embedded.
    """

    id: str
    caption: str
    digest: str
    stamp: str = ""


@dataclass
class BuildCounts:
    """What a build met in the library.

    Attributes:
        added: pictures embedded now.
        kept: pictures that were in the index already.
        changed: pictures that were, and have another file or caption by now; among the added.
        rejected: pictures that cannot be read, or share an id with an earlier one.
        gone: pictures of the index that the library has no more; their rows stay.
    """

    added: int = 0
    kept: int = 0
    changed: int = 0
    rejected: int = 0
    gone: int = 0


def digest_of(image: bytes) -> str:
    """Tells one encoded file from another."""
    return hashlib.blake2b(image, digest_size=16).hexdigest()


class IndexWriter:
    """The one process that adds to an index.

    Attributes:
        indexed: what the pictures were that are in it, by id; None where one is on its way.
        counts: what has been met so far.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], rebuild: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.meta, self.counts = folder, meta, BuildCounts()
        self._vectors = (folder / VECTORS).open("ab")
        try:
            self._claim(rebuild)
            self.indexed = self._recover()
        except BaseException:
            self._vectors.close()
            raise
        self._before = len(self.indexed)
        # Each pass goes through the whole library, and says anew what it could not use.
        (folder / REJECTED).unlink(missing_ok=True)
        self._rejected = jsonl.JsonlWriter(folder / REJECTED)
        self._rows = jsonl.JsonlWriter(folder / PICTURES)

    def _claim(self, rebuild: bool) -> None:
        try:
            fcntl.flock(self._vectors, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{self.folder}: another process builds this index; wait for it"
            ) from error
        if not rebuild:
            before = read_meta(self.folder)
            if before is not None:
                _refuse_other(self.folder, before, self.meta)
                return
            if self._vectors.tell():
                raise UserError(f"{self.folder}: an index without its {META}; rebuild it")
        # Emptied before it is relabelled: no vector is ever under another model's name.
        self._vectors.truncate(0)
        (self.folder / PICTURES).write_bytes(b"")
        self._write_meta(0)

    def _recover(self) -> "dict[str, IndexedPicture | None]":
        """Cuts off what a kill left without its other half; returns the rest, the last of an id."""
        path = self.folder / PICTURES
        path.touch()
        ends = line_ends(path)
        n = min(len(ends), count_vectors(self.folder, self.meta))
        self._vectors.truncate(n * _width(self.meta))
        os.truncate(path, ends[n - 1] if n else 0)
        self._rows_before = n
        indexed: dict[str, IndexedPicture | None] = {}
        for row, value in jsonl.read_jsonl(path):
            if isinstance(value, jsonl.RowError) or "id" not in value:
                raise UserError(f"{path}, row {row}: damaged; rebuild the index")
            indexed[value["id"]] = IndexedPicture(**value)
        return indexed

    def unknown(self, pictures: Iterable[Picture | Rejected]) -> Iterator[Picture]:
        """The pictures that are to be embedded."""
        for picture in pictures:
            if isinstance(picture, Rejected):
                self.reject(picture, picture.reason)
            elif picture.id not in self.indexed:
                self.indexed[picture.id] = None
                yield picture
            elif (before := self.indexed[picture.id]) is None or _unchanged(picture, before):
                self.counts.kept += 1
            else:
                self.indexed[picture.id] = None
                self.counts.changed += 1
                yield picture

    def is_new(self, picture: IndexedPicture) -> bool:
        """Whether a picture that has been embedded elsewhere is to be added; it counts it."""
        before = self.indexed.get(picture.id)
        if before is not None and (before.digest, before.caption) == (
            picture.digest,
            picture.caption,
        ):
            self.counts.kept += 1
            return False
        self.counts.changed += before is not None
        self.indexed[picture.id] = picture
        return True

    def reject(self, what: Picture | Rejected, reason: str) -> None:
        """Says why something of the library is not in the index."""
        self.counts.rejected += 1
        if isinstance(what, Rejected):
            file, row, id = what.file, what.row, ""
        else:
            where = what.provenance
            file, row, id = where.get("file", ""), int(where.get("row", 1)), what.id
        self._rejected.append({"file": file, "row": row, "id": id, "reason": reason})

    def append(
        self, batch: list[tuple[Picture, IndexedPicture]], vectors: Array | np.ndarray
    ) -> None:
        """Adds a batch, filled up or not behind its rows; waits for the device and the disk.

        What is not a number is rejected: nothing could be compared with it.
        """
        if not batch:
            return
        values = np.asarray(vectors, np.float32)[: len(batch)]
        finite = np.asarray(np.isfinite(values).all(axis=1))
        self._vectors.write(values[finite].astype(self.meta["dtype"]).tobytes())
        self._vectors.flush()
        os.fsync(self._vectors.fileno())
        for (picture, row), good in zip(batch, finite, strict=True):
            if good:
                self._rows.append(asdict(row))
                self.counts.added += 1
            else:
                self.reject(picture, "the model's vector of it is not finite")

    def finish(self) -> None:
        """Says that all of the library is in the index."""
        self.counts.gone = max(self._before - self.counts.kept - self.counts.changed, 0)
        self._rows.sync()
        self._write_meta(self._rows_before + self.counts.added)

    def _write_meta(self, count: int) -> None:
        text = json.dumps(self.meta | {"count": count}, indent=2) + "\n"
        jsonl.write_atomic(self.folder / META, text)

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._rows.close()
        self._rejected.close()
        self._vectors.close()


def _unchanged(picture: Picture, before: IndexedPicture) -> bool:
    """Whether a picture is what was embedded; its file is read only if nothing else tells."""
    if picture.caption != before.caption:
        return False
    if picture.stamp and picture.stamp == before.stamp:
        return True
    try:
        return digest_of(picture.read()) == before.digest
    except UserError:
        return False  # the attempt to embed it says why


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What `index.json` says; None where there is none.

    Raises:
        UserError: the file is something else, or of another format.
    """
    path = folder / META
    if not path.exists():
        return None
    meta = jsonl.read_json(path)
    fields = {"format", "model", "dimension", "dtype", "count"}
    if not isinstance(meta, dict) or not fields <= meta.keys() or meta["dtype"] not in DTYPES:
        raise UserError(f"{path}: not an index of pictures; give another folder")
    if meta["format"] != FORMAT:
        raise UserError(f"{folder}: an index of format {meta['format']}; rebuild it")
    return meta


def _refuse_other(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in ("model", "dimension", "dtype") if before[name] != now[name]]
    if changed:
        what = "; ".join(
            f"{name}: {str(before[name])[:16]}, now {str(now[name])[:16]}" for name in changed
        )
        raise UserError(
            f"{folder}: the index is stale ({what}); rebuild it, or give another folder"
        )


def _width(meta: dict[str, Any]) -> int:
    """Bytes of a vector."""
    return meta["dimension"] * np.dtype(meta["dtype"]).itemsize


def count_vectors(folder: Path, meta: dict[str, Any]) -> int:
    """Whole vectors in an index's file; 0 without one."""
    path = folder / VECTORS
    return path.stat().st_size // _width(meta) if path.exists() else 0


def line_ends(path: Path) -> Int[np.ndarray, "N"]:
    """Where each whole line of a file ends, in bytes."""
    if not path.exists():
        return np.zeros(0, np.int64)
    with path.open("rb") as file:
        lengths = (len(line) for line in file if line.endswith(b"\n"))
        return np.fromiter(itertools.accumulate(lengths), np.int64)
