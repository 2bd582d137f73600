"""A report's tables for other programs: CSV for spreadsheets, LaTeX for papers."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report.blocks import Section
from crossguard_jax.report.tables import Cell, Metric, Table
from crossguard_jax.report.text import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "→": r"$\to$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def write_tables(
    sections: Sequence[Section], figures: Mapping[str, Estimate], folder: str | Path
) -> None:
    """Writes ``figures.csv``, every figure, and each table as ``tables/SECTION.csv`` and ``.tex``.

    Args:
        sections: of the report.
        figures: its figures.
        folder: of the report.
    """
    folder = Path(folder)
    write_atomic(folder / "figures.csv", figures_csv(figures).encode())
    for name, table in _named_tables(sections):
        write_atomic(folder / "tables" / f"{name}.csv", to_csv(table).encode())
        write_atomic(folder / "tables" / f"{name}.tex", to_latex(table, name).encode())


def figures_csv(figures: Mapping[str, Estimate]) -> str:
    """``figure,value,low,high,n`` of every figure, in full precision; empty where undefined."""
    rows = [[name, *_numbers(estimate), str(estimate.n)] for name, estimate in figures.items()]
    return _csv([["figure", "value", "low", "high", "n"], *rows])


def to_csv(table: Table) -> str:
    """A table with four columns (value, low, high, n) for each one of figures, in full precision
    and as fractions: a spreadsheet is to compute with them."""
    kinds = [
        any(isinstance(row[i], Metric) for row in table.rows) for i in range(len(table.columns))
    ]
    head: list[str] = []
    for title, has_figures in zip(table.columns, kinds, strict=True):
        name = _guarded(re.sub(r", n = [\d,]+$", "", title))
        head += [
            f"{name} {part}".strip() for part in ("", "low", "high", "n")[: 4 if has_figures else 1]
        ]
    rows = []
    for row in table.rows:
        cells: list[str] = []
        for cell, has_figures in zip(row, kinds, strict=True):
            if isinstance(cell, Metric):
                cells += [*_numbers(cell.estimate), str(cell.estimate.n)]
            else:
                cells += ["", "", "", ""] if has_figures else [_guarded(cell)]
        rows.append(cells)
    return _csv([head, *rows])


def to_latex(table: Table, label: str) -> str:
    """A table as LaTeX with booktabs, all rows of it; intervals stand small beneath their values.

    Args:
        table: the table.
        label: what ``\\ref{tab:LABEL}`` refers to.
    """
    columns = "l" + "r" * (len(table.columns) - 1)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex(table.caption)}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        _latex_row(map(latex, table.columns)),
        "\\midrule",
        *(_latex_row(map(_latex_cell, row)) for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    flat = " ".join(printable(text).split())
    return "".join(_LATEX.get(character, character) for character in flat)


def _latex_row(cells: Iterable[str]) -> str:
    row = " & ".join(cells) + " \\\\"
    # After a line's end these would be its arguments.
    return "{}" + row if row.startswith(("[", "*")) else row


def _latex_cell(cell: Cell) -> str:
    if not isinstance(cell, Metric):
        return latex(cell)
    beside = " ".join(
        filter(None, [cell.interval_text() and f"[{cell.interval_text()}]", cell.n_text()])
    )
    return latex(cell.value_text()) + (f" {{\\scriptsize {latex(beside)}}}" if beside else "")


def _numbers(estimate: Estimate) -> list[str]:
    entry = estimate.as_dict()
    return ["" if entry[end] is None else repr(entry[end]) for end in ("value", "low", "high")]


def _guarded(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    flat = " ".join(printable(text).split())
    return f"'{flat}" if flat[:1] in tuple("=+-@") else flat


def _csv(rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _named_tables(sections: Sequence[Section]) -> Iterator[tuple[str, Table]]:
    """Every table, by its section's title, with a number where one has several."""
    taken: dict[str, int] = {}
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                name = re.sub(r"[^a-z0-9]+", "_", section.title.lower()).strip("_")
                taken[name] = taken.get(name, 0) + 1
                yield (name if taken[name] == 1 else f"{name}_{taken[name]}"), block
