"""A page on which a person judges rows: one HTML file that needs no network.

``templates/review.html.j2`` has a form a row, ``templates/review.js`` turns its pages, takes the
keys and saves ``decisions.json``. The page's Content-Security-Policy runs that script alone, by its
hash: what a row's author wrote stays text.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import images
from crossguard_jax.report.pages import data_uri, environment, script

PICTURE = 720  # pixels along the longer side, enough to read what a picture says
SMALL = 128  # up to here a picture's pixels keep their edges


@dataclass(frozen=True)
class ReviewCard:
    """One row to judge.

    Attributes:
        key: what the decision on it goes by.
        title: its name.
        text: the words.
        pictures: encoded.
        facts: what else is known of it, by name.
    """

    key: str
    title: str
    text: str
    pictures: tuple[bytes, ...]
    facts: tuple[tuple[str, str], ...] = ()


VERDICTS = {"s": "safe", "u": "unsafe", "x": "skip"}
"""What is decided of a request, by the key that says so."""


def render(
    title: str, cards: Sequence[ReviewCard], choices: Mapping[str, str] = VERDICTS, intro: str = ""
) -> str:
    """The page, as text.

    Its script saves ``{"decisions": [{"key", "decision", "note", "who", "when"}, ..]}`` with one of
    the choices for a decision; a row that nobody touched is not in it.

    Args:
        title: its heading.
        cards: the rows.
        choices: by the key that says so, other than n, p and e; ``skip`` is among them.
        intro: what to decide.
    """
    pages = _environment()
    source, digest = script(pages, "review.js")
    keys = hashlib.sha256("\n".join(card.key for card in cards).encode()).hexdigest()
    return pages.get_template("review.html.j2").render(
        title=title,
        cards=cards,
        choices=choices,
        intro=intro,
        script=source,
        script_hash=digest,
        name=keys[:16],
    )


@cache
def _environment() -> Environment:
    return environment(picture=_picture)


@dataclass(frozen=True)
class _Shown:
    uri: str
    small: bool


def _picture(data: bytes) -> _Shown | str:
    """A picture's pixels, encoded anew, so that what else its file holds stays behind."""
    try:
        picture = images.decode(data, "the picture")
    except UserError:
        return "unreadable picture"
    if max(picture.size) <= SMALL:
        return _Shown(data_uri(images.encode_png(picture)), small=True)
    picture.thumbnail((PICTURE, PICTURE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return _Shown(data_uri(buffer.getvalue(), "jpeg"), small=False)
