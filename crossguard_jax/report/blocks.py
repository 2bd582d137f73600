"""What a report is made of: sections of blocks that know nothing of the file they end up in."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report import drawing
from crossguard_jax.report.examples import OUTCOMES, UNANSWERED, Example
from crossguard_jax.report.tables import Metric, Table, Unit

_UNITS: dict[str, Unit] = {"%": "percent", "pp": "points", "": "plain", "f": "fraction"}
_REFERENCE = re.compile(r"\{([a-z0-9_]+(?:\.[a-z0-9_]+)+)(?::(%|pp|f))?\}")


@dataclass(frozen=True)
class Text:
    """A paragraph. ``code`` and **bold** are marked as in Markdown.

    ``{guard.full.implicit.asr:%}`` becomes that figure of the report with its interval, in percent
    (``:pp`` for a difference in points, ``:f`` for three decimals, nothing for a plain number).
    """

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short texts, each written as in ``Text``."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Definitions:
    """Terms and what they mean, each meaning written as in ``Text``."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Commands or output, shown as they are."""

    text: str


@dataclass(frozen=True)
class Plot:
    """A drawing: PNG for the screen, PDF for a paper. ``name`` is its file's name."""

    name: str
    png: bytes
    pdf: bytes
    caption: str

    @classmethod
    def of(cls, name: str, figure: Figure, caption: str) -> "Plot":
        """The block for a figure that ``plots`` drew."""
        return cls(name, drawing.png(figure), drawing.pdf(figure), caption)


@dataclass(frozen=True)
class Examples:
    """Single rows with their verdicts: cards in HTML, one picture in Markdown."""

    name: str
    items: tuple[Example, ...]
    caption: str


@dataclass(frozen=True)
class Listing:
    """Many rows with their verdicts: in HTML cards that a reader filters. One to a page.

    ``caption`` stands above them, written as in ``Text``.
    """

    items: tuple[Example, ...]
    caption: str

    def verdicts(self) -> list[tuple[str, int]]:
        """What a verdict may be, with how many there are of each."""
        counts = Counter(word for row in self.items for word in (_rightness(row), row.outcome))
        return [(w, counts[w]) for w in ("wrong", "right", *OUTCOMES, UNANSWERED) if counts[w]]

    def sets(self) -> list[tuple[str, int, list[tuple[str, int]]]]:
        """Benchmarks with their rows and, by name, their categories with theirs."""
        rows = Counter(row.benchmark for row in self.items)
        categories = Counter((row.benchmark, row.category) for row in self.items if row.category)
        return [
            (name, n, [(each, m) for (of, each), m in sorted(categories.items()) if of == name])
            for name, n in rows.items()
        ]


def _rightness(row: Example) -> str:
    return "right" if row.right else "wrong"


Block = Text | Bullets | Definitions | Code | Table | Plot | Examples | Listing


@dataclass(frozen=True)
class Section:
    """A heading, what stands under it, and figures it brings beyond those in its tables.

    Attributes:
        title: The heading.
        blocks: In reading order.
        figures: Estimates by full dotted name (``guard.full.implicit.asr``), for ``report.json``.
    """

    title: str
    blocks: tuple[Block, ...]
    figures: Mapping[str, Estimate] = field(default_factory=dict)

    def all_figures(self) -> Iterator[tuple[str, Estimate]]:
        """Its own figures and those of its tables; a name may come more than once."""
        yield from self.figures.items()
        for block in self.blocks:
            if isinstance(block, Table):
                yield from block.figures().items()


def resolve(text: str, figures: Mapping[str, Estimate]) -> str:
    """The text with every ``{dotted.name:unit}`` replaced by the figure it names.

    Raises:
        ValueError: A name that the report has no figure for.
    """

    def shown(match: re.Match[str]) -> str:
        name, unit = match.group(1), match.group(2) or ""
        if name not in figures:
            raise ValueError(f"a text of the report cites {name!r}, which no section measures")
        sign = "%" if unit == "%" else ""
        metric = Metric(name, figures[name], _UNITS[unit])
        interval = metric.interval_text()
        return f"{metric.value_text()}{sign}" + (f" [{interval}]" if interval else "")

    return _REFERENCE.sub(shown, text)
