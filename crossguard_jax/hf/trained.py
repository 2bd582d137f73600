"""What a model was trained on, row by row, in a file beside its card.

A row is known by its content, so that a test set can be looked up in it whatever its ids are.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from crossguard_jax.core.errors import UserError

TRAINING_DATA = "training_data.jsonl.gz"
"""JSON lines ``[id, source, content]``."""


@dataclass(frozen=True)
class TrainedRow:
    """A row that a model learned from.

    Attributes:
        id: its name in the data set.
        source: the source's name in the configuration.
        content: its `content_hash`.
    """

    id: str
    source: str
    content: str


def content_hash(text: str, images: Sequence[bytes]) -> str:
    """What a row is: the first 128 bits, in hexadecimal, of the SHA-256 over the SHA-256 of each
    picture's encoded file, in order, and the text as UTF-8.

    A picture that was encoded anew is another one, and so is a text with one more space.
    """
    return hashed(text, [hashlib.sha256(image).digest() for image in images])


def hashed(text: str, digests: Iterable[bytes]) -> str:
    """`content_hash` of a text and the SHA-256 of each picture's file."""
    whole = hashlib.sha256(b"".join(digests))
    whole.update(text.encode(errors="surrogatepass"))
    return whole.hexdigest()[:32]


def write_training_data(folder: str | Path, rows: Iterable[TrainedRow]) -> str:
    """Writes the rows, sorted, each once; returns the file's SHA-256, which is the same for the
    same rows."""
    ordered = sorted(set(rows), key=astuple)
    lines = "".join(json.dumps(astuple(row)) + "\n" for row in ordered)
    data = gzip.compress(lines.encode(), mtime=0)
    (Path(folder) / TRAINING_DATA).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_training_data(folder: str | Path) -> list[TrainedRow]:
    """What a model's folder says that it was trained on; nothing where it says nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / TRAINING_DATA
    if not path.exists():
        return []
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        rows = [json.loads(line) for line in lines]
        if not rows or not all(isinstance(value, str) for row in rows for value in row):
            raise ValueError("no rows of three texts")
        return [TrainedRow(*row) for row in rows]
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); download or export the model again") from error


def trained_on(*folders: str | Path) -> set[str]:
    """Content hashes of the rows that a model was trained on: of a merged model's folder, or of a
    base's and an adapter's.

    Raises:
        UserError: a list is damaged.
    """
    return {row.content for folder in folders for row in read_training_data(folder)}
