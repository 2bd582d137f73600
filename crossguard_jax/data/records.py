"""What an example is, why a row is not one, and the plain files that both are kept in."""

import filecmp
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL import Image

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import images, jsonl
from crossguard_jax.runtime import processes

MAX_REASON = 400
KINDS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Record:
    """One example: pictures, a text, or both, and what is said of them together."""

    id: str
    images: tuple[bytes, ...]  # encoded files (PNG, JPEG, ...), not pixels; (): text alone
    text: str  # "": pictures alone
    label: str = ""  # a label word, such as "safe" or "unsafe"; "" when nobody has judged it
    category: str = ""
    source: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> bytes | None:
        """The first picture, for whoever takes one; None of a text alone."""
        return self.images[0] if self.images else None


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that did not become a ``Record``."""

    file: str
    row: int  # the line on which it starts, or the position in the file's array, from 1
    reason: str  # one line of at most MAX_REASON characters, whatever the row holds

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", short(self.reason, MAX_REASON))


@runtime_checkable
class Identified(Protocol):
    """A row of any kind that has a name of its own and says where it came from."""

    @property
    def id(self) -> str:
        """The row's name."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Its ``file`` and ``row``, among other things."""


RowT = TypeVar("RowT", bound=Identified)


def rejection(row: Identified, reason: str) -> Rejected:
    """What is left of a row that turned out to be of no use."""
    at = row.provenance
    if "file" not in at:
        reason = f"{short(row.id)}: {reason}"
    return Rejected(at.get("file", getattr(row, "source", "")), int(at.get("row", 0)), reason)


def kind(reason: str) -> str:
    """A reason without what is the row's own: paths, numbers, details and the mend."""
    text = re.sub(r"\(.*\)", "", reason).partition("; ")[0]
    text = text.rpartition(": ")[2] or text
    return re.sub(r"\d[\d,.]*", "N", " ".join(text.split()))


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
    if what == "picture":
        return replace(record, images=(_grey_square(),) * len(record.images))
    return replace(record, text=".") if what == "text" else record


@functools.cache
def _grey_square() -> bytes:
    return images.encode_png(Image.new("RGB", (32, 32), (128, 128, 128)))


class LeftOut:
    """The rows that a run read and does not use: each in a file with its reason, and counted.

    Several processes count alike; the first one's is the file.

    Attributes:
      path: the file, JSON lines of ``file, row, reason``.
      counts: rows by source file and kind of reason.
    """

    def __init__(self, path: str | Path, keep: bool = False):
        """Begins a file anew, or, with ``keep``, counts what an earlier run has left there."""
        self.path = Path(path)
        self.counts: Counter[tuple[str, str]] = Counter()
        self._seen: set[tuple[str, str]] = set()
        self._added: set[Rejected] = set()
        self._writer: jsonl.JsonlWriter | None = None
        if not processes.is_first():
            return
        if not keep:
            self.path.unlink(missing_ok=True)
        self._writer = jsonl.JsonlWriter(self.path)
        for _, value in jsonl.read_jsonl(self.path):
            if isinstance(value, dict) and "reason" in value:
                self._count(str(value.get("file", "")), value["reason"])

    @property
    def total(self) -> int:
        """How many there are."""
        return self.counts.total()

    def add(self, row: Rejected) -> None:
        """Leaves out a row; the second time for the same reason, nothing happens."""
        if row in self._added:
            return
        self._added.add(row)
        if self._writer:
            self._writer.append(asdict(row))
        self._count(row.file, row.reason)

    def _count(self, file: str, reason: str) -> None:
        self.counts[file, kind(reason)] += 1

    def accepted(
        self,
        rows: Iterable[RowT | Rejected],
        group: Callable[[RowT], str] = lambda row: "",
    ) -> Iterator[RowT]:
        """Passes good rows on and leaves out the rejected ones.

        Nothing tells rows of one id apart once their verdicts are by id, so the first one of a
        group has it and the others are left out.
        """
        for row in rows:
            if isinstance(row, Rejected):
                self.add(row)
                continue
            key = (group(row), row.id)
            if key in self._seen:
                reason = f"an earlier row has the same id ({short(row.id)}); rename one of them"
                self.add(rejection(row, reason))
                continue
            self._seen.add(key)
            yield row

    def lines(self) -> Iterator[str]:
        """What to tell people; nothing where no row was left out."""
        if self.total:
            rows = "row was" if self.total == 1 else "rows were"
            yield f"{self.total:,} {rows} left out, each with its reason in {self.path}"
        for (file, reason), n in self.counts.most_common(KINDS_SHOWN):
            yield f"  {n:,} of {file}: {reason}"
        if (others := len(self.counts) - KINDS_SHOWN) > 0:
            yield f"  ... and for {others:,} other reasons"

    def close(self) -> None:
        """Syncs and closes the file; closing twice is harmless."""
        if self._writer:
            self._writer.close()

    def __enter__(self) -> "LeftOut":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_jsonl(records: Iterable[Record], folder: str | Path, split: str) -> int:
    """Writes ``folder/SPLIT.jsonl`` with each picture beside it in ``folder/SPLIT/ID.ENDING``.

    A line has ``id, image, text, label, category, source`` (``image`` relative to ``folder``, null,
    or a list where there are several, ``ID.0.png`` and so on) and ``provenance`` where there is
    one. Pictures keep their bytes, and have the ending of what they are. The ``.jsonl`` appears
    only when all of it is written; one that says the same is left as it is.

    Returns:
      The number of records written.

    Raises:
      UserError: two records share an id, or a picture is none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table, scratch = folder / f"{split}.jsonl", folder / f".{split}.jsonl.tmp"
    scratch.unlink(missing_ok=True)
    seen: set[str] = set()
    with jsonl.JsonlWriter(scratch) as writer:
        for record in records:
            if record.id in seen:
                raise UserError(f"{folder}/{split}.jsonl: two records are called {record.id!r}")
            seen.add(record.id)
            pictures = []
            for i, image in enumerate(record.images):
                number = f".{i}" if len(record.images) > 1 else ""
                ending = images.ending(image, record.id)
                pictures.append(f"{split}/{_file_name(record.id)}{number}.{ending}")
                (folder / split).mkdir(exist_ok=True)
                _write_picture(folder / pictures[-1], image, table)
            row: dict[str, Any] = {
                "id": record.id,
                "image": pictures if len(pictures) > 1 else next(iter(pictures), None),
                "text": record.text,
                "label": record.label,
                "category": record.category,
                "source": record.source,
            }
            if record.provenance:
                row["provenance"] = dict(record.provenance)
            writer.append(row)
    if table.exists() and filecmp.cmp(scratch, table, shallow=False):
        scratch.unlink()  # what was made of this table goes by its time
    else:
        os.replace(scratch, table)
    return len(seen)


def _write_picture(path: Path, data: bytes, table: Path) -> None:
    """Writes a picture, unless it is there. An older table that names another picture by this
    path goes first: killed here, it would show its texts beside other rows' pictures."""
    if path.exists():
        if path.read_bytes() == data:
            return
        table.unlink(missing_ok=True)
    path.write_bytes(data)


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
            yield Record(
                id=value["id"],
                images=tuple(
                    images.read_picture(path.parent / name) for name in listed(value["image"])
                ),
                text=value["text"],
                label=value["label"],
                category=value["category"],
                source=value["source"],
                provenance=value.get("provenance", {}),
            )
        except KeyError as error:
            raise UserError(f"{path}, row {row}: no field {error}; write the split again") from None


def listed(value: Any) -> list[Any]:
    """What a row's field for pictures holds, as a list: none (null or ""), one, or several."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _file_name(record_id: str) -> str:
    """The id with what is not ``A-Za-z0-9._-`` as %XX: distinct ids keep distinct names."""
    quoted = re.sub(
        rb"[^A-Za-z0-9._-]",
        lambda match: b"%%%02X" % match.group()[0],
        record_id.encode("utf-8", errors="surrogatepass"),
    ).decode("ascii")
    if len(quoted) > 200:  # most file systems stop at 255 bytes
        return f"{quoted[:160]}-{hashlib.sha256(quoted.encode()).hexdigest()[:32]}"
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")
