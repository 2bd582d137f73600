"""Libraries of harmless pictures: COCO, WIT with its pixels, or any folder.

Pictures come one by one and unread, so that a library of millions costs little to go through and
what is known already need not be read again.
"""

import difflib
import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library.coco import caption_files, coco
from crossguard_jax.data.library.folder import folder
from crossguard_jax.data.library.parquet import parquet, parquet_files
from crossguard_jax.data.library.picture import Picture
from crossguard_jax.data.library.wit import pixel_shards, wit
from crossguard_jax.data.records import Rejected

__all__ = ["LAYOUTS", "Picture", "layout_of", "pictures"]

LAYOUTS: dict[str, Callable[[Path, Path | None, str], Iterator[Picture | Rejected]]] = {
    "coco": coco,
    "wit": wit,
    "parquet": parquet,
    "folder": folder,
}


def pictures(
    path: str | Path,
    *,
    layout: str = "auto",
    captions: str | Path | None = None,
    language: str = "en",
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Picture | Rejected]:
    """Goes through a library, always in the same order.

    Ids are the same on every run, so that pictures added later change none. A second picture of
    one id is rejected; remembering the ids takes about 80 bytes a picture of this shard.

    Args:
        path: the library's folder, or one file of packed pictures.
        layout: one of `LAYOUTS`, or ``"auto"`` for what `layout_of` finds.
        captions: the captions where they do not lie where the layout has them.
        language: of the captions, where a library has several.
        shard: ``(index, count)``: one of ``count`` parts, for as many processes. The parts are
            disjoint and together all; a picture's part follows from its id.

    Raises:
        UserError: there is no such folder, layout or shard, or not one picture in it.
    """
    root, given = Path(path), Path(captions) if captions else None
    index, count = shard
    if not 0 <= index < count:
        raise UserError(f"shard {index} of {count}: the index must be from 0 to {count - 1}")
    if layout != "auto" and layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, ["auto", *LAYOUTS], n=1, cutoff=0.0)[0]
        raise UserError(f"layout {layout!r}: unknown; did you mean {near!r}?")
    for there in (root, given):
        if there and not there.exists():
            raise UserError(f"{there}: no such file or folder; correct the path")
    if layout == "auto":
        layout = layout_of(root)
    rows = LAYOUTS[layout](root, given, language)
    return _unique(_some(rows, root, layout), index, count)


def layout_of(root: Path) -> str:
    """The layout of a library, judged by the names of its files.

    Raises:
        UserError: it is a single file, of no known kind.
    """
    if caption_files(root):
        return "coco"
    if parquet_files(root):
        return "parquet"
    if pixel_shards(root):
        return "wit"
    if root.is_file():
        raise UserError(f"{root}: not a folder, a .csv.gz of WIT's pixels or a .parquet file")
    return "folder"


def _some(
    rows: Iterator[Picture | Rejected], root: Path, layout: str
) -> Iterator[Picture | Rejected]:
    """Passes all on; a library without one picture is an error that says the first reason."""
    some, reason = False, ""
    for row in rows:
        some = some or isinstance(row, Picture)
        if isinstance(row, Rejected):
            reason = reason or f": {row.reason} ({row.file})"
        yield row
    if not some:
        if layout == "folder" and any(root.glob("*.tsv*")):
            reason = reason or "; WIT's tables have picture addresses, no pixels: add image_pixels/"
        raise UserError(f"{root}: no picture found, read as layout {layout!r}{reason}")


def _unique(
    rows: Iterator[Picture | Rejected], index: int, count: int
) -> Iterator[Picture | Rejected]:
    """One shard; since ids decide, pictures of one id meet in it."""
    seen: set[bytes] = set()
    for row in rows:
        key = (row.id if isinstance(row, Picture) else f"{row.file}:{row.row}").encode(
            "utf-8", errors="surrogateescape"
        )
        if zlib.crc32(key) % count != index:
            continue
        if isinstance(row, Picture):
            digest = hashlib.blake2b(key, digest_size=8).digest()
            if digest in seen:
                where = row.provenance
                yield Rejected(
                    where["file"], int(where.get("row", 1)), f"a second picture called {row.id!r}"
                )
                continue
            seen.add(digest)
        yield row
