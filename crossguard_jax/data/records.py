"""What an example is, why a row is not one, and the plain files that both are kept in."""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import images, jsonl

RecordT = TypeVar("RecordT")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Record:
    """One example: a picture, a text, or both, and what is said of them together."""

    id: str
    image: bytes | None  # the encoded file (PNG, JPEG, ...), not pixels; None: text alone
    text: str
    label: str = ""  # a label word, such as "safe" or "unsafe"; "" when nobody has judged it
    category: str = ""
    source: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that did not become a ``Record``."""

    file: str
    row: int  # the line on which it starts, or the position in the file's array, from 1
    reason: str


BLANKS = ("", "picture", "text")
"""What ``blanked`` may take away: nothing, the picture, the text."""


def blanked(record: Record, what: str) -> Record:
    """The record with one input made the same for all: what a control is trained and scored on.

    A blanked picture is a grey square, a blanked text is ``"."``; a row without a picture stays
    without one.

    Raises:
      UserError: ``what`` is none of ``BLANKS``.
    """
    if what not in BLANKS:
        raise UserError(f"blank {what!r}: give 'picture', 'text', or '' for neither")
    if what == "picture" and record.image is not None:
        return replace(record, image=_grey_square())
    return replace(record, text=".") if what == "text" else record


@functools.cache
def _grey_square() -> bytes:
    return images.encode_png(Image.new("RGB", (32, 32), (128, 128, 128)))


def accepted(rows: Iterable[RecordT | Rejected], rejected: jsonl.JsonlWriter) -> Iterator[RecordT]:
    """Passes good rows on and writes every rejected one (``file, row, reason``) to a file."""
    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(asdict(row))
        else:
            yield row


def write_jsonl(records: Iterable[Record], folder: str | Path, split: str) -> int:
    """Writes ``folder/SPLIT.jsonl`` with each picture beside it in ``folder/SPLIT/ID.png``.

    A line has ``id, image, text, label, category, source`` (``image`` relative to ``folder``, or
    null) and ``provenance`` where there is one. PNG bytes are kept as they are, other pictures are
    rewritten as PNG. The ``.jsonl`` appears only when all of it is written.

    Returns:
      The number of records written.

    Raises:
      UserError: two records share an id, or a picture does not decode.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{split}.jsonl.tmp"
    scratch.unlink(missing_ok=True)
    seen: set[str] = set()
    with jsonl.JsonlWriter(scratch) as writer:
        for record in records:
            if record.id in seen:
                raise UserError(f"{folder}/{split}.jsonl: two records are called {record.id!r}")
            seen.add(record.id)
            picture = None
            if record.image is not None:
                picture = f"{split}/{_file_name(record.id)}.png"
                (folder / picture).parent.mkdir(exist_ok=True)
                (folder / picture).write_bytes(_as_png(record.image, record.id))
            row: dict[str, Any] = {
                "id": record.id,
                "image": picture,
                "text": record.text,
                "label": record.label,
                "category": record.category,
                "source": record.source,
            }
            if record.provenance:
                row["provenance"] = dict(record.provenance)
            writer.append(row)
    os.replace(scratch, folder / f"{split}.jsonl")
    return len(seen)


def read_jsonl(folder: str | Path, split: str) -> Iterator[Record]:
    """Reads back what ``write_jsonl`` wrote, one picture at a time.

    Raises:
      UserError: a row or a picture is missing or damaged: these are our own files, so nothing is
        skipped. Read rows of unknown origin with ``sources.table``.
    """
    path = Path(folder) / f"{split}.jsonl"
    for row, value in jsonl.read_jsonl(path):
        if isinstance(value, jsonl.RowError):
            raise UserError(f"{path}, row {row}: {value.reason}; write the split again")
        try:
            picture = value["image"]
            yield Record(
                id=value["id"],
                image=None if picture is None else images.read_picture(path.parent / picture),
                text=value["text"],
                label=value["label"],
                category=value["category"],
                source=value["source"],
                provenance=value.get("provenance", {}),
            )
        except KeyError as error:
            raise UserError(f"{path}, row {row}: no field {error}; write the split again") from None


def _as_png(image: bytes, name: str) -> bytes:
    return image if image.startswith(_PNG) else images.encode_png(images.decode(image, name))


def _file_name(record_id: str) -> str:
    """The id with what is not ``A-Za-z0-9._-`` as %XX: distinct ids keep distinct names."""
    quoted = re.sub(
        rb"[^A-Za-z0-9._-]",
        lambda found: b"%%%02X" % found.group()[0],
        record_id.encode("utf-8", errors="surrogatepass"),
    ).decode("ascii")
    if len(quoted) > 200:  # most file systems stop at 255 bytes
        return f"{quoted[:160]}-{hashlib.sha256(quoted.encode()).hexdigest()[:32]}"
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")
