"""One report in memory, three files on disk: ``report.md``, ``report.html``, ``report.json``.

A report is a title, sections and facts about the run. Sections are made anywhere (the guard's in
``guard_report``) and put in a list; every number in a table keeps its dotted name, so the JSON
holds what the reader saw and nothing can disagree.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report import drawing, html, markdown, plots
from crossguard_jax.report.blocks import Code, Examples, Plot, Section

PLOT_FOLDER = "plots"
PAGE_FOLDER = "systems"


@dataclass(frozen=True)
class SubPage:
    """A page beside the report's own, in HTML alone: its title and sections."""

    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Report:
    """What there is to say about a run.

    Attributes:
        title: One line.
        sections: In reading order.
        meta: Facts about the run (command, seeds, versions, threshold, seconds), all of them JSON
            values. They close the report and stand under ``meta`` in the JSON.
        pages: Other pages by the name of their files, ``systems/NAME.html``; their figures are the
            report's.
    """

    title: str
    sections: Sequence[Section]
    meta: Mapping[str, Any] = field(default_factory=dict)
    pages: Mapping[str, SubPage] = field(default_factory=dict)

    def figures(self) -> dict[str, Estimate]:
        """Every figure of the report by its dotted name.

        Raises:
            ValueError: Two sections give one name to different numbers, or a name is ``meta``.
        """
        figures: dict[str, Estimate] = {}
        for section in self.sections:
            for name, estimate in section.all_figures():
                first = figures.setdefault(name, estimate)
                if first.as_dict() != estimate.as_dict():
                    raise ValueError(f"the report has two different figures called {name!r}")
        if "meta" in figures:
            raise ValueError("a figure cannot be called 'meta'; report.json uses that name")
        return figures

    def to_markdown(self) -> str:
        """``report.md``; its plots are ``plots/NAME.png`` beside it."""
        return markdown.render(self.title, self._sections(), self.figures(), PLOT_FOLDER)

    def to_html(self) -> str:
        """``report.html``, complete in itself."""
        return html.render(self.title, self._sections(), self.figures(), self._links())

    def to_pages(self) -> dict[str, str]:
        """The other pages by their paths beside ``report.html``, each complete in itself."""
        figures, thumbnails = self.figures(), html.Thumbnails()
        return {
            f"{PAGE_FOLDER}/{name}.html": html.render(
                page.title, page.sections, figures, self._links(name), thumbnails
            )
            for name, page in self.pages.items()
        }

    def to_json(self) -> str:
        """``report.json``: ``meta``, then ``{"value", "low", "high", "n"}`` by dotted name.

        What is undefined (a share of no rows, the interval of a count) is null.
        """
        entries = {name: estimate.as_dict() for name, estimate in self.figures().items()}
        document = {"meta": {"title": self.title, **self.meta}, **entries}
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Writes the three files, the other pages, and the plots (PNG and PDF) into ``folder``.

        Returns:
            The path of ``report.html``.

        Raises:
            ValueError: See ``figures`` and ``blocks.resolve``; nothing is written then.
        """
        folder = Path(folder)
        pages = {
            "report.md": self.to_markdown(),
            "report.json": self.to_json(),
            "report.html": self.to_html(),
            **self.to_pages(),
        }
        for name, data in self._plot_files().items():
            write_atomic(folder / PLOT_FOLDER / name, data)
        for name, text in pages.items():
            write_atomic(folder / name, text.encode("utf-8", errors="replace"))
        return folder / "report.html"

    def _sections(self) -> list[Section]:
        return [*self.sections, *([_meta_section(self.meta)] if self.meta else [])]

    def _links(self, here: str = "") -> html.Links:
        """What a page links to; nothing where it is the only one."""
        if not self.pages:
            return ()
        up, down = ("../", "") if here else ("", f"{PAGE_FOLDER}/")
        return [
            (self.title, f"{up}report.html" if here else ""),
            *((p.title, "" if n == here else f"{down}{n}.html") for n, p in self.pages.items()),
        ]

    def _plot_files(self) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Plot):
                    _add(files, f"{block.name}.png", block.png)
                    _add(files, f"{block.name}.pdf", block.pdf)
                elif isinstance(block, Examples):
                    _add(files, f"{block.name}.png", drawing.png(plots.example_grid(block.items)))
        return files


def _add(files: dict[str, bytes], name: str, data: bytes) -> None:
    if name in files:
        raise ValueError(f"the report has two plots that would be written to {name!r}")
    files[name] = data


def _meta_section(meta: Mapping[str, Any]) -> Section:
    lines = (
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in meta.items()
    )
    return Section("How this was made", (Code("\n".join(lines)),))
