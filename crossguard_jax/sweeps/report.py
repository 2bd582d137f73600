"""A sweep's report: ``report.md``, ``.html``, ``.json``, ``figures.csv``, tables and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report.blocks import Plot, Section, Text
from crossguard_jax.report.exports import write_tables
from crossguard_jax.report.plots import dot_rows
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import ABSENT, Cell, Metric, Table, Unit, to_markdown
from crossguard_jax.sweeps.cells import CellOutcome
from crossguard_jax.sweeps.summary import RowSummary, headlines, summarized

MEANS = (
    "Mean over seeds, with a 95% t interval over them: how far other seeds may lead, not other "
    "test rows. It knows no bounds of a figure, and has no width where seeds happen to agree. Of "
    "one seed, its own interval, if it has one."
)
DIFFERENCES = (
    "The row less the base, seed by seed: the mean, with a 95% t interval over seeds. An interval "
    "that holds 0 shows no difference; of {n} intervals about {chance:.0f} would miss it by chance."
)
SIGNED: Mapping[Unit, Unit] = {"percent": "points", "fraction": "difference"}
"""How a difference is written, by how its figure is."""


@dataclass(frozen=True)
class SweepPage:
    """What a sweep's report says beside its figures.

    Attributes:
        title: one line.
        command: what makes it.
        base: the row that others are compared with.
        rows: titles of rows.
        notes: what each row is.
        figures: heading and unit of each figure that the tables and the plot have.
    """

    title: str
    command: str
    base: str
    rows: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, tuple[str, Unit]] = field(default_factory=dict)

    def row(self, summary: RowSummary) -> str:
        """A row's title."""
        return self.rows.get(summary.row, summary.row)

    @property
    def headings(self) -> list[str]:
        """Of the figures."""
        return [heading for heading, _ in self.figures.values()]


def figures_shown(
    outcomes: Sequence[CellOutcome], patterns: Sequence[str]
) -> dict[str, tuple[str, Unit]]:
    """`SweepPage.figures` by patterns of names; see `headlines`."""
    values: dict[str, list[float]] = {name: [] for name in headlines(outcomes, patterns)}
    for outcome in outcomes:
        for name, estimate in (outcome.figures or {}).items():
            if name in values:
                values[name].append(estimate.value)
    small = {name: all(not abs(value) > 1 for value in each) for name, each in values.items()}
    return {name: (name, "fraction" if small[name] else "plain") for name in values}


def leave_report(outcomes: Sequence[CellOutcome], page: SweepPage, folder: Path) -> None:
    """Prints and writes what cells came to; one that failed, or is not there yet, is a row that
    says so.

    Args:
        outcomes: of all cells.
        page: what is shown, and how it is called.
        folder: takes the report.
    """
    summaries = summarized(outcomes, page.base)
    tables = {"Rows": _means(summaries, page)}
    if compared := [summary for summary in summaries if summary.differences]:
        tables["Against the base"] = _differences(compared, page)
    sections = [Section(title, (table,), _all(summaries)) for title, table in tables.items()]
    if page.figures and any(summary.values for summary in summaries):
        sections.append(Section("Plot", (_plot(summaries, page),)))
    sections.append(Section("Cells", (Text(_count(outcomes)), _cells(outcomes, page))))
    report = Report(page.title, sections, {"command": page.command})
    written = report.write(folder)
    write_tables(sections, report.figures(), folder)
    print("\n".join(map(to_markdown, tables.values())))
    print(f"report: {written}")


def _all(summaries: Sequence[RowSummary]) -> dict[str, Estimate]:
    """Every figure, also those that no table shows."""
    means = {f"{s.row}.{name}": e for s in summaries for name, e in s.means.items()}
    return means | {
        f"{s.row}.less_base.{name}": e for s in summaries for name, e in s.differences.items()
    }


def _means(summaries: Sequence[RowSummary], page: SweepPage) -> Table:
    def cells(summary: RowSummary) -> tuple[Cell, ...]:
        return tuple(
            Metric(f"{summary.row}.{name}", summary.means[name], unit)
            if name in summary.means
            else ABSENT
            for name, (_, unit) in page.figures.items()
        )

    rows = tuple((page.row(s), _of_seeds(s), *cells(s)) for s in summaries)
    return Table(("Row", "Seeds", *page.headings), rows, MEANS, lead=len(rows))


def _of_seeds(summary: RowSummary) -> str:
    done, n = len(summary.done), len(summary.seeds)
    return f"{n}" if done == n else f"{done} of {n}"


def _differences(summaries: Sequence[RowSummary], page: SweepPage) -> Table:
    def cells(summary: RowSummary) -> tuple[Cell, ...]:
        return tuple(
            Metric(
                f"{summary.row}.less_base.{name}",
                summary.differences[name],
                SIGNED.get(unit, unit),
            )
            if name in summary.differences
            else ABSENT
            for name, (_, unit) in page.figures.items()
        )

    rows = tuple((page.row(summary), *cells(summary)) for summary in summaries)
    n = sum(len(page.figures.keys() & summary.differences.keys()) for summary in summaries)
    note = DIFFERENCES.format(n=n, chance=0.05 * n)
    head = f"Less {page.rows.get(page.base, page.base)}"
    return Table((head, *page.headings), rows, note, lead=len(rows))


def _plot(summaries: Sequence[RowSummary], page: SweepPage) -> Plot:
    def drawn(estimate: Estimate, unit: Unit) -> Estimate:
        by = 100 if unit == "percent" else 1
        return Estimate(by * estimate.value, by * estimate.low, by * estimate.high, estimate.n)

    panels = {
        heading: {
            page.row(s): (
                drawn(s.means[name], unit),
                [drawn(each, unit).value for each in s.values[name].values()],
            )
            for s in summaries
            if name in s.means
        }
        for name, (heading, unit) in page.figures.items()
    }
    caption = "Means over seeds with 95% t intervals; small dots are seeds, the line is the base."
    # The base comes first, also where nothing of it is there.
    names = dict.fromkeys((page.rows.get(page.base, page.base), *map(page.row, summaries)))
    return Plot.of("rows", dot_rows(panels, list(names)), caption)


def _count(outcomes: Sequence[CellOutcome]) -> str:
    done = sum(each.figures is not None for each in outcomes)
    failed = sum(bool(each.reason) for each in outcomes)
    return f"{len(outcomes):,} cells: {done:,} done, {failed:,} failed."


def _cells(outcomes: Sequence[CellOutcome], page: SweepPage) -> Table:
    def state(outcome: CellOutcome) -> str:
        if outcome.figures is not None:
            return "done"
        return f"failed: {outcome.reason}" if outcome.reason else "not done"

    # What is not as it should be comes first.
    ordered = sorted(outcomes, key=lambda each: each.figures is not None)
    rows = tuple(
        (
            page.rows.get(each.cell.row, each.cell.row),
            str(each.cell.seed),
            state(each),
            page.notes.get(each.cell.row, ""),
        )
        for each in ordered
    )
    return Table(("Row", "Seed", "State", "What it is"), rows, "Each is a folder in `runs`.")
