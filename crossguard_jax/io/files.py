"""Which files something was made from, and whether they are still the same."""

import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
LIBRARIES = ("jax", "jaxlib", "transformers", "torch")
_noted: ContextVar[dict[str, str] | None] = ContextVar("_noted", default=None)


@contextmanager
def noting() -> Iterator[dict[str, str]]:
    """Collects the stamps, by path, of every file that `note` hears of within; also of files that
    were looked for and are not there."""
    stamps: dict[str, str] = {}
    token = _noted.set(stamps)
    try:
        yield stamps
    finally:
        _noted.reset(token)


def note(path: Path) -> None:
    """Tells whoever is `noting` that a file is about to be read, or is looked for."""
    stamps = _noted.get()
    if stamps is not None:
        stamps.setdefault(str(path), stamp(path))


def note_under(*roots: str | Path) -> None:
    """`note` of files, and of folders with all that is in them: a file that comes changes its
    folder."""
    for root in {Path(root) for root in roots} - {Path()}:
        for path in (root, *root.rglob("*")):
            note(path)


def stamp(path: str | Path) -> str:
    """Size and time of a file: another one when it has been changed; "" where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def digest(path: str | Path) -> str:
    """SHA-256 of a file; "" of what is none that can be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def unchanged(stamps: Mapping[str, str]) -> bool:
    """Whether every file is as it was when it was noted."""
    return all(stamp(path) == before for path, before in stamps.items())


def stamps_under(root: Path, pattern: str = "*") -> Iterator[tuple[str, str]]:
    """Path and stamp of a file, or of the files in a folder; of nothing that is not there."""
    for path in sorted(root.rglob(pattern)) if root.is_dir() else [root]:
        if path.is_file():
            yield str(path), stamp(path)


def code() -> str:
    """Another one when any file of the package has changed, or a library that computes has."""
    stamps = [" ".join(each) for each in stamps_under(CODE, "*.py")]
    stamps += [f"{name} {_version(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def _version(library: str) -> str:
    """Of what is installed, without its import; "" of what is not."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
