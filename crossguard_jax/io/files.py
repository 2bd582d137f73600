"""Which files something was made from, and whether they are still the same."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

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


def stamp(path: str | Path) -> str:
    """Size and time of a file: another one when it has been changed; "" where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def unchanged(stamps: Mapping[str, str]) -> bool:
    """Whether every file is as it was when it was noted."""
    return all(stamp(path) == before for path, before in stamps.items())
