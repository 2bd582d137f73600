"""What a sweep's report shows where the base is not there, or not all of it."""

import pytest

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.sweeps import report
from crossguard_jax.sweeps.cells import CellOutcome, SweepCell

HALF = Estimate(0.5, 0.4, 0.6, 9)


@pytest.mark.parametrize("figures", [None, {"b": HALF}])
@pytest.mark.parametrize("last", [False, True])
def test_what_others_are_compared_with_is_the_base_also_where_it_has_no_value(
    figures, last, tmp_path, monkeypatch
) -> None:
    drawn, dot_rows = [], report.dot_rows
    monkeypatch.setattr(report, "dot_rows", lambda *args: drawn.append(dot_rows(*args)) or drawn[0])
    base = CellOutcome(SweepCell("base", 0), figures, "" if figures else "no such file")
    other = CellOutcome(SweepCell("other", 0), {"a": HALF, "b": HALF})
    shown = {name: (name, "fraction") for name in "ab"}
    page = report.SweepPage("t", "c", "base", {"base": "the base"}, figures=shown)
    report.leave_report([other, base] if last else [base, other], page, tmp_path)
    a, b = drawn[0].axes[:2]
    assert [label.get_text() for label in a.get_yticklabels()] == ["the base", "other"]
    compared = [any(line.get_linestyle() == ":" for line in axes.lines) for axes in (a, b)]
    assert compared == [False, figures is not None]
