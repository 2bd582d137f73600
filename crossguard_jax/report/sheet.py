"""A page on which a person judges rows, one HTML file that asks nothing of any other.

Answers stay in the page until they are saved, as a JSON file: ``{"rows": {ID: {QUESTION: bool}}}``.
Its Content-Security-Policy allows one script, by its hash: what a row says stays text.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader

from crossguard_jax.report.html import environment


@dataclass(frozen=True)
class Question:
    """Something to answer with yes or no of every row; ``name`` is its key in the file."""

    name: str
    text: str


@dataclass(frozen=True)
class SheetItem:
    """A row to judge.

    Attributes:
        id: its key in the file.
        picture: an encoded picture, or None.
        lines: what to read beside it: pairs of a heading and a text.
    """

    id: str
    picture: bytes | None
    lines: tuple[tuple[str, str], ...]


def render(
    title: str,
    intro: str,
    questions: Sequence[Question],
    items: Sequence[SheetItem],
    file: str,
) -> str:
    """The page.

    Args:
        title: its heading.
        intro: what to do, with ``code`` and **bold** marked as in Markdown.
        questions: asked of every row.
        items: the rows.
        file: what the saved answers are called.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("sheet.html.j2")
        .render(
            title=title,
            intro=intro,
            questions=questions,
            items=items,
            file=file,
            script=script,
            script_hash=digest,
        )
    )


@cache
def _script() -> str:
    loader = PackageLoader("crossguard_jax.report")
    return loader.get_source(Environment(), "sheet.js")[0]
