"""A report as one HTML file that asks nothing of any other: pictures inline, no script, no link.

``templates/report.html.j2`` is the page, ``templates/blocks`` has one file a kind of block; jinja2
escapes every value. The page's Content-Security-Policy forbids everything but inline style and
inline pictures, so that a row that somebody wrote to be read by a browser stays text.
"""

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
from crossguard_jax.report.blocks import Section, resolve
from crossguard_jax.report.pages import environment
from crossguard_jax.report.text import printable

THUMBNAIL = 320  # pixels along the longer side of an example's picture


def render(title: str, sections: Sequence[Section], figures: Mapping[str, Estimate]) -> str:
    """The whole report as one page."""
    page = _environment().get_template("report.html.j2")
    return page.render(title=title, sections=sections, figures=figures)


@cache
def _environment() -> Environment:
    return environment(
        kind=lambda block: type(block).__name__.lower(),
        marked=_marked,
        shown_width=_shown_width,
        thumbnail=_thumbnail,
        without_n=_without_n,
    )


def _marked(text: str, figures: Mapping[str, Estimate]) -> Markup:
    """Figures put in, then escaped, then ``code`` and **bold**."""
    escaped = str(escape(printable(resolve(text, figures))))
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped))


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

    png: bytes
    small: bool


def _thumbnail(picture: bytes | None) -> Thumbnail | str:
    """The picture shrunk, or words in its place."""
    if picture is None:
        return "no picture"
    try:
        decoded = images.decode(picture, "example")
    except UserError:
        return "unreadable picture"
    # Pixels only, encoded anew: what else the file carried (EXIF, trailing bytes) stays behind.
    decoded.thumbnail((THUMBNAIL, THUMBNAIL))
    return Thumbnail(images.encode_png(decoded), max(decoded.size) <= 128)
