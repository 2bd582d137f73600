"""Any folder of pictures, and a table of captions beside them."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library.picture import Picture, below, captioned
from crossguard_jax.data.records import Rejected
from crossguard_jax.data.sources.common import text_field
from crossguard_jax.io import images
from crossguard_jax.io.files import stamp
from crossguard_jax.io.jsonl import read_rows
from crossguard_jax.io.lines import RowError

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .pnm".split()
)
TABLES = [f"{stem}{end}" for stem in ("captions", "metadata") for end in (".jsonl", ".csv", ".tsv")]
IMAGE_COLUMNS = ("file_name", "image")
CAPTION_COLUMNS = ("caption", "text")


def folder(root: Path, captions: Path | None, language: str) -> Iterator[Picture | Rejected]:
    """Pictures of ``root`` and the folders in it, by path; what is hidden is left out.

    Captions come from a table of rows ``file_name`` (or ``image``) and ``caption`` (or ``text``),
    paths relative to ``root``: ``captions.jsonl``, ``metadata.csv``, ... in ``root`` (the second
    is the layout of Hugging Face's ImageFolder), or the one given.
    """
    if captions is None:
        captions = next((root / name for name in TABLES if (root / name).is_file()), None)
    captions_of: dict[str, tuple[int, list[str]]] = {}
    if captions is not None:
        yield from _read_captions(captions, captions_of)
    for file in _walk(root, frozenset()):
        if isinstance(file, Rejected):
            yield file
            continue
        name = below(file, root)
        provenance = {"library": "folder", "file": str(file)}
        read = functools.partial(images.read_picture, file)
        texts = captions_of.pop(name, (0, []))[1]
        yield captioned(name, read, texts, provenance, stamp(file))
    for name, (row, _) in captions_of.items():
        yield Rejected(str(captions), row, f"there is no picture {name} in {root}")


def _read_captions(
    table: Path, captions_of: dict[str, tuple[int, list[str]]]
) -> Iterator[Rejected]:
    """Adds to each picture's name the first row that has it, and its captions."""
    for row, value in read_rows(table):
        if isinstance(value, RowError):
            yield Rejected(str(table), row, value.reason)
            continue
        try:
            name = text_field(value, next((c for c in IMAGE_COLUMNS if c in value), "file_name"))
            text = text_field(value, next((c for c in CAPTION_COLUMNS if c in value), "caption"))
        except UserError as error:
            yield Rejected(str(table), row, str(error))
            continue
        captions_of.setdefault(str(PurePosixPath(name)), (row, []))[1].append(text)


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path | Rejected]:
    """Picture files, sorted within each folder; links are followed, but not in a circle."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            names = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        yield Rejected(str(folder), 1, f"the folder cannot be read ({error.strerror})")
        return
    this = (status.st_dev, status.st_ino)
    if this in above:
        return
    for name, is_folder in names:
        if is_folder:
            yield from _walk(folder / name, above | {this})
        elif os.path.splitext(name)[1].lower() not in ENDINGS:
            continue
        elif any("\ud800" <= character <= "\udfff" for character in name):
            yield Rejected(str(folder / name), 1, "the file's name is not UTF-8; rename it")
        else:
            yield folder / name
