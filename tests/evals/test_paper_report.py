"""The sections that the papers' tables lack: each cell is what it says, in a column of its kind."""

import re
from dataclasses import replace

import numpy as np
import pytest

from crossguard_jax.core import metrics
from crossguard_jax.core.resampling import Resamples
from crossguard_jax.evals import paper_report
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.evals.guard_report import Judged, categories, differences, overview, rates
from crossguard_jax.evals.paper_report import Draws
from crossguard_jax.report.blocks import Section, Text
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import ABSENT, Metric, Table
from tests.evals import scored


def some_rows(separation: float, seed: int = 0) -> ScoredRows:
    """`scored.scores` under the names of published sets, with shared pictures and twins."""
    rows = scored.scores(separation, seed)
    names = {"implicit": "siuo", "implicit-heldout": "xstest", "explicit": "jailbreakv"}
    names |= {"typographic": "figstep", "vqa_benign": "mm_vet"}
    number = np.arange(len(rows))
    return replace(
        rows,
        benchmark=np.array([names[b] for b in rows.benchmark]),
        picture=np.char.add("p", (number // 3).astype(str)),
        pair=np.where(rows.benchmark == "implicit", (number // 2).astype(str), ""),
    )


def unanswered(rows: ScoredRows) -> ScoredRows:
    p = rows.p_unsafe.copy()
    p[::9] = np.nan
    return replace(rows, p_unsafe=p)


SYSTEMS = {
    "guard": some_rows(3.0),
    "model": some_rows(1.0, 1),
    "silent": unanswered(some_rows(2.0, 2)),
}
# The same rows and the same truth for all.
SYSTEMS = {
    name: replace(rows, unsafe=SYSTEMS["guard"].unsafe, category=SYSTEMS["guard"].category)
    for name, rows in SYSTEMS.items()
}
ORIGINS = {b: (b, "") for b in ("siuo", "xstest", "jailbreakv", "figstep", "mm_vet")}
JUDGED = Judged(
    SYSTEMS,
    titles={"model": "A model"},
    thresholds={"silent": 0.7},
    answering=frozenset({"model"}),
)


def tables_of(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def column(table: Table, heading: str) -> list[str]:
    headings = [re.sub(", n = .*", "", name) for name in table.columns]
    at = headings.index(heading)
    return [c.value_text() if isinstance(c, Metric) else c for c in (r[at] for r in table.rows)]


def test_what_passed_and_what_was_complied_with_are_different_columns():
    (table,) = tables_of(rates(JUDGED))
    passed, complied = column(table, "siuo ASR"), column(table, "siuo complied")
    assert [cell == ABSENT for cell in passed] == [False, True, False]
    assert [cell == ABSENT for cell in complied] == [True, False, True]
    for kind in ("all benign FPR", "all benign refused", "mean ASR", "mean complied"):
        assert ABSENT in column(table, kind)
    main = overview(replace(JUDGED, named="model"))
    assert any("complies with" in block.text for block in main.blocks if isinstance(block, Text))


def test_printed_rows_are_marked_and_stand_under_the_right_kind():
    (table,) = tables_of(paper_report.printed(JUDGED, ORIGINS))
    names = [row[0] for row in table.rows]
    assert names[:3] == ["guard", "A model", "silent"]
    assert all(name.endswith("(printed)") for name in names[3:]) and len(names) == 12
    at = names.index("CrossGuard (printed)")
    assert column(table, "siuo ASR")[at] == "5.39" and column(table, "siuo complied")[at] == ABSENT
    at = names.index("GPT-4o (printed)")
    assert column(table, "figstep complied")[at] == "1.60"
    assert "xstest" not in " ".join(table.columns) and len(table.seen) == 12
    assert paper_report.printed(JUDGED, {"mine": ("mine", "")}) is None


def test_a_mean_beside_a_printed_one_is_over_the_same_sets():
    """Of VLGuard the paper prints one subset of two that are malicious."""
    names = {"siuo": "mm_safetybench", "xstest": "siuo", "mm_vet": "vlguard_unsafes"}
    rows = replace(
        SYSTEMS["guard"],
        benchmark=np.array([names.get(b, b) for b in SYSTEMS["guard"].benchmark]),
        unsafe=np.ones(len(SYSTEMS["guard"]), bool),
    )
    more = replace(
        rows, benchmark=np.full(len(rows), "vlguard_safe_unsafes"), p_unsafe=rows.p_unsafe * 0
    )
    judged = Judged({"guard": ScoredRows.concatenate([rows, more])})
    origins = {b: (b, "") for b in ("jailbreakv", "siuo", "figstep")}
    origins |= {"mm_safetybench": ("mm_safetybench", "SD_TYPO")}
    origins |= {f"vlguard_{s}": ("vlguard", s) for s in ("unsafes", "safe_unsafes")}
    (table,) = tables_of(paper_report.printed(judged, origins))
    five = [judged.results["guard"][f"{b}.asr"] for b in origins if b != "vlguard_safe_unsafes"]
    assert table.figures()["guard.paper.asr"] == metrics.mean_of(five)
    assert judged.results["guard"]["mean.asr"].value > metrics.mean_of(five).value
    assert not any("safe_unsafes" in heading for heading in table.columns)


def test_a_mean_beside_a_printed_one_takes_no_other_papers_set_and_misses_none():
    """HoliSafe's paper prints models that answer, and is no set of the mean."""
    names = {"xstest": "holisafe_ssu", "mm_vet": "vlguard_unsafes"}
    rows = replace(
        SYSTEMS["model"],
        benchmark=np.array([names.get(b, b) for b in SYSTEMS["model"].benchmark]),
        unsafe=np.ones(len(SYSTEMS["model"]), bool),
    )
    more = replace(rows, benchmark=np.full(len(rows), "mm_safetybench_sd_typo"))
    more = replace(more, id=np.arange(len(rows)).astype(str))
    judged = Judged({"m": ScoredRows.concatenate([rows, more])}, answering=frozenset({"m"}))
    origins = {b: (b, "") for b in ("jailbreakv", "siuo", "figstep")}
    origins |= {"mm_safetybench_sd_typo": ("mm_safetybench", "SD_TYPO")}
    origins |= {"vlguard_unsafes": ("vlguard", "unsafes"), "holisafe_ssu": ("holisafe", "SSU")}
    (table,) = tables_of(paper_report.printed(judged, origins))
    mean = table.figures()["m.paper.complied"].value
    each = {b: judged.results["m"][f"{b}.complied"] for b in origins}
    assert mean != pytest.approx(metrics.mean_of([*each.values()]).value)
    assert mean == pytest.approx(
        metrics.mean_of([e for b, e in each.items() if b != "holisafe_ssu"]).value
    )
    few = replace(judged, systems={"m": rows})
    (table,) = tables_of(paper_report.printed(few, origins))
    assert "m.paper.complied" not in table.figures()


def test_intervals_by_picture_are_the_bootstrap_of_the_same_rows_and_value():
    draws = Draws(SYSTEMS["guard"], 200, 3)
    figures = draws.figures(SYSTEMS["silent"], 0.7)
    rows = SYSTEMS["silent"]
    siuo = rows.take(rows.benchmark == "siuo")
    plain = Resamples.draw(siuo.picture, 200, 3)
    asr = metrics.attack_success_rate(siuo.counted, siuo.unsafe, 0.7)
    expected = plain.estimate(asr.value, plain.rates(siuo.counted >= 0.7, siuo.unsafe)[0])
    assert figures["siuo.asr_by_picture"] == expected
    assert expected.n == len(set(siuo.picture.tolist())) < len(siuo)
    whole = {name.split(".")[1] for name in figures if name.startswith("all.")}
    assert whole == {f"{m}_by_picture" for m in ("asr", "fpr", "f1", "auroc", "auprc")}
    auroc = metrics.auroc(rows.counted, rows.unsafe)
    assert figures["all.auroc_by_picture"].value == auroc.value
    model = draws.figures(SYSTEMS["model"], 0.5, answering=True)
    assert "siuo.complied_by_picture" in model and "siuo.asr_by_picture" not in model


def test_the_overall_table_has_f1_and_areas_with_an_interval_and_kinds_apart():
    overall, by_picture = tables_of(paper_report.clustered(JUDGED, 50, 0))
    for heading in ("F1", "AUPRC", "AUROC", "Recall at 1% FPR (%)", "ECE (%)"):
        assert ABSENT not in column(overall, heading)
    assert [c == ABSENT for c in column(overall, "ASR (%)")] == [False, True, False]
    assert [c == ABSENT for c in column(overall, "Complied (%)")] == [True, False, True]
    cells = [cell for row in overall.rows for cell in row if isinstance(cell, Metric)]
    assert all(cell.interval_text() for cell in cells)
    assert "siuo ASR" in " ".join(by_picture.columns)


def test_over_refusal_is_of_the_sets_that_provoke_it_alone():
    (table,) = tables_of(paper_report.over_refusal(JUDGED, ORIGINS))
    headings = {re.sub(", n = .*", "", name) for name in table.columns[1:]}
    assert headings == {"xstest FPR", "mm_vet FPR", "xstest refused", "mm_vet refused"}
    assert paper_report.over_refusal(JUDGED, {"siuo": ("siuo", "")}) is None


def test_the_table_says_how_many_rows_have_no_answer():
    (table,) = tables_of(paper_report.no_answers(JUDGED))
    n = int((~SYSTEMS["silent"].answered).sum())
    assert column(table, "all no answer") == ["0", "0", str(n)] and n > 20
    every = replace(JUDGED, systems={"guard": SYSTEMS["guard"]}, thresholds={})
    assert not tables_of(paper_report.no_answers(every))


def test_twins_have_a_table_where_there_are_any():
    (table,) = tables_of(paper_report.twins(JUDGED))
    assert [re.sub(", n = .*", "", name) for name in table.columns] == [
        "System",
        "siuo both twins right",
    ]
    alone = replace(SYSTEMS["guard"], pair=np.full(len(SYSTEMS["guard"]), ""))
    assert paper_report.twins(Judged({"guard": alone})) is None


def test_p_values_are_adjusted_over_the_systems_that_a_column_compares():
    section = differences(JUDGED)
    names = [f"guard.minus.{other}.siuo.asr_mcnemar" for other in ("model", "silent")]
    raw = [section.figures[name].value for name in names]
    adjusted = [section.figures[f"{name}_holm"].value for name in names]
    assert min(adjusted) == pytest.approx(min(1, 2 * min(raw))) and max(adjusted) >= max(raw)
    assert any("not the same question" in b.text for b in section.blocks if isinstance(b, Text))
    against = differences(replace(JUDGED, named="silent"))
    assert any(name.startswith("silent.minus.guard.") for name in against.figures)


def test_categories_of_all_systems_stand_beside_one_another_by_kind():
    _, beside = tables_of(categories(JUDGED))
    assert beside.columns[1:] == ("guard (let pass)", "A model (complied)", "silent (let pass)")
    assert {row[0].partition(":")[0] for row in beside.rows} == {
        "siuo",
        "xstest",
        "jailbreakv",
        "figstep",
    }


def test_one_report_holds_them_all_and_no_figure_is_two():
    sections = [
        overview(JUDGED),
        rates(JUDGED),
        categories(JUDGED),
        differences(JUDGED),
        paper_report.printed(JUDGED, ORIGINS),
        paper_report.clustered(JUDGED, 20, 0),
        paper_report.twins(JUDGED),
        paper_report.over_refusal(JUDGED, ORIGINS),
        paper_report.no_answers(JUDGED),
        paper_report.remarks(JUDGED, {"model": ["judged by a list of words"]}),
    ]
    text = Report("t", sections).to_markdown()
    assert "**A model**: judged by a list of words" in text
    assert "Systems are cut at their own thresholds: silent 0.7." in text
