"""A report as Markdown, with its pictures in files beside it."""

import re
from collections.abc import Mapping, Sequence

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report import tables
from crossguard_jax.report.blocks import (
    Block,
    Bullets,
    Code,
    Definitions,
    Examples,
    Listing,
    Plot,
    Section,
    Text,
    resolve,
)
from crossguard_jax.report.tables import ABSENT, Table
from crossguard_jax.report.text import escape_markdown, printable, unquoted


def render(
    title: str, sections: Sequence[Section], figures: Mapping[str, Estimate], plot_folder: str
) -> str:
    """The whole report; plots are looked for as ``plot_folder/NAME.png``."""
    parts = [f"# {escape_markdown(title)}"]
    for section in sections:
        parts.append(f"## {escape_markdown(section.title)}")
        parts += [_block(block, figures, plot_folder) for block in section.blocks]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _block(block: Block, figures: Mapping[str, Estimate], plot_folder: str) -> str:
    match block:
        case Text(text):
            return _marked(text, figures)
        case Bullets(items):
            return "\n".join(f"- {_marked(item, figures)}" for item in items)
        case Definitions(items):
            return "\n".join(f"- **{term}**: {_marked(text, figures)}" for term, text in items)
        case Code(text):
            # A fence longer than any in the text, so that the text cannot end it.
            text = printable(text)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Table():
            return tables.to_markdown(block)
        case Plot(name=name, caption=caption):
            return _picture(name, caption, plot_folder)
        case Examples(name=name, items=items, caption=caption):
            # Whoever wants to see the pictures asks for them.
            link = f"[The pictures of these rows]({plot_folder}/{name}.png)"
            return f"{link}\n\n*{escape_markdown(caption)}*\n\n{_example_table(items)}"
        case Listing(items=items, caption=caption):
            return f"{_marked(caption, figures)}\n\n{_example_table(items)}"


def _marked(text: str, figures: Mapping[str, Estimate]) -> str:
    return unquoted(resolve(text, figures), escape_markdown)


def _picture(name: str, caption: str, plot_folder: str) -> str:
    shown = escape_markdown(caption)
    return f"![{escape_markdown(name)}]({plot_folder}/{name}.png)\n\n*{shown}*"


def _example_table(items: Sequence) -> str:
    lines = [
        "| outcome | truth | p(unsafe) | benchmark | id | text |",
        "|---|---|---:|---|---|---|",
    ]
    for example in items:
        words = map(escape_markdown, (example.benchmark, example.id, example.text))
        p_unsafe = f"{example.p_unsafe:.3f}" if example.answered else ABSENT
        cells = [example.outcome, example.truth, p_unsafe, *words]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
