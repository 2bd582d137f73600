"""Where things lie in a download: a folder or an archive, unpacked or not, one level up or down."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.common import picture, records_of, shuffled
from crossguard_jax.data.sources.reading import MISSING
from crossguard_jax.io import archives, images
from crossguard_jax.io.files import note
from crossguard_jax.io.lines import Row

MISSING_PICTURES = ("out", "in")
"""What becomes of a row whose picture is not there: it is rejected, and out of the denominator; or
it stays in it, with the pictures that are there, or its text alone."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file of a download.

    Attributes:
      given: the folder or archive that the user gave.
      root: the folder, or the archive, in which the download's paths begin.
      file: the file.
    """

    given: Path
    root: Path
    file: Path


def find(path: str | Path, title: str, *places: str) -> Place:
    """The first of the files ``places`` that a download has.

    It is looked for in the folder or archive ``path``, in the folders and archives in that, and in
    the folder around it. A ``path`` that is a file is taken for the one looked for.

    Args:
      path: what the user gave.
      title: the set's name, for errors.
      places: paths in the download, the most likely first.

    Raises:
      UserError: none of them is there, or two folders have one.
    """
    path = Path(path)
    place = lookup(path, title, *places)
    if place is None:
        raise UserError(
            f"{path}: no {places[0]} of {title} in it, nor in what it holds{_like(path, places)}"
        )
    return place


def lookup(path: Path, title: str, *places: str) -> Place | None:
    """As `find`; None where none of the files is there.

    Raises:
      UserError: there is nothing at ``path``, or two folders have such a file.
    """
    if path.name.lower().endswith(archives.PACKED):
        raise UserError(
            f"{path}: a packed archive cannot be read row by row; unpack it and give the folder"
        )
    if not archives.is_folder(path):
        if not archives.is_file(path):
            raise UserError(f"{path}: no such folder or archive; give the download of {title}")
        inner = (PurePosixPath(place).parent.parts for place in places)
        folders = path.parent.parts
        depth = max(len(p) for p in [(), *inner] if folders[len(folders) - len(p) :] == p)
        return Place(path.parents[depth], path.parents[depth], path)
    for place in places:
        note(path / place)
    for roots in _roots(path):
        files = [(root, next(_files(root, places), None)) for root in roots]
        hits = [Place(path, root, file) for root, file in files if file is not None]
        if len(hits) > 1:
            names = " and ".join(hit.root.name for hit in hits[:2])
            raise UserError(f"{path}: {names} both look like {title}; give one of them")
        if hits:
            return hits[0]
    return None


def _files(root: Path, places: Sequence[str]) -> Iterator[Path]:
    return (root / place for place in places if archives.is_file(root / place))


def _roots(path: Path) -> Iterator[list[Path]]:
    """Folders to look in, those first that are looked in first."""
    yield [path]
    inside = [each for each in archives.listing(path) if not each.name.startswith((".", "__"))]
    yield [
        each for each in inside if archives.is_folder(each) and archives.archive_of(each) != each
    ]
    packed = [each for each in inside if archives.archive_of(each) == each]
    yield packed
    yield [
        each for archive in packed for each in archives.listing(archive) if archives.is_folder(each)
    ]
    yield [path.parent]


PARTS = {
    *("train", "training", "val", "validation", "dev", "test", "testing"),
    *("v", "tiny", "mini", "full", "gen", "mcqa", "chat", "embodied"),
}
"""Words that files of another split, version or part of a set differ by; none of them is the file
that is looked for under another name."""


def _like(path: Path, places: Sequence[str]) -> str:
    """What to do, by the name of a file that is nearly what is looked for."""
    files = [each.name for each in archives.listing(path) if archives.is_file(each)]
    other = ""
    for name in (Path(place).name for place in places):
        stem, ending = Path(name).stem.lower(), Path(name).suffix
        # By their stems: an ending that all share makes no name like another.
        stems = {Path(f).stem.lower(): f for f in files if Path(f).suffix.lower() == ending}
        apart = [each for each in stems if (_words(each) ^ _words(stem)) & PARTS]
        near = difflib.get_close_matches(stem, [s for s in stems if s not in apart], n=1)
        if near:
            return f"; {stems[near[0]]} is, so name it {name}, or give that file itself"
        if match := [s for s in apart if _words(s) <= PARTS or _is_like(s, stem)]:
            other = other or stems[match[0]]
    if other:
        return f"; {other} is, which is another split or part: choose it by READER:PATH:SPLIT"
    return "; give the folder or the archive of the download"


def _words(stem: str) -> set[str]:
    return {*re.findall("[a-z]+", stem)}


def _is_like(stem: str, other: str) -> bool:
    return bool(difflib.get_close_matches(stem, [other], n=1))


class Pictures:
    """The pictures of a download, by the names its rows have for them."""

    def __init__(self, place: Place, *folders: str, check: bool, missing: str = "out"):
        """Looks for the folders.

        Args:
          place: the download.
          folders: where pictures may lie, from the root or from the file; "." is either itself.
            Each may be an archive of that name (``images.zip`` for ``images``) as well.
          check: decode each picture, so that a damaged one is a rejected row.
          missing: one of `MISSING_PICTURES`.

        Raises:
          UserError: none of the folders is there, and rows without pictures are to be left out; or
            ``missing`` is none of the two.
        """
        if missing not in MISSING_PICTURES:
            raise UserError(
                f"missing_pictures={missing!r} is none of {', '.join(MISSING_PICTURES)}"
            )
        self._check, self._missing = check, missing
        self._packed: dict[tuple[Path, str], list[Path]] = {}
        bases = dict.fromkeys([place.file.parent, place.root, place.given])
        self._folders = [f for base in bases for name in folders for f in _unpacked(base, name)]
        if not self._folders and missing == "out":
            raise UserError(
                f"{place.root}: no picture folder {' or '.join(folders)} in it; unpack the pictures"
            )

    def read(
        self,
        names: Sequence[str | bytes],
        record: Record,
        what: str = "the picture in its row",
    ) -> Record:
        """The record with its pictures, by name, by ``data:`` URL, or as they are encoded.

        ``what`` is what an error calls one that is no file.

        Raises:
          UserError: one is damaged, or is not there and the row is to be left out.
        """
        pictures = [self._read(name, what) for name in names]
        absent = pictures.count(None)
        if absent:
            provenance = {**record.provenance, MISSING: str(absent)}
            record = replace(record, provenance=provenance)
        return replace(record, images=tuple(data for data in pictures if data is not None))

    def _read(self, name: str | bytes, what: str) -> bytes | None:
        if isinstance(name, bytes) or images.is_url(name):
            data = name if isinstance(name, bytes) else images.read_url(name, what)
            if self._check:
                images.decode(data, what)
            return data
        places = list(self._places(name))
        for place in places:
            if archives.is_file(place):
                places = [place]
                break
            note(place)
        try:
            # The first of several that are not there says what is wrong with it.
            return picture(places[0], self._check) if places else None
        except images.NoPicture:
            if self._missing == "in":
                return None
            raise

    def _places(self, name: str) -> Iterator[Path]:
        """Where a picture may lie: below a folder, one of whose folders may be an archive still."""
        first, slash, rest = name.partition("/")
        for folder in self._folders:
            yield folder / name
            for archive in self._archives(folder, first) if slash else ():
                yield archive / name
                yield archive / rest

    def _archives(self, folder: Path, name: str) -> list[Path]:
        """The archives that stand for a folder of a folder, looked for once."""
        if (folder, name) not in self._packed:
            packed = [folder / f"{name}{ending}" for ending in archives.ENDINGS]
            for archive in packed:
                note(archive)
            self._packed[folder, name] = [each for each in packed if archives.is_folder(each)]
        return self._packed[folder, name]


def _unpacked(base: Path, name: str) -> Iterator[Path]:
    """A folder and the archives that may stand for it, of those that are there."""
    if archives.is_folder(base / name):
        yield base / name
        return
    for ending in archives.ENDINGS:
        archive = base / f"{name}{ending}"
        if archives.is_folder(archive):
            inner = archive / Path(name).name
            yield inner if archives.is_folder(inner) else archive


@dataclass(frozen=True, slots=True)
class Draft:
    """A record whose pictures are not read yet."""

    id: str
    text: str
    label: str
    category: str = ""
    pictures: tuple[str | bytes, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)  # of the provenance


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one file of a set.

    Attributes:
      file: the file.
      rows: its rows.
      drafts: called with a row's number and the row; gives its drafts, and for what of it is of no
        use the reason. It raises UserError for a row that gives nothing.
      pictures: the set's pictures; None where it has none.
    """

    file: Path
    rows: Iterable[Row]
    drafts: Callable[[int, dict[str, Any]], Sequence[Draft | UserError]]
    pictures: Pictures | None


def drafted(
    source: str, parts: Iterable[FileRows], seed: int | None = None
) -> Iterator[Record | Rejected]:
    """Records of a set's rows.

    Args:
      source: the reader's name.
      parts: its files.
      seed: draws the order of the rows of all of them together; None keeps the files'.
    """
    rows = ((part, row) for part in parts for row in part.rows)
    for part, row in shuffled(rows, seed):
        yield from records_of(part.file, [row], partial(_records, source, part))


def _records(
    source: str, part: FileRows, row: int, value: dict[str, Any]
) -> list[Record | Rejected]:
    made: list[Record | Rejected] = []
    for draft in part.drafts(row, value):
        if isinstance(draft, UserError):
            made.append(Rejected(str(part.file), row, str(draft)))
            continue
        record = Record(
            id=draft.id,
            images=(),
            text=draft.text,
            label=draft.label,
            category=draft.category,
            source=source,
            provenance={"file": str(part.file), "row": str(row), **draft.extra},
        )
        try:
            made.append(part.pictures.read(draft.pictures, record) if part.pictures else record)
        except UserError as error:  # a row's other pictures may be good
            made.append(Rejected(str(part.file), row, str(error)))
    return made
