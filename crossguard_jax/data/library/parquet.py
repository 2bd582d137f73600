"""Pictures in Parquet files, as Hugging Face keeps data sets: ``wikimedia/wit_base`` and others."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library.picture import Picture, below, captioned
from crossguard_jax.data.library.wit import caption_of
from crossguard_jax.data.records import Rejected
from crossguard_jax.io.lines import CUT

IMAGE_COLUMNS = ("image", "jpg")
ID_COLUMNS = ("image_url", "url", "id", "key")
CAPTION_COLUMNS = ("caption", "text")
ROWS_AT_ONCE = 64


def parquet(root: Path, captions: Path | None, language: str) -> Iterator[Picture | Rejected]:
    """The pictures of all ``*.parquet`` in ``root`` or ``root/data``, in the order of the files.

    A row has its picture in ``image`` (bytes, or a struct with ``bytes``) or ``jpg``, perhaps an
    id (``image_url``, ``url``, ``id`` or ``key``; otherwise file and row are the id) and a caption
    (``caption``, ``text``, or the nested ``wit_features`` of ``wikimedia/wit_base``).
    """
    if captions is not None:
        raise UserError(f"{root}: Parquet files have their own captions; leave out {captions}")
    for file in parquet_files(root):
        yield from _pictures(file, root if root.is_dir() else root.parent, language)


def parquet_files(root: Path) -> list[Path]:
    """The Parquet files of a folder, or the file itself."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    return sorted(root.glob("*.parquet")) or sorted(root.glob("data/*.parquet"))


def _pictures(file: Path, root: Path, language: str) -> Iterator[Picture | Rejected]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{file}: Parquet needs pyarrow: pip install pyarrow") from None
    row = 0
    try:
        with ParquetFile(file) as table:
            image, columns = _columns(table.schema_arrow.names)
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns):
                for value in batch.to_pylist():
                    row += 1
                    yield _picture(value, image, f"{below(file, root)}-{row}", file, row, language)
    except UserError as error:
        yield Rejected(str(file), 1, str(error))
    except (OSError, pyarrow.ArrowException) as error:
        yield Rejected(str(file), row + 1, f"{CUT} ({_line(error)}); download it again")


def _columns(names: list[str]) -> tuple[str, list[str]]:
    """The column of the pictures, and all that are worth reading."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise UserError(f"no column of pictures ({' or '.join(IMAGE_COLUMNS)}) in {names}")
    columns = (image, *ID_COLUMNS, *CAPTION_COLUMNS, "wit_features")
    return image, [name for name in columns if name in names]


def _picture(
    value: dict[str, Any], image: str, id: str, file: Path, row: int, language: str
) -> Picture | Rejected:
    data = value[image]
    data = data.get("bytes") if isinstance(data, dict) else data
    if not isinstance(data, bytes) or not data:
        return Rejected(str(file), row, f"column {image!r} holds no encoded picture")
    named = (str(value[name]) for name in ID_COLUMNS if value.get(name))
    provenance = {"library": "parquet", "file": str(file), "row": str(row)}
    read = functools.partial(_given, data)
    return captioned(next(named, id), read, _captions(value, language), provenance)


def _captions(value: dict[str, Any], language: str) -> list[str]:
    own = [value[name] for name in CAPTION_COLUMNS if isinstance(value.get(name), str)]
    features = value.get("wit_features") or []
    if isinstance(features, dict):  # a struct of lists rather than a list of structs
        lists = features.values()
        features = [dict(zip(features, row, strict=True)) for row in zip(*lists, strict=True)]
    return own + [caption_of(row, language) for row in features]


def _given(data: bytes) -> bytes:
    return data


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
