"""Pictures of WIT (Srinivasan et al., SIGIR 2021) as Wikimedia published them, pixels included.

The shards ``image_pixels/*.csv.gz`` of Wikimedia's caption competition, Kaggle's copy among them,
have no header and three fields between tabs: picture address, base64 of the file, address of its
page (the layout that TFDS's ``wit_kaggle`` reads). The captions are in WIT's own tables of
tab-separated values with a header, joined by address.
"""

import base64
import binascii
import contextlib
import functools
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library.picture import Picture, captioned
from crossguard_jax.data.records import Rejected
from crossguard_jax.io import images
from crossguard_jax.io.lines import RowError, lines
from crossguard_jax.io.progress import Progress
from crossguard_jax.io.tables import read_csv

# Where the shards lie below the folder that is given; the first pattern that finds any counts.
SHARDS = ("*.csv.gz", "image_pixels/*.csv*", "*/image_pixels/*.csv*")
CAPTIONS = ("*.tsv", "*.tsv.gz")
CAPTION_COLUMNS = ("caption_reference_description", "caption_alt_text_description")
MAX_LINE_BYTES = images.MAX_BYTES // 3 * 4 + 2**16


def wit(root: Path, captions: Path | None, language: str) -> Iterator[Picture | Rejected]:
    """The pictures of all shards, in the order of their files; an id is a picture's address.

    Args:
        root: the folder of the download, or one shard.
        captions: a table of captions, or a folder of them; ``root`` unless given.
        language: captions of other languages are left out.
    """
    tables = _captions(captions or (root if root.is_dir() else root.parent))
    # A temporary database of SQLite's own: on disk where it grows, and gone when closed.
    with contextlib.closing(sqlite3.connect("", check_same_thread=False)) as database:
        database.execute("CREATE TABLE captions (url TEXT PRIMARY KEY, caption TEXT) WITHOUT ROWID")
        for table in tables:
            yield from _learn(database, table, language)
        for shard in pixel_shards(root):
            yield from _pictures(shard, database)


def pixel_shards(root: Path) -> list[Path]:
    """The files with pixels in a folder, or the file itself."""
    if root.is_file():
        return [root] if ".csv" in root.suffixes else []
    shards = (sorted(root.glob(pattern)) for pattern in SHARDS)
    return next((files for files in shards if files), [])


def caption_of(row: Mapping[str, Any], language: str) -> str:
    """A WIT row's caption: the one below the picture, else its alternative text, else ""."""
    if row.get("language", language) != language:
        return ""
    return next((row[name] for name in CAPTION_COLUMNS if row.get(name)), "")


def _captions(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for pattern in CAPTIONS for file in path.glob(pattern))


def _learn(database: sqlite3.Connection, table: Path, language: str) -> Iterator[Rejected]:
    """Takes up a table's captions; of several for one picture, the first stays."""
    with Progress(f"captions of {table.name}") as progress:
        try:
            for row, value in read_csv(table, delimiter="\t"):
                progress.update()
                if isinstance(value, RowError):
                    yield Rejected(str(table), row, value.reason)
                elif "image_url" not in value:
                    yield Rejected(str(table), 1, "no column 'image_url': not a table of WIT's")
                    return
                elif caption := caption_of(value, language):
                    pair = (value["image_url"], caption)
                    database.execute("INSERT OR IGNORE INTO captions VALUES (?, ?)", pair)
        except UserError as error:
            yield Rejected(str(table), 1, str(error))


def _pictures(shard: Path, database: sqlite3.Connection) -> Iterator[Picture | Rejected]:
    try:
        for row, line in lines(shard, MAX_LINE_BYTES):
            if isinstance(line, RowError):
                yield Rejected(str(shard), row, line.reason)
                continue
            address, *rest = line.rstrip(b"\r\n").split(b"\t")
            url = address.decode("utf-8", errors="replace")
            if not url or len(rest) not in (1, 2) or not rest[0]:
                reason = "expected picture address, base64, page address, between tabs"
                yield Rejected(str(shard), row, reason)
                continue
            query = "SELECT caption FROM captions WHERE url = ?"
            texts = database.execute(query, (url,)).fetchone()
            provenance = {"library": "wit", "file": str(shard), "row": str(row)}
            if len(rest) == 2:
                provenance["page"] = rest[1].decode("utf-8", errors="replace")
            read = functools.partial(_decoded, rest[0], f"{shard}, row {row}")
            yield captioned(url, read, list(texts or ()), provenance)
    except UserError as error:
        yield Rejected(str(shard), 1, str(error))


def _decoded(pixels: bytes, name: str) -> bytes:
    try:
        return base64.b64decode(pixels, validate=True)
    except binascii.Error as error:
        raise UserError(f"{name}: the picture is not base64 ({error}); drop the row") from error
