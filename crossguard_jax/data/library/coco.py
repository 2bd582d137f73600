"""COCO (Lin et al., ECCV 2014; captions: Chen et al., 2015) as downloaded."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library.picture import Picture, below, captioned
from crossguard_jax.data.records import Rejected
from crossguard_jax.io import images
from crossguard_jax.io.files import stamp
from crossguard_jax.io.jsonl import read_json


def coco(root: Path, captions: Path | None, language: str) -> Iterator[Picture | Rejected]:
    """The pictures that ``annotations/captions_RELEASE.json`` names, by release and file name.

    RELEASE is train2017, val2014, ...; its pictures lie in ``RELEASE/``, ``images/RELEASE/`` or
    ``images/``. A release without a folder of pictures is rejected as a whole. Of a picture's five
    captions the one with the lowest annotation id is the caption. Pictures that share an image id
    are rejected: the captions of that id could be any one's.
    """
    for file in [captions] if captions else caption_files(root):
        try:
            pictures = _pictures_of(root, file)
            named, texts = _content(file)
        except UserError as error:
            yield Rejected(str(file), 1, str(error))
            continue
        # The same picture may stand there twice; two pictures may not share an id.
        times = Counter(number for number, _ in {(number, name) for _, number, name in named})
        for position, number, name in named:
            if times[number] > 1:
                reason = f"image id {number} is {times[number]} pictures', so no caption is sure"
                yield Rejected(str(file), position, reason)
                continue
            picture = pictures / name
            if not picture.is_file():
                yield Rejected(str(file), position, f"there is no picture {picture}")
                continue
            yield captioned(
                below(picture, root),
                functools.partial(images.read_picture, picture),
                [text for _, text in sorted(texts[number])],
                {"library": "coco", "file": str(file), "row": str(position)},
                stamp(picture),
            )


def caption_files(root: Path) -> list[Path]:
    """The captions of every release in ``root``."""
    return sorted(root.glob("annotations/captions_*.json"))


def _pictures_of(root: Path, file: Path) -> Path:
    release = file.stem.removeprefix("captions_")
    folders = [root / release, root / "images" / release, root / "images"]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(f"no pictures of {release}: unpack them into {folders[0]}")


_Named = list[tuple[int, int, str]]  # position in the file, picture's number, file name


def _content(file: Path) -> tuple[_Named, dict[int, list[tuple[int, str]]]]:
    content = read_json(file, object_hook=_shrink)
    texts: dict[int, list[tuple[int, str]]] = defaultdict(list)
    try:
        for number, annotation, text in content["annotations"]:
            texts[number].append((annotation if isinstance(annotation, int) else 0, text))
        numbered = enumerate(content["images"], start=1)
        named = [(position, number, name) for position, (number, name) in numbered]
    except (KeyError, TypeError, ValueError):
        raise UserError("not COCO's captions: no 'images' and 'annotations'") from None
    return sorted(named, key=lambda entry: entry[2]), texts


def _shrink(entry: dict[str, Any]) -> Any:
    """Keeps what is needed of each object while the file is parsed, which takes gigabytes whole."""
    if "caption" in entry:
        return entry.get("image_id"), entry.get("id"), str(entry["caption"])
    if "file_name" in entry:
        return entry.get("id"), str(entry["file_name"])
    return entry
