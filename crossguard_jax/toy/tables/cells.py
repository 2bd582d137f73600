"""What the tables share: a cell that is not made twice, seeds pooled, and the two files.

A cell is one run (a row of the table and a seed) in a folder of its own; its figures are a file, so
a table's command goes on where it was stopped.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate, wilson_interval
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report.tables import Table, to_markdown
from crossguard_jax.sweeps.cells import CellOutcome

Cell = dict[str, Estimate]


def workers(jobs: int) -> tuple[str | None, int | None]:
    """``--jobs`` as `Sweep.run` takes it."""
    return ("local", jobs) if jobs > 1 else (None, None)


def cell(path: Path, make: Callable[[], Mapping[str, Estimate]]) -> Cell:
    """The figures that ``make`` gives, or that an earlier run left at ``path``."""
    if not path.exists():
        start = time.monotonic()
        estimates = {name: estimate.as_dict() for name, estimate in make().items()}
        write_atomic(path, json.dumps({"seconds": time.monotonic() - start, **estimates}) + "\n")
    figures = json.loads(path.read_text())
    del figures["seconds"]
    return {name: Estimate.from_dict(value) for name, value in figures.items()}


def of_rows(outcomes: Sequence[CellOutcome]) -> dict[str, list[Cell]]:
    """Each row's figures, one a seed.

    Raises:
        UserError: a cell has none, with the reason.
    """
    rows: dict[str, list[Cell]] = {}
    for each in outcomes:
        if each.figures is None:
            raise UserError(f"{each.cell.name}: {each.reason or 'was not run'}; start it again")
        rows.setdefault(each.cell.row, []).append(dict(each.figures))
    return rows


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One share over the rows of all seeds; of figures that are no shares, and so have no interval,
    the mean."""
    n = sum(e.n for e in estimates)
    if not n:
        return Estimate.empty()
    if not all(math.isfinite(e.low) for e in estimates):
        return Estimate.exact(sum(e.value for e in estimates) / len(estimates), n)
    hits = round(sum(e.value * e.n for e in estimates))
    return Estimate(hits / n, *wilson_interval(hits, n), n)


def shares(
    head: str,
    titles: Mapping[str, str],
    columns: Mapping[str, str],
    cells: Mapping[str, Sequence[Cell]],
    seeds: Sequence[int],
    caption: str,
) -> Table:
    """A table of shares in percent: all seeds' rows pooled, and each seed's own value.

    Args:
        head: what a row is.
        titles: names to show by row.
        columns: headings by figure.
        cells: a row's cells, one a seed.
        seeds: theirs.
        caption: what the figures are of.
    """

    def text(estimates: Sequence[Estimate]) -> str:
        total = pooled(estimates)
        each = ", ".join(f"{100 * e.value:.1f}" for e in estimates)
        interval = f" [{100 * total.low:.1f}, {100 * total.high:.1f}]"
        return f"{100 * total.value:.1f}{interval * math.isfinite(total.low)} ({each})"

    rows = tuple(
        (titles[name], *(text([cell[c] for cell in of_seeds]) for c in columns))
        for name, of_seeds in cells.items()
    )
    note = (
        f"{caption}, all seeds' rows pooled, 95% Wilson interval; in parentheses the seeds "
        f"{', '.join(map(str, seeds))} apart."
    )
    return Table((head, *columns.values()), rows, note)


def pooled_figures(
    cells: Mapping[str, Sequence[Cell]], columns: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What `shares` shows, for the JSON file: by ``ROW.COLUMN``."""
    return {
        f"{name}.{column}": pooled([cell[column] for cell in of_seeds]).as_dict()
        | {"seeds": [cell[column].value for cell in of_seeds]}
        for name, of_seeds in cells.items()
        for column in columns
    }


def leave(
    folder: Path,
    name: str,
    command: str,
    seeds: Sequence[int],
    figures: Mapping[str, Any],
    *tables: Table,
) -> None:
    """Prints the tables, and leaves them as ``NAME.md`` and their figures as ``NAME.json``."""
    page = "\n".join(map(to_markdown, tables))
    write_atomic(folder / f"{name}.md", f"`{command}`\n\n{page}\n")
    document = {"command": command, "seeds": list(seeds), "figures": figures}
    write_atomic(folder / f"{name}.json", json.dumps(document, indent=1) + "\n")
    print(page)
