"""Files in folders and in zip and tar archives, by one path: ``data/SIUO.zip/images/S-01.png``.

Nothing is ever unpacked to the disk: a member is read where it lies.
"""

import functools
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io.files import note, stamp

ENDINGS = (".zip", ".tar")
PACKED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".7z", ".rar")
"""Archives of which a member cannot be read without all that lies before it."""

# RuntimeError: a zip with a password; NotImplementedError: one packed in a way of its own.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)
_UNREADABLE = (*_DAMAGE, RuntimeError, NotImplementedError)


class _Archive:
    """What is in an archive: its files by their path in it, and the names in each folder."""

    def __init__(self, path: Path):
        self._path = path
        self._zip = zipfile.ZipFile(path) if path.suffix.lower() == ".zip" else None
        self.files: dict[str, Any] = {}
        self.folders: dict[str, set[str]] = defaultdict(set, {"": set()})
        for name, info in self._members():
            inner = PurePosixPath(name)
            if inner.is_absolute() or ".." in inner.parts:
                continue
            self.files[str(inner)] = info
            for part in (inner, *inner.parents[:-1]):
                self.folders[_inside(part.parent)].add(part.name)

    def _members(self) -> Iterator[tuple[str, Any]]:
        if self._zip is not None:
            yield from ((info.filename, info) for info in self._zip.infolist() if not info.is_dir())
            return
        with tarfile.open(self._path, "r:") as tar:
            yield from ((info.name, info) for info in tar if info.isreg())
            # tarfile takes half a header for the end, of which a whole archive has a mark.
            assert tar.fileobj is not None, "it is open"
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")

    @contextmanager
    def opened(self, inner: str) -> Iterator[IO[bytes]]:
        info = self.files[inner]
        if self._zip is not None:
            with self._zip.open(info) as file:
                yield file
            return
        with tarfile.open(self._path, "r:") as tar:
            content = tar.extractfile(info)
            assert content is not None, "a regular file has content"
            yield content


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """A file, or a member of an archive, opened to read bytes.

    Raises:
      OSError: there is no such file, or what is in it cannot be read.
    """
    path = Path(path)
    inside = _split(path)
    if inside is None:
        with path.open("rb") as file:
            yield file
        return
    archive, inner = inside
    if inner not in archive.files:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    try:
        with archive.opened(inner) as file:
            yield file
    except _UNREADABLE as error:
        raise OSError(f"damaged in its archive: {short(error)}") from error


def is_file(path: str | Path) -> bool:
    """Whether there is such a file, or such a member of an archive."""
    path = Path(path)
    inside = _split(path)
    try:
        return path.is_file() if inside is None else inside[1] in inside[0].files
    except OSError:  # a name of a thousand letters
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; an archive is one."""
    path = Path(path)
    inside = _split(path)
    return path.is_dir() if inside is None else inside[1] in inside[0].folders


def listing(folder: str | Path) -> list[Path]:
    """What lies in a folder, sorted; nothing where there is none."""
    folder = Path(folder)
    inside = _split(folder)
    if inside is not None:
        return [folder / name for name in sorted(inside[0].folders.get(inside[1], ()))]
    return sorted(folder.iterdir()) if folder.is_dir() else []


def archive_of(path: str | Path) -> Path | None:
    """The archive that a path is, or leads into; None where it is in none."""
    place = _place(Path(path))
    return None if place is None else place[0]


def _place(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into and the rest of it, "" for the archive itself."""
    if not any(part.lower().endswith(ENDINGS) for part in path.parts):
        return None
    for parent in (path, *path.parents):
        if parent.name.lower().endswith(ENDINGS) and parent.is_file():
            return parent, _inside(PurePosixPath(path.relative_to(parent).as_posix()))
    return None


def _split(path: Path) -> tuple[_Archive, str] | None:
    place = _place(path)
    if place is None:
        return None
    note(place[0])
    return _archive(place[0], stamp(place[0])), place[1]


@functools.lru_cache(maxsize=8)
def _archive(path: Path, stamp: str) -> _Archive:
    """An archive as it was at its stamp."""
    try:
        return _Archive(path)
    except (*_UNREADABLE, OSError) as error:
        raise UserError(
            f"{short(path)}: the archive is cut short or damaged ({short(error)}); "
            "download it again"
        ) from error


def _inside(path: PurePosixPath) -> str:
    return "" if str(path) == "." else str(path)
