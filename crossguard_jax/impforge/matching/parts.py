"""A picture library that is embedded shard by shard, by whoever works on them, and then joined.

An output holds a shard's vectors, what each is of, and what could not be embedded. The index is
made of the outputs, so that searching is one and the same; joined again, it takes in what is new.
"""

import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.core.typing import Array
from crossguard_jax.data import library
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import Rejected, kind
from crossguard_jax.data.sources.common import check_range
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.impforge.matching.index import embed_all
from crossguard_jax.impforge.matching.index_files import (
    FORMAT,
    BuildCounts,
    IndexedPicture,
    IndexWriter,
)
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.io.files import digest, note, note_under
from crossguard_jax.io.lines import CUT
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime.shards import (
    Beat,
    Counts,
    Shard,
    ShardJob,
    ShardReport,
    Work,
    claim,
    read_claim,
)

FACTORY = "crossguard_jax.impforge.matching.parts:embed_work"
ENDING = ".npz"
META = ("model", "dimension", "dtype")
"""What an index says of its vectors."""


def embed_job(config: Any, captions: str | Path | None, folder: Path, **settings: Any) -> ShardJob:
    """What is to be done with each shard of a library.

    Args:
        config: ``configs/impforge.py``'s.
        captions: a table of the pictures' captions, where their layout has none.
        folder: takes the outputs.
        settings: of `ShardJob`.
    """
    match = config.match
    spec = {
        "clip": match.clip,
        "dtype": match.dtype,
        "mesh": config.mesh.to_dict(),
        "axis_rules": config.axis_rules.to_dict(),
        "stored": match.settings.dtype,
        "batch_size": match.settings.batch_size,
        "captions": None if captions is None else str(captions),
    }
    return ShardJob(FACTORY, spec, str(folder), ending=ENDING, **settings)


def embed_work(spec: Mapping[str, Any], folder: str) -> Work:
    """What a worker does with a shard of pictures; it holds CLIP. See `embed_job`."""
    mesh, rules = make_mesh(**spec["mesh"]), {**DEFAULT_RULES, **spec["axis_rules"]}
    clip = load_clip(spec["clip"], spec["dtype"], mesh, rules)
    note_under(clip.folder)
    towers = Towers(clip.model, clip, clip.digest, mesh, rules)
    meta = {"model": towers.digest, "dimension": towers.dimension, "dtype": spec["stored"]}
    if spec["captions"] is not None:
        note(Path(spec["captions"]))
        meta["captions"] = digest(spec["captions"])
    claim(folder, meta)
    size = towers.full_batch(spec["batch_size"])

    def work(shard: Shard, output: Path, beat: Beat) -> Counts:
        part = _Part(spec["stored"], towers.dimension, beat)
        with Progress("embedding pictures", enabled=False) as progress:
            pictures = pictures_of(shard, spec["captions"])
            # A worker has a share of the cores, not all.
            embed_all(pictures, part, towers, size, 2, progress)
        part.write(output)
        reasons = Counter(kind(row.reason) for row in part.rejected)
        return {"pictures": len(part.rows), "rejected": dict(reasons)}

    return work


def pictures_of(shard: Shard, captions: str | Path | None) -> Iterator[Picture | Rejected]:
    """A shard's part of the library.

    Raises:
        UserError: see `library.pictures`; or its rows end behind the last picture.
    """
    pictures = library.pictures(shard.path, captions=captions)
    if shard.rows is None:
        yield from pictures
        return
    first, last = shard.rows
    ends: dict[str, int] = {}
    numbered: set[str] = set()  # files of pictures: a table of captions has rows of its own
    cut = False
    for each in pictures:
        if isinstance(each, Rejected):
            file, row, lost = each.file, each.row, each.reason.startswith(CUT)
        else:
            file, row, lost = each.provenance["file"], int(each.provenance.get("row", 0)), False
            numbered.add(file)
        ends[file], cut = max(row, ends.get(file, 0)), cut or lost
        # What cannot be read on is said to whoever wants what lies behind, too.
        if first <= row <= last or lost and row < first:
            yield each
    if not cut:
        check_range(Path(shard.path), shard.rows, max((ends[file] for file in numbered), default=0))


def pictures_of_all(
    reports: Iterable[ShardReport], captions: str | Path | None
) -> Iterator[Picture | Rejected]:
    """The library, but for the shards that could not be read."""
    read = (report.shard for report in reports if report.bytes >= 0)
    return itertools.chain.from_iterable(pictures_of(shard, captions) for shard in read)


class _Part:
    """What `embed_all` writes to, kept for one output."""

    def __init__(self, dtype: str, dimension: int, beat: Beat):
        self.rows: list[IndexedPicture] = []
        self.rejected: list[Rejected] = []
        self._vectors, self._beat = [np.zeros((0, dimension), dtype)], beat

    def unknown(self, pictures: Iterable[Picture | Rejected]) -> Iterator[Picture]:
        """All of them; those that could not be read are rejected."""
        for picture in pictures:
            if isinstance(picture, Rejected):
                self.rejected.append(picture)
            else:
                yield picture

    def reject(self, what: Picture | Rejected, reason: str) -> None:
        """See `IndexWriter`."""
        where = what.provenance if isinstance(what, Picture) else asdict(what)
        at = str(where.get("file", "")), int(where.get("row", 1))
        self.rejected.append(Rejected(*at, reason))

    def append(self, batch: Sequence[tuple[Picture, IndexedPicture]], vectors: Array) -> None:
        """See `IndexWriter`."""
        self.rows += [row for _, row in batch]
        values = np.asarray(vectors, np.float32)[: len(batch)]
        self._vectors.append(values.astype(self._vectors[0].dtype))
        self._beat()

    def write(self, output: Path) -> None:
        """The output: ``vectors`` [N, D], and JSON of the rows and of what was rejected."""
        texts = {
            "rows": [asdict(row) for row in self.rows],
            "rejected": [asdict(row) for row in self.rejected],
        }
        arrays = {k: np.frombuffer(json.dumps(v).encode(), np.uint8) for k, v in texts.items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, vectors=np.concatenate(self._vectors), **arrays)
        output.write_bytes(buffer.getvalue())


def join_parts(
    place: Path, job: ShardJob, reports: Iterable[ShardReport], rebuild: bool = False
) -> BuildCounts:
    """Makes one index of the outputs, or adds to it what is new in them.

    Args:
        place: the index's folder.
        job: whose outputs they are.
        reports: of its shards.
        rebuild: throw away what there is.

    Raises:
        UserError: another process builds there, or the index was made with another model.
    """
    claimed = read_claim(job.folder)[0]
    meta = {name: claimed[name] for name in META} | {"format": FORMAT, "count": 0}
    seen: set[str] = set()
    with IndexWriter(place, meta, rebuild) as writer:
        for report in reports:
            if report.bytes < 0:
                writer.reject(Rejected(report.shard.path, 0, report.reason), report.reason)
                continue
            with np.load(job.output(report.shard), allow_pickle=False) as part:
                vectors = part["vectors"]
                rows, rejected = (json.loads(part[k].tobytes()) for k in ("rows", "rejected"))
            for row in rejected:
                writer.reject(Rejected(**row), row["reason"])
            new = []
            for i, row in enumerate(rows):
                picture = IndexedPicture(**row)
                if picture.id in seen:
                    reason = f"a second picture called {picture.id!r}"
                    writer.reject(Rejected(report.shard.path, 1, reason), reason)
                elif writer.is_new(picture):
                    new.append((i, picture))
                seen.add(picture.id)
            batch = [(Picture(each.id, _unread), each) for _, each in new]
            writer.append(batch, vectors[[i for i, _ in new]])
        writer.finish()
    return writer.counts


def _unread() -> bytes:
    raise UserError("the pictures of an index lie in its library")
