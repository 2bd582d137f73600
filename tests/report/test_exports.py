"""Tables for other programs: what they read back is what the report holds."""

import csv
import io
import re

import pytest

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report.blocks import Section, Text
from crossguard_jax.report.exports import figures_csv, latex, to_csv, to_latex, write_tables
from crossguard_jax.report.tables import ABSENT, Metric, Table

RATE = Estimate(1 / 3, 0.1, 0.7, 9)
TABLE = Table(
    ("System", "siuo ASR, n = 1,009", "Note"),
    (
        ("50% & co_x", Metric("a.siuo.asr", RATE, show_n=True), "=1+1"),
        ("none", ABSENT, "–"),
    ),
    "In percent; 100% is all.",
)


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_a_spreadsheet_reads_every_digit_and_takes_no_text_for_a_formula():
    head, first, second = rows(to_csv(TABLE))
    assert head == ["System", *(f"siuo ASR{part}" for part in ("", " low", " high", " n")), "Note"]
    assert first[0] == "50% & co_x" and first[5] == "'=1+1"
    assert [float(cell) for cell in first[1:4]] == [1 / 3, 0.1, 0.7] and first[4] == "9"
    assert second == ["none", "", "", "", "", "–"]


def test_figures_csv_has_every_figure_by_its_dotted_name_and_nothing_where_there_is_none():
    head, one, two = rows(figures_csv({"a.siuo.asr": RATE, "a.all.fpr": Estimate.empty()}))
    assert head == ["figure", "value", "low", "high", "n"]
    assert [one[0], float(one[1]), one[4]] == ["a.siuo.asr", 1 / 3, "9"]
    assert two == ["a.all.fpr", "", "", "", "0"]


@pytest.mark.parametrize("character", list("&%$#_{}~^\\<>→"))
def test_latex_sets_every_character_of_its_own_as_text(character):
    text = latex(f"a{character}b")
    assert text not in (f"a{character}b", "ab") and text.startswith("a") and text.endswith("b")
    assert not re.search(r"(?<!\\)[&%$#_]", text.replace(r"$\to$", ""))


@pytest.mark.parametrize("start", ["[", "*"])
def test_no_row_is_an_argument_of_the_line_before_it_and_no_heading_a_formula(start):
    table = Table((f"{start}a", "=b"), ((f"{start}c", "d"),), "")
    assert [line[:3] for line in to_latex(table, "t").splitlines() if line.endswith(r"\\")] == [
        f"{{}}{start}",
        f"{{}}{start}",
    ]
    assert rows(to_csv(table))[0] == [f"{start}a", "'=b"]


def test_a_latex_table_has_a_line_a_row_and_as_many_cells_as_columns():
    text = to_latex(TABLE, "siuo")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3 and all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in lines)
    assert r"33.3 {\scriptsize [10.0, 70.0] n = 9}" in lines[1]
    assert r"\begin{tabular}{lrr}" in text and r"\label{tab:siuo}" in text
    assert r"\caption{In percent; 100\% is all.}" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_every_table_has_files_by_its_sections_name(tmp_path):
    sections = [
        Section("Rates, all", (TABLE, Text("t"), TABLE)),
        Section("Empty", ()),
        Section("Others", (TABLE,)),
    ]
    write_tables(sections, {"a.siuo.asr": RATE}, tmp_path)
    names = {file.name for file in (tmp_path / "tables").iterdir()}
    stems = ("rates_all", "rates_all_2", "others")
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("csv", "tex")}
    assert (tmp_path / "tables" / "others.csv").read_text() == to_csv(TABLE)
    assert (tmp_path / "figures.csv").read_text() == figures_csv({"a.siuo.asr": RATE})
