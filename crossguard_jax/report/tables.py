"""Tables of systems against benchmarks, whose cells are metrics and not yet text.

A cell keeps its dotted name and its estimate, so that the Markdown, the HTML and the JSON of a
report show one number and not three copies of it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report.text import escape_markdown

Unit = Literal["percent", "printed", "points", "fraction", "difference", "p", "plain"]
Results = Mapping[str, Mapping[str, Estimate]]
"""Figures by dotted name, by system; the system's key (``guard.full``) prefixes the names."""

ABSENT = "–"
LONG = 15
"""A table of more rows than this shows its first ones; the rest unfold."""


@dataclass(frozen=True)
class Metric:
    """A number in a report: its dotted name, its estimate, and how it is written.

    Units: ``percent`` of a share; ``printed``, the same as papers print it; ``points``, a signed
    difference of shares in percentage points; ``fraction``, three decimals; ``difference``, the
    same with a sign; ``p``, a p-value; ``plain``, a count or a measurement.
    """

    name: str
    estimate: Estimate
    unit: Unit = "percent"
    show_n: bool = False

    def value_text(self) -> str:
        """The value alone, or a dash where nothing was measured."""
        return number_text(self.estimate.value, self.unit)

    def interval_text(self) -> str:
        """``low, high`` in the value's unit; empty where there is no interval."""
        ends = (self.estimate.low, self.estimate.high)
        if any(math.isnan(end) for end in ends):
            return ""
        return ", ".join(number_text(end, self.unit) for end in ends)

    def n_text(self) -> str:
        """``n = 167``, where the column's heading could not say it for all rows."""
        return f"n = {self.estimate.n:,}" if self.show_n else ""

    def text(self) -> str:
        """Everything on one line: ``3.6 [1.7, 7.6]``, perhaps with ``(n = 167)``."""
        interval, n = self.interval_text(), self.n_text()
        parts = [self.value_text(), interval and f"[{interval}]", n and f"({n})"]
        return " ".join(part for part in parts if part)


Cell = str | Metric


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings. The first column names the row, the rest are aligned right.

    Attributes:
        columns: The headings.
        rows: A cell a column; in a long table those that matter most come first.
        caption: What stands under it.
        lead: How many rows of a table longer than ``LONG`` are seen before it is unfolded.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    lead: int = 8

    @property
    def seen(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows that are always shown."""
        return self.rows[: self.lead] if len(self.rows) > LONG else self.rows

    @property
    def folded(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows that a reader unfolds."""
        return self.rows[len(self.seen) :]

    def folded_text(self) -> str:
        """What stands in place of the folded rows."""
        return f"{len(self.folded):,} more rows of {len(self.rows):,}"

    def figures(self) -> dict[str, Estimate]:
        """Every metric in the table by its dotted name."""
        cells = (cell for row in self.rows for cell in row)
        return {cell.name: cell.estimate for cell in cells if isinstance(cell, Metric)}


_MEASURES = {
    "accuracy": "accuracy",
    "complied": "complied",
    "refused": "refused",
    "paired_accuracy": "both twins right",
    "no_answer": "no answer",
}


def number_text(value: float, unit: Unit) -> str:
    """A number as the tables write it."""
    if math.isnan(value):
        return ABSENT
    if unit == "percent":
        return f"{100 * value:.1f}"
    if unit == "printed":
        return f"{100 * value:.2f}"
    if unit == "points":
        rounded = round(100 * value, 1)
        return f"{rounded:+.1f}" if rounded else "0.0"
    if unit == "fraction":
        return f"{value:.3f}"
    if unit == "difference":
        rounded = round(value, 3)
        return f"{rounded:+.3f}" if rounded else "0.000"
    if unit == "p":
        return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def to_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown, its caption under it in italics.

    Rows beyond those that are always shown stand in a ``<details>``, which GitHub folds.
    """
    parts = [_markdown_rows(table.columns, table.seen)]
    if table.folded:
        parts += [f"<details><summary>{table.folded_text()}</summary>"]
        parts += [_markdown_rows(table.columns, table.folded), "</details>"]
    return "\n\n".join([*parts, f"*{escape_markdown(table.caption)}*"]) + "\n"


def _markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    lines = [map(escape_markdown, columns), rule, *(map(_cell_text, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def benchmarks_with(figures: Mapping[str, Estimate], measure: str) -> list[str]:
    """Names of the benchmarks that have the measure, in order, totals and categories left out."""
    names = [name.split(".") for name in figures]
    return [
        parts[0]
        for parts in names
        if len(parts) == 2 and parts[1] == measure and parts[0] not in ("all", "mean")
    ]


def asr_table(results: Results, titles: Mapping[str, str] | None = None) -> Table:
    """Systems by benchmarks: ASR on each and their mean, then FPR on each and over all benign rows;
    of models that answer, what they complied with and what they refused, in columns of their own.

    Args:
        results: What ``evaluate`` gave, by system.
        titles: Names to show for systems and benchmarks; their own where absent.
    """
    titles = titles or {}
    names: list[str] = []
    for through, stopped in (("asr", "fpr"), ("complied", "refused")):
        passed, alarms = benchmarks_of(results, through), benchmarks_of(results, stopped)
        names += [f"{name}.{through}" for name in passed]
        names += [f"mean.{through}"] * (len(passed) > 1)
        names += [f"{name}.{stopped}" for name in alarms]
        there = any(f"all.{stopped}" in figures for figures in results.values())
        names += [f"all.{stopped}"] * (there and len(alarms) != 1)
    caption = (
        "Attack success rate (ASR: malicious rows marked safe) and benign false positive rate "
        "(FPR: benign rows marked unsafe), in percent with 95% intervals; lower is better for "
        "both. Neither means anything without the other."
    )
    if any(name.endswith(".complied") for name in names):
        caption += (
            " Of a model that answers, judged by whether it refuses: the malicious rows that it "
            "complied with, and the benign ones that it refused. That a guard let a row pass is "
            "not yet an answer to it, so that the two have columns of their own."
        )
    return systems_by(results, names, titles, caption)


def ranking_table(results: Results, titles: Mapping[str, str] | None = None) -> Table:
    """One row per system and benchmark: AUROC, recall at 1% and 5% FPR, and the benign FPR beside.

    The measures rank the benchmark's malicious rows against all benign rows given, and AUROC also
    against the benchmark's own.
    """
    titles = titles or {}
    columns: dict[str, tuple[str, Unit]] = {
        "auroc": ("AUROC", "fraction"),
        "auroc_own": ("AUROC, own benign rows", "fraction"),
        "recall_at_1_fpr": ("Recall at 1% FPR (%)", "percent"),
        "recall_at_5_fpr": ("Recall at 5% FPR (%)", "percent"),
    }
    of_systems = [
        [
            (
                f"{titles.get(system, system)}: {titles.get(name, name)}",
                *(
                    metric_cell(system, figures, f"{name}.{measure}", unit)
                    for measure, (_, unit) in columns.items()
                ),
                metric_cell(system, figures, _benign_rate(figures), "percent"),
            )
            for name in [*benchmarks_with(figures, "auroc"), "all"]
        ]
        for system, figures in results.items()
    ]
    return Table(
        ("System: benchmark", *(title for title, _ in columns.values()), "Benign FPR (%)"),
        tuple(row for rows in of_systems for row in rows),
        "Malicious rows of each benchmark ranked against all benign rows (and against the "
        "benchmark's own, where it has any). Recall is the share of "
        "malicious rows flagged at the lowest threshold that flags at most that share of the "
        "benign rows. The last column is the benign FPR at the report's own threshold.",
        lead=len(of_systems[0]),
    )


def calibration_table(results: Results, titles: Mapping[str, str] | None = None) -> Table:
    """Systems by benchmarks: expected calibration error and accuracy over everything."""
    titles = titles or {}
    names = [f"{name}.ece" for name in benchmarks_of(results, "ece")] + ["all.ece", "all.accuracy"]
    return systems_by(
        results,
        names,
        titles,
        "Expected calibration error (ECE: how far p_unsafe lies from the observed share of unsafe "
        "rows, 15 equal bins; lower is better) and accuracy, in percent with 95% intervals.",
    )


def category_table(
    system: str, figures: Mapping[str, Estimate], titles: Mapping[str, str] | None = None
) -> Table:
    """One system, a row per benchmark and category, the worst first: ASR and FPR, each with its n.

    Args:
        system: Its dotted name.
        figures: What ``evaluate`` gave for it.
        titles: Names to show for systems and benchmarks; their own where absent.
    """
    titles = titles or {}
    parts = [name.split(".") for name in figures]
    categories = dict.fromkeys((p[0], p[2]) for p in parts if len(p) == 4 and p[1] == "category")
    answers = "all.complied" in figures
    measures = ("complied", "refused") if answers else ("asr", "fpr")

    def errors(benchmark: str, category: str) -> tuple[float, float]:
        """Of the worse of its rates what it is at least, so that few rows do not come first."""
        names = (f"{benchmark}.category.{category}.{measure}" for measure in measures)
        rates = [figures[name] for name in names if name in figures and figures[name].n]
        return max(((rate.low, rate.value) for rate in rates), default=(0.0, 0.0))

    rows = tuple(
        (
            f"{titles.get(benchmark, benchmark)}: {category.replace('_', ' ')}",
            *(
                metric_cell(
                    system,
                    figures,
                    f"{benchmark}.category.{category}.{measure}",
                    "percent",
                    show_n=True,
                )
                for measure in measures
            ),
        )
        for benchmark, category in sorted(categories, key=lambda c: errors(*c), reverse=True)
    )
    return Table(
        ("Benchmark: category", *(f"{_MEASURES.get(m, m.upper())} (%)" for m in measures)),
        rows,
        f"{titles.get(system, system)}, by category, in percent with 95% intervals; worst first, "
        "by the lower end of the worse rate's interval.",
    )


def difference_table(differences: Results, titles: Mapping[str, str] | None = None) -> Table:
    """Paired differences (``benchmarks.compare``) in percentage points, a row per comparison."""
    titles = titles or {}
    names = dict.fromkeys(
        name for figures in differences.values() for name in figures if "_mcnemar" not in name
    )
    return systems_by(
        differences,
        list(names),
        titles,
        "Paired differences on the same rows, in percentage points with 95% intervals "
        "(Newcombe's method 10); negative means that the first system errs less.",
        unit="points",
        first_column="First minus second",
    )


def systems_by(
    results: Results,
    names: Sequence[str],
    titles: Mapping[str, str],
    caption: str,
    unit: Unit = "percent",
    first_column: str = "System",
) -> Table:
    """Systems in rows, dotted names in columns; n goes to the heading where all rows share it."""
    headings, shared = [first_column], {}
    for name in names:
        counts = {figures[name].n for figures in results.values() if name in figures}
        shared[name] = len(counts) == 1
        n = f", n = {counts.pop():,}" if shared[name] else ""
        headings.append(f"{_heading(name, titles)}{n}")
    rows = tuple(
        (
            titles.get(system, system),
            *(metric_cell(system, figures, name, unit, show_n=not shared[name]) for name in names),
        )
        for system, figures in results.items()
    )
    return Table(tuple(headings), rows, caption)


def _benign_rate(figures: Mapping[str, Estimate]) -> str:
    return "all.fpr" if "all.fpr" in figures else "all.refused"


def metric_cell(
    system: str, figures: Mapping[str, Estimate], name: str, unit: Unit, show_n: bool = False
) -> Cell:
    """A system's figure, or a dash where it has none of that name."""
    if name not in figures:
        return ABSENT
    return Metric(f"{system}.{name}", figures[name], unit, show_n)


def _heading(name: str, titles: Mapping[str, str]) -> str:
    benchmark, measure = name.rsplit(".", 1)
    benign = measure in ("fpr", "refused")
    words = {"all": "all benign" if benign else "all", "mean": "mean"}
    shown = titles.get(benchmark, words.get(benchmark, benchmark))
    kind = re.sub("_(difference|mcnemar_holm|by_picture)$", "", measure)
    return f"{shown} {_MEASURES.get(kind, kind.upper())}"


def benchmarks_of(results: Results, measure: str) -> list[str]:
    """`benchmarks_with` of all systems together."""
    names: Iterable[str] = (
        name for figures in results.values() for name in benchmarks_with(figures, measure)
    )
    return list(dict.fromkeys(names))


def _cell_text(cell: Cell) -> str:
    # A metric's brackets are ours, and no link: they need no escape.
    return cell.text() if isinstance(cell, Metric) else escape_markdown(cell)
