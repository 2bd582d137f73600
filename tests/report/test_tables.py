"""Tables: every cell is the figure it names."""

import re

import numpy as np
import pytest

from crossguard_jax.core.metrics import Estimate, proportion
from crossguard_jax.evals.benchmarks import compare, evaluate
from crossguard_jax.report import tables
from crossguard_jax.report.tables import Metric, Table
from tests.evals import scored

SYSTEMS = {"guard.full": scored.scores(3.0), "guard.explicit_only": scored.scores(0.2)}
RESULTS = {name: evaluate(rows, 0.5) for name, rows in SYSTEMS.items()}
TITLES = {"guard.full": "Full mixture", "implicit": "Implicit"}


def test_the_asr_table_has_a_row_per_system_and_the_fpr_beside_the_asr():
    table = tables.asr_table(RESULTS, TITLES)
    assert [row[0] for row in table.rows] == ["Full mixture", "guard.explicit_only"]
    heads = [re.sub(", n = .*", "", column) for column in table.columns[1:]]
    assert heads == [
        "Implicit ASR",
        "implicit_heldout ASR",
        "explicit ASR",
        "typographic ASR",
        "mean ASR",
        "Implicit FPR",
        "implicit_heldout FPR",
        "vqa_benign FPR",
        "all benign FPR",
    ]
    assert table.columns[3].endswith(", n = 40")


@pytest.mark.parametrize(
    "table",
    [
        tables.asr_table(RESULTS, TITLES),
        tables.ranking_table(RESULTS, TITLES),
        tables.calibration_table(RESULTS, TITLES),
        tables.category_table("guard.full", RESULTS["guard.full"], TITLES),
    ],
    ids=["asr", "ranking", "calibration", "category"],
)
def test_every_cell_holds_the_estimate_of_its_dotted_name(table):
    figures = table.figures()
    assert figures
    for name, estimate in figures.items():
        system = next(key for key in RESULTS if name.startswith(key + "."))
        assert RESULTS[system][name.removeprefix(system + ".")] is estimate


def test_the_worst_categories_come_first_by_what_their_error_is_at_least():
    figures = {
        "x.category.few.asr": proportion(np.array([True, False])),
        "x.category.clean.asr": proportion(np.zeros(90, bool)),
        "x.category.alarms.asr": proportion(np.zeros(9, bool)),
        "x.category.alarms.fpr": proportion(np.repeat([True, False], (60, 40))),
        "x.category.missed.asr": proportion(np.repeat([True, False], (30, 70))),
        "x.category.none.asr": Estimate.empty(),
    }
    rows = [row[0] for row in tables.category_table("g.f", figures).rows]
    assert rows == [f"x: {name}" for name in ("alarms", "missed", "few", "clean", "none")]


@pytest.mark.parametrize("rows", [tables.LONG, tables.LONG + 1])
def test_a_long_table_shows_its_first_rows_and_folds_the_rest(rows):
    table = Table(("name", "n"), tuple((f"row {i}", str(i)) for i in range(rows)), "caption", 3)
    before, summary, inside = tables.to_markdown(table).partition("<details><summary>")
    if rows <= tables.LONG:
        assert not summary and table.seen == table.rows and not table.folded
    else:
        assert before.count("| row ") == 3 and inside.count("| row ") == rows - 3
        assert inside.startswith(f"{rows - 3} more rows of {rows}</summary>\n\n| name | n |\n")
        assert inside.index("| row 3 |") < inside.index("</details>") < inside.index("*caption*")


def test_recall_never_stands_without_the_benign_fpr_in_its_row():
    table = tables.ranking_table(RESULTS)
    for row in table.rows:
        names = [cell.name.rsplit(".", 1)[1] for cell in row if isinstance(cell, Metric)]
        assert "recall_at_1_fpr" in names and names[-1] == "fpr"


def test_asr_without_benign_rows_shows_a_dash_for_the_fpr():
    only_bad = SYSTEMS["guard.full"].take(SYSTEMS["guard.full"].unsafe)
    table = tables.asr_table({"guard.full": evaluate(only_bad, 0.5)})
    assert table.columns[-1] == "all benign FPR, n = 0"
    assert table.rows[0][-1].text() == tables.ABSENT


def test_n_moves_into_the_cells_where_systems_saw_different_rows():
    fewer = SYSTEMS["guard.explicit_only"].take(SYSTEMS["guard.explicit_only"].category != "hot")
    table = tables.asr_table(
        {"guard.full": RESULTS["guard.full"], "guard.explicit_only": evaluate(fewer, 0.5)}
    )
    assert not any("n = " in column for column in table.columns)
    assert re.search(r"\(n = 40\)$", table.rows[0][3].text())
    assert not table.rows[1][3].text().endswith("(n = 40)")


@pytest.mark.parametrize(
    ("estimate", "unit", "text"),
    [
        (Estimate(0.0359, 0.0166, 0.0762, 167), "percent", "3.6 [1.7, 7.6]"),
        (Estimate(-0.081, -0.1, -0.0001, 9), "points", "-8.1 [-10.0, 0.0]"),
        (Estimate(0.031, 0.02, 0.04, 9), "points", "+3.1 [+2.0, +4.0]"),
        (Estimate(0.98765, 0.98, 1.0, 9), "fraction", "0.988 [0.980, 1.000]"),
        (Estimate.exact(12345.6), "plain", "12,346"),
        (Estimate.exact(4.0), "plain", "4"),
        (Estimate.exact(0.01234), "plain", "0.0123"),
        (Estimate.empty(), "percent", "–"),
    ],
)
def test_a_figure_is_written_in_its_unit(estimate, unit, text):
    assert Metric("a.b", estimate, unit).text() == text


def test_markdown_cells_cannot_break_the_table():
    table = Table(("name", "a|b"), (("x|y\nz<img>", "`*_"),), "caption")
    body = tables.to_markdown(table).split("\n\n")[0].splitlines()
    assert len(body) == 3
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in body] == [3, 3, 3]
    assert "<img" not in body[2].replace(r"\<", "")


def test_the_difference_table_is_signed_points():
    first, second = SYSTEMS.values()
    table = tables.difference_table({"guard.full.minus.other": compare(first, second, 0.5)})
    cell = table.rows[0][1]
    assert cell.name == "guard.full.minus.other.implicit.asr_difference"
    assert cell.text().startswith("-") and cell.estimate.value < 0
