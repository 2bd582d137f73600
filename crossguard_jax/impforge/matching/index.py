"""A picture library embedded once and kept on disk, searched exactly (ImpForge, stage 1)."""

import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import Rejected
from crossguard_jax.impforge.matching.index_files import (
    DTYPES,
    FORMAT,
    META,
    PICTURES,
    VECTORS,
    BuildCounts,
    IndexedPicture,
    IndexWriter,
    count_vectors,
    digest_of,
    line_ends,
    read_meta,
)
from crossguard_jax.impforge.matching.topk import top_k
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.io import images
from crossguard_jax.io.progress import Progress

__all__ = ["BuildCounts", "IndexedPicture", "PictureIndex", "build_index", "top_k"]

_T = TypeVar("_T")
_R = TypeVar("_R")


class PictureIndex:
    """An embedded library, open for searching.

    Args:
        folder: where `build_index` put it.

    Attributes:
        embeddings: [N, D] unit vectors, a memory map.
        meta: what `index.json` says: ``format, model, dimension, dtype, count``.

    Raises:
        UserError: there is no index, or it has lost rows.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        meta = read_meta(self.folder)
        if meta is None:
            raise UserError(f"{folder}: no index of pictures (no {META}); build it first")
        self.meta = meta
        self._ends = line_ends(self.folder / PICTURES)
        n = min(len(self._ends), count_vectors(self.folder, meta))
        if n < meta["count"]:
            raise UserError(
                f"{folder}: the index has lost rows ({n:,} of {meta['count']:,}); build it again"
            )
        shape = (n, meta["dimension"])
        self.embeddings: np.ndarray = (
            np.memmap(self.folder / VECTORS, meta["dtype"], "r", shape=shape)
            if n
            else np.zeros(shape, meta["dtype"])
        )
        self._outdated = self._find_outdated()

    def _find_outdated(self) -> Int[np.ndarray, " O"]:
        """Rows of pictures that were embedded anew since."""
        last: dict[str, int] = {}
        outdated = []
        with (self.folder / PICTURES).open("rb") as file:
            for row in range(len(self)):
                id = json.loads(file.readline())["id"]
                if id in last:
                    outdated.append(last[id])
                last[id] = row
        return np.array(sorted(outdated), np.int64)

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def pictures(self) -> int:
        """How many pictures are in the index; some have more rows than one."""
        return len(self) - len(self._outdated)

    def __getitem__(self, row: int) -> IndexedPicture:
        """What a row of the embeddings is of."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        with (self.folder / PICTURES).open("rb") as file:
            file.seek(self._ends[row - 1] if row else 0)
            return IndexedPicture(**json.loads(file.readline()))

    def captioned(self, words: Collection[str]) -> dict[str, list[int]]:
        """Rows of the pictures whose caption says each word, in whole words of lower case."""
        rows: dict[str, list[int]] = {word: [] for word in words}
        outdated = set(self._outdated.tolist())
        with (self.folder / PICTURES).open("rb") as file:
            for row in range(len(self)):
                caption = json.loads(file.readline())["caption"].lower()
                if row in outdated:
                    continue
                for word in rows.keys() & set(re.findall(r"[^\W_]+", caption)):
                    rows[word].append(row)
        return rows

    def search(
        self, queries: Float[np.ndarray | Array, "Q D"], k: int, mesh: Mesh | None = None
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """Cosines and rows of the pictures nearest to each query, by `top_k`."""
        spare = len(self._outdated)
        cosines, rows = top_k(queries, self.embeddings, k + spare, mesh)
        if not spare:
            return cosines, rows
        order = np.argsort(np.isin(rows, self._outdated), axis=1, kind="stable")
        best = order[:, : min(k, self.pictures)]
        return np.take_along_axis(cosines, best, 1), np.take_along_axis(rows, best, 1)


def build_index(
    folder: str | Path,
    pictures: Iterable[Picture | Rejected],
    towers: Towers,
    *,
    dtype: str = "float16",
    batch_size: int = 64,
    workers: int | None = None,
    total: int | None = None,
    rebuild: bool = False,
) -> tuple[PictureIndex, BuildCounts]:
    """Embeds the pictures that are not in the index yet; goes on where an earlier build was killed.

    A picture is known by its id; a second one of the same id is passed over, as `data.library`
    reports it. One whose file or caption has changed is embedded anew. ``rejected.jsonl`` holds
    what this pass could not embed: ``file, row, id, reason``.

    Args:
        folder: the index's own.
        pictures: the library.
        towers: CLIP.
        dtype: of the stored vectors, float16 or float32.
        batch_size: pictures that go through the tower at once; rounded up to fill the mesh.
        workers: threads that read and decode; None is one for each core.
        total: pictures in the library, where somebody has counted, for the time left.
        rebuild: throw away what there is.

    Raises:
        UserError: another process builds there, or the index was made with another model or dtype
            and ``rebuild`` is not set, or is damaged.
    """
    if dtype not in DTYPES:
        raise UserError(f"index dtype {dtype!r}: give one of {', '.join(DTYPES)}")
    meta = {
        "format": FORMAT,
        "model": towers.digest,
        "dimension": towers.dimension,
        "dtype": dtype,
        "count": 0,
    }
    workers = workers or os.cpu_count() or 1
    with IndexWriter(Path(folder), meta, rebuild) as writer:
        with Progress(
            "embedding pictures", total, "picture", start=len(writer.indexed)
        ) as progress:
            embed_all(pictures, writer, towers, towers.full_batch(batch_size), workers, progress)
        writer.finish()
    return PictureIndex(folder), writer.counts


@runtime_checkable
class VectorWriter(Protocol):
    """Takes what `embed_all` makes."""

    def unknown(self, pictures: Iterable[Picture | Rejected], /) -> Iterator[Picture]:
        """The pictures that are to be embedded."""

    def reject(self, what: Picture | Rejected, reason: str, /) -> None:
        """Says why something of the library has no vector."""

    def append(self, batch: list[tuple[Picture, IndexedPicture]], vectors: Array, /) -> None:
        """Adds a batch, filled up or not behind its rows."""


def embed_all(
    pictures: Iterable[Picture | Rejected],
    writer: VectorWriter,
    towers: Towers,
    batch_size: int,
    workers: int,
    progress: Progress,
) -> None:
    """Reading and decoding, the device, and the disk at work at the same time."""
    prepared = _ahead(
        lambda picture: _prepare(picture, towers), writer.unknown(pictures), workers, batch_size
    )
    running: tuple[list[tuple[Picture, IndexedPicture]], Array] | None = None
    while batch := list(itertools.islice(prepared, batch_size)):
        rows: list[tuple[Picture, IndexedPicture]] = []
        pixels = None
        for picture, result in batch:
            if isinstance(result, str):
                writer.reject(picture, result)
                continue
            row, values = result
            if pixels is None:
                pixels = np.zeros((batch_size, *values.shape), np.float32)
            pixels[len(rows)] = values
            rows.append((picture, row))
        following = None if pixels is None else (rows, towers.embed_pictures(pixels))
        # The device has its next batch by now, and need not wait for the disk.
        if running is not None:
            writer.append(*running)
        running = following
        progress.update(len(batch))
    if running is not None:
        writer.append(*running)


def _prepare(
    picture: Picture, towers: Towers
) -> tuple[Picture, str | tuple[IndexedPicture, np.ndarray]]:
    """A picture's row and what goes into the tower, or why there is none."""
    try:
        image = picture.read()
        pixels = towers.pixels(images.decode(image, picture.id))
    except UserError as error:
        return picture, str(error)
    row = IndexedPicture(picture.id, picture.caption, digest_of(image), picture.stamp)
    return picture, (row, pixels)


def _ahead(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int, depth: int
) -> Iterator[_R]:
    """``map`` in threads, in order, up to ``depth`` items ahead of the one that is asked for."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
