"""What a library is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a library, not yet read.

    Attributes:
        id: the same on every run: the path below the library's folder, or the picture's address.
        read: gives the encoded file (JPEG, PNG, ...). Raises UserError, naming the file, where it
            is missing, empty or too large; whether it decodes is for `io.images.decode` to say.
        caption: what the picture shows, on one line; "" where nobody has said.
        provenance: where it came from; ``captions`` holds all of several, one a line.
        stamp: another one when the file has been changed; "" where only reading it would tell.
    """

    id: str
    read: Callable[[], bytes]
    caption: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    stamp: str = ""


def captioned(
    id: str,
    read: Callable[[], bytes],
    captions: list[str],
    provenance: dict[str, str],
    stamp: str = "",
) -> Picture:
    """A picture with the first of its captions; empty ones do not count."""
    texts = [text for caption in captions if (text := " ".join(caption.split()))]
    if len(texts) > 1:
        provenance = provenance | {"captions": "\n".join(texts)}
    return Picture(id, read, texts[0] if texts else "", provenance, stamp)


def below(file: Path, root: Path) -> str:
    """The file's path below ``root``, with ``/`` on every system."""
    return file.relative_to(root).as_posix()
