"""Rows of files that hold their pictures themselves: Parquet, ArrayRecord, tar.

What is damaged costs what lies behind it, and one row says so, as in `io.lines`.
"""

import itertools
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, reason, short
from crossguard_jax.io import archives, images, jsonl
from crossguard_jax.io.files import note
from crossguard_jax.io.lines import Row, RowError

ROWS_AT_ONCE = 64
PICTURES = frozenset("jpg jpeg png gif webp bmp tif tiff ppm".split())
TEXTS = frozenset(("txt", "text", "caption"))
_TAR = re.compile(r"\.(tar|tar\.(gz|xz|bz2)|tgz)$", re.IGNORECASE)
_ARRAY_RECORD = re.compile(r"\.array_?record", re.IGNORECASE)


def reader_of(path: Path) -> Callable[[Path, int], Iterator[Row]] | None:
    """What reads a file from a row on, by the file's name; None for one of text."""
    if path.suffix.lower() == ".parquet":
        return read_parquet
    if _ARRAY_RECORD.search(path.name):
        return read_array_record
    return read_tar if _TAR.search(path.name) else None


def read_parquet(path: Path, first: int = 1) -> Iterator[Row]:
    """The rows of a Parquet file; row groups before the first row are not read."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
    row = 0
    note(path)
    try:
        with archives.opened(path) as file, ParquetFile(file) as table:
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            ends = [*itertools.accumulate(sizes)]
            groups = [i for i, end in enumerate(ends) if end >= first]
            row = ends[groups[0]] - sizes[groups[0]] if groups else 0
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups) if groups else ():
                for value in batch.to_pylist():
                    row += 1
                    yield row, value
    except (OSError, pyarrow.ArrowException) as error:
        yield _damage(path, row, error)


def read_array_record(path: Path, first: int = 1) -> Iterator[Row]:
    """The records of an ArrayRecord file: TFDS's, where its ``features.json`` lies beside it, or
    JSON objects."""
    from array_record.python.array_record_module import ArrayRecordReader

    note(path)
    read = _decoder(path.parent)
    row = first - 1
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        reader = ArrayRecordReader(str(path))
        try:
            for start in range(first - 1, n := reader.num_records(), ROWS_AT_ONCE):
                for record in reader.read([*range(start, min(start + ROWS_AT_ONCE, n))]):
                    row += 1
                    yield row, read(record)
        finally:
            reader.close()
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        yield _damage(path, row, error)


def _decoder(folder: Path) -> Callable[[bytes], dict[str, Any] | RowError]:
    if not (folder / "features.json").is_file():
        return jsonl.parse_line
    import tensorflow_datasets as tfds

    try:
        features = tfds.features.FeaturesDict.from_config(str(folder))
    except Exception as error:  # whatever reading it as JSON, or as one of TFDS's features, says
        raise UserError(
            f"{folder / 'features.json'}: not TFDS's features ({short(reason(error))}); write the "
            "data set again, or remove the file where the records are JSON objects"
        ) from error
    skip = {"image": tfds.decode.SkipDecoding()} if "image" in features else {}

    def decode(record: bytes) -> dict[str, Any] | RowError:
        try:
            row = features.deserialize_example_np(record, decoders=skip)
        except Exception as error:  # protocol buffers' own, and TFDS's about a feature
            return RowError(f"no record of {folder.name} ({short(reason(error))})")
        pictures = [p for p in (row.pop("image", None), *row.pop("more_images", ())) if p]
        texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
        return texts | {"image": pictures or None}

    return decode


def read_tar(path: Path, first: int = 1) -> Iterator[Row]:
    """The samples of a tar file as WebDataset lays them out: neighbours of one name are a row.

    ``NAME.jpg`` (``png``, ...; several in the order of the file) are its pictures, ``NAME.txt`` its
    text, ``NAME.json`` its other fields, ``NAME.cls`` its label; the name is its id.
    """
    note(path)
    row = 0
    try:
        with tarfile.open(path) as archive:
            members = (m for m in archive if m.isfile())
            for name, sample in itertools.groupby(members, key=lambda m: _split(m.name)[0]):
                files = [*sample]
                if row + 1 >= first:
                    yield row + 1, _sample(archive, name, files)
                row += 1
            _refuse_early_end(archive)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        yield _damage(path, row, error)


def _refuse_early_end(archive: tarfile.TarFile) -> None:
    """Raises a `tarfile.TarError` where the members do not end as tar ends them.

    `tarfile` takes a header that is cut off or damaged for the end, too.
    """
    stream = archive.fileobj
    assert stream is not None
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end of the archive")


def _split(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.rpartition(".")[2].lower()


def _sample(
    archive: tarfile.TarFile, name: str, files: list[tarfile.TarInfo]
) -> dict[str, Any] | RowError:
    fields: dict[str, Any] = {"id": name}
    pictures: list[bytes] = []
    for member in files:
        ending = _split(member.name)[1]
        if ending not in PICTURES | TEXTS | {"json", "cls"}:
            continue
        if member.size > images.MAX_BYTES:
            return RowError(f"{short(member.name)} is over {images.MAX_BYTES:,} bytes")
        data = archive.extractfile(member).read()  # type: ignore[union-attr]  # it is a file
        if ending in PICTURES:
            pictures.append(data)
        elif ending == "json":
            value = jsonl.parse_line(data.strip())
            if isinstance(value, RowError):
                return RowError(f"{short(member.name)}: {value.reason}")
            fields |= value
        else:
            text = data.decode("utf-8", errors="surrogateescape").rstrip("\n")
            fields["label" if ending == "cls" else "text"] = text
    return fields | {"image": pictures or None}


def _damage(path: Path, row: int, error: Exception) -> tuple[int, RowError]:
    """The row that stands for what cannot be read.

    Raises:
        UserError: that is all of the file.
    """
    # ArrayRecord's library says nothing at all of a file that lacks its end.
    why = short(getattr(error, "strerror", None) or str(error) or "cut short or damaged")
    if row == 0:
        raise UserError(
            f"{short(path)}: cannot be read ({why}); correct the path or write it again"
        ) from error
    return (
        row + 1,
        RowError(
            f"the file is cut short or damaged here ({why}); write it again: the "
            f"{row:,} rows before were read"
        ),
    )
