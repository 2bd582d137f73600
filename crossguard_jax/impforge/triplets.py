"""What stage 1 makes and stage 2 rewrites: a query, a keyword of it, and a harmless picture."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.records import Record, Rejected, write_jsonl
from crossguard_jax.data.sources.common import (
    named_picture,
    picture,
    picture_name,
    records_of,
    text_field,
)
from crossguard_jax.impforge.matching.index_files import digest_of
from crossguard_jax.io import images
from crossguard_jax.io.jsonl import read_rows

_BREAKS = re.compile(r"[,;]|[.!?](?:\s|$)|\band\b")  # between the things that a caption names
_WORD = re.compile(r"[^\W_]+")
_FIELDS = ("keyword", "caption", "cosine", "image_digest")  # a row's own, or in its provenance


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An encoded picture that stays on disk: it is read whenever it is asked for.

    Attributes:
        path: the file.
        digest: of its bytes; see `index_files.digest_of`.
    """

    path: Path
    digest: str

    def read(self) -> bytes:
        """The bytes. Raises UserError where they are gone, or are others by now."""
        data = images.read_picture(self.path)
        if digest_of(data) != self.digest:
            raise UserError(f"{self.path}: the picture has changed; run match again")
        return data


@dataclass(frozen=True, slots=True)
class Triplet:
    """``(x^I, x^T, k)`` of the paper (arXiv 2510.17687), with what is known of it.

    Attributes:
        id: names the triplet; no two are called the same.
        query: x^T, the request whose intent is plain.
        keyword: k, the visual word by which the picture was found.
        image: x^I, the encoded file (PNG, JPEG, ...), or where it lies; see `picture`.
        caption: what the picture shows, in words; "" where nobody has said.
        category: the query's domain.
        cosine: of keyword and picture, by CLIP.
        provenance: where query and picture came from, the judge's answer, model hashes.
    """

    id: str
    query: str
    keyword: str
    image: bytes | PictureFile
    caption: str
    category: str
    cosine: float
    provenance: dict[str, str]

    @property
    def picture(self) -> bytes:
        """The encoded picture, read now where it lies on disk."""
        return self.image if isinstance(self.image, bytes) else self.image.read()

    @property
    def digest(self) -> str:
        """Of the picture's bytes."""
        return digest_of(self.image) if isinstance(self.image, bytes) else self.image.digest

    @property
    def shown(self) -> str:
        """What a language model is told of the picture.

        The first part of the caption that says the keyword, the whole caption where none does, and
        the keyword where there is no caption.
        """
        word = re.compile(rf"\b{re.escape(self.keyword)}\b", re.IGNORECASE)
        parts = self._parts() if self.keyword else []
        clause = next((part for part in parts if word.search(part)), self.caption)
        return clause.strip(" .") or self.keyword

    def shown_to(self, text: str) -> str:
        """The part of the caption that a rewriting is about, whatever the keyword.

        It is the part that has most of the words that the rewriting has and the query has not: what
        stands in the keyword's place. The whole caption where no one part has most.
        """
        instead = _words(text) - _words(self.query)
        shared = {part: len(instead & _words(part)) for part in self._parts()}
        most = max(shared.values(), default=0)
        best = [part for part, n in shared.items() if n == most]
        return best[0] if len(best) == 1 else self.caption.strip(" .")

    def _parts(self) -> list[str]:
        parts = (part.strip(" .") for part in _BREAKS.split(self.caption))
        return [part for part in parts if part]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def write_triplets(triplets: Iterable[Triplet], folder: str | Path, name: str = "triplets") -> int:
    """Writes ``folder/NAME.jsonl`` with the pictures beside it; returns how many.

    The layout is that of every table of rows here (``id, image, text, category, ...``), so a
    table of one's own with these fields reads just as well.

    Raises:
        UserError: two share an id, or a picture is none.
    """
    return write_jsonl(map(_as_record, triplets), folder, name)


def read_triplets(path: str | Path) -> Iterator[Triplet | Rejected]:
    """Reads what `write_triplets` wrote, or a table of one's own.

    A row has ``id, image, text`` (the query) and ``category``; ``keyword``, ``caption`` and
    ``cosine`` stand beside them or in ``provenance``. A row with neither keyword nor caption is
    rejected: nothing says what its picture shows. So is one of an id that an earlier row has: what
    is written about a triplet is kept by its id. Pictures stay on disk. One without the
    ``image_digest`` that `write_triplets` leaves of what ``match`` has decoded must decode here.

    Raises:
        UserError: the table cannot be opened.
    """
    path = Path(path)
    seen: set[str] = set()

    def make(row: int, value: dict[str, Any]) -> list[Triplet]:
        more = value.get("provenance") or {}
        if not isinstance(more, dict):
            raise UserError(f"field 'provenance' is a {type(more).__name__}; give an object")
        provenance = {str(k): str(v) for k, v in more.items()}
        fields = {k: provenance.pop(k, value.get(k) or "") for k in _FIELDS}
        if not fields["keyword"] and not fields["caption"]:
            raise UserError("neither 'keyword' nor 'caption'; give one, to say what is shown")
        try:
            cosine = float(fields["cosine"] or "nan")
        except (TypeError, ValueError):
            raise UserError(
                f"field 'cosine' is no number but {short(repr(fields['cosine']))}"
            ) from None
        id = str(value.get("id") or f"{path.stem}-{row}")
        if id in seen:
            raise UserError(f"an earlier row has the same id ({short(id)}); rename one of them")
        seen.add(id)
        return [
            Triplet(
                id=id,
                query=text_field(value, "text"),
                keyword=str(fields["keyword"]),
                image=_stored(value, path.parent, str(fields["image_digest"])),
                caption=str(fields["caption"]),
                category=str(value.get("category") or ""),
                cosine=cosine,
                provenance=provenance,
            )
        ]

    return records_of(path, read_rows(path), make)


def _stored(row: dict[str, Any], folder: Path, digest: str) -> bytes | PictureFile:
    name = row.get("image")
    if not isinstance(name, str) or images.is_url(name):
        return named_picture(row, "image", folder, check=True)
    path = folder / picture_name(row, "image")
    if not digest or not path.is_file():
        digest = digest_of(picture(path, check=True))
    return PictureFile(path, digest)


def _as_record(triplet: Triplet) -> Record:
    fields = {
        "keyword": triplet.keyword,
        "caption": triplet.caption,
        "cosine": f"{triplet.cosine:.6f}",
        "image_digest": triplet.digest,
    }
    return Record(
        id=triplet.id,
        images=(triplet.picture,),
        text=triplet.query,
        category=triplet.category,
        source="triplets",
        provenance=fields | dict(triplet.provenance),
    )
