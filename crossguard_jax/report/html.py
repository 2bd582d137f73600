"""A report as one HTML file that asks nothing of any other: pictures inline, no link but to pages.

``templates/report.html.j2`` is the page, ``templates/blocks`` has one file a kind of block; jinja2
escapes every value. The page's Content-Security-Policy forbids everything but inline style, inline
pictures and, where there are rows to filter, our own script by its hash, so that a row that
somebody wrote to be read by a browser stays text.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment
from markupsafe import Markup, escape

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.io import images
from crossguard_jax.report import drawing
from crossguard_jax.report.blocks import Listing, Section, resolve
from crossguard_jax.report.pages import environment, script
from crossguard_jax.report.tables import ABSENT, Table
from crossguard_jax.report.text import first_sentence, printable, shortened, unquoted

THUMBNAIL = 240  # pixels along the longer side of an example's picture
SMALL = 128  # up to here a picture's pixels keep their edges

Links = Sequence[tuple[str, str]]
"""Pages by what they are called, and where; the page itself is nowhere."""


def render(
    title: str,
    sections: Sequence[Section],
    figures: Mapping[str, Estimate],
    links: Links = (),
    thumbnails: "Thumbnails | None" = None,
) -> str:
    """The whole report as one page.

    Args:
        title: its heading.
        sections: in reading order.
        figures: that texts may cite.
        links: the other pages.
        thumbnails: those that other pages show, too.
    """
    pages = _environment()
    filters = any(isinstance(block, Listing) for each in sections for block in each.blocks)
    source, digest = script(pages, "filters.js") if filters else ("", "")
    return pages.get_template("report.html.j2").render(
        title=title,
        sections=sections,
        figures=figures,
        links=links,
        thumbnail=Thumbnails() if thumbnails is None else thumbnails,
        script=source,
        script_hash=digest,
    )


@cache
def _environment() -> Environment:
    return environment(
        kind=lambda block: type(block).__name__.lower(),
        marked=_marked,
        shown_width=_shown_width,
        first_sentence=first_sentence,
        shortened=shortened,
        breakable=_breakable,
        wordy=_wordy,
        without_n=_without_n,
    )


def _marked(text: str, figures: Mapping[str, Estimate]) -> Markup:
    """Figures put in, then escaped, then ``code`` and **bold**."""
    escaped = str(escape(printable(resolve(text, figures))))
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    marked = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)
    return Markup(unquoted(marked, lambda mark: str(escape(mark))))


def _breakable(text: str) -> Markup:
    """A name that may go on in the next line after an underscore."""
    return Markup(str(escape(printable(text))).replace("_", "_<wbr>"))


def _wordy(table: Table) -> list[Markup]:
    """An attribute for the cells of each column: those of words begin at the left."""
    cells = [[c for c in column if isinstance(c, str)] for column in zip(*table.rows, strict=True)]
    words = [any(c[:1] not in "+-0123456789" + ABSENT for c in column) for column in cells]
    return [Markup(' class="words"' * each) for each in words or [False] * len(table.columns)]


def _without_n(column: str) -> tuple[str, str]:
    """A column's heading, and the count of its rows (``n = 1,024``) where it ends in one."""
    name, comma, n = column.rpartition(", n = ")
    return (name, f"n = {n}") if comma else (column, "")


def _shown_width(png: bytes) -> int:
    """CSS pixels. Drawn at DPI dots an inch; shown at 120, where 9-point letters match the text."""
    return round(int.from_bytes(png[16:20], "big") * 120 / drawing.DPI)


@dataclass(frozen=True)
class Thumbnail:
    """A row's picture as a card shows it; a small one keeps its pixels' edges."""

    encoded: bytes
    kind: str
    small: bool


class Thumbnails:
    """Rows' pictures, shrunk once however many cards show them."""

    def __init__(self) -> None:
        self._made: dict[bytes, Thumbnail | str] = {}

    def __call__(self, picture: bytes | None) -> Thumbnail | str:
        """The picture shrunk, or words in its place."""
        if picture is None:
            return "no picture"
        key = hashlib.sha256(picture).digest()
        if key not in self._made:
            self._made[key] = _thumbnail(picture)
        return self._made[key]


def _thumbnail(picture: bytes) -> Thumbnail | str:
    try:
        decoded = images.decode(picture, "example")
    except UserError:
        return "unreadable picture"
    # Pixels only, encoded anew: what else the file carried (EXIF, trailing bytes) stays behind.
    if max(decoded.size) <= SMALL:
        return Thumbnail(images.encode_png(decoded), "png", small=True)
    decoded.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=1.0)  # a page has many
    buffer = io.BytesIO()
    decoded.save(buffer, "JPEG", quality=85)
    return Thumbnail(buffer.getvalue(), "jpeg", small=False)
