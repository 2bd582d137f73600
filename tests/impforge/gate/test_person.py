"""The sheet for a person, and how the person and the gate agree."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.impforge.gate.gate import GateVerdict, Verdicts
from crossguard_jax.impforge.gate.person import agreement, cohen_kappa, draw, sheet
from tests.impforge.gate.test_gate import Counting, candidate
from tests.impforge.matching.test_judge import picture


class Half(Counting):
    """Passes every third candidate."""

    def judge(self, candidates):
        n = [int(c.triplet.id[1:]) for c in candidates]
        return [GateVerdict("" if i % 3 == 0 else "no") for i in n]


@pytest.fixture
def run(tmp_path: Path):
    given = [candidate(i, f"text <b>{i}</b>", image=picture(0)) for i in range(90)]
    Verdicts(Half(), tmp_path / "gate.jsonl").of(given)
    return tmp_path / "gate.jsonl", {c.triplet.id: c.triplet for c in given}


def test_half_of_the_rows_drawn_fell_at_the_gate_and_the_draw_is_the_same_each_time(run) -> None:
    drawn = draw(*run)
    assert len(drawn) == 50 and sum(d.passed for d in drawn) == 25 and drawn == draw(*run)
    assert sum(d.passed for d in draw(*run, n=80)) == 30
    assert len(draw(*run, n=200)) == 90
    order = [d.passed for d in drawn]
    assert order != sorted(order) and order != sorted(order, reverse=True)


def test_the_sheet_shows_rows_and_not_their_verdicts(run) -> None:
    drawn = draw(*run)
    page = sheet(drawn)
    assert page.count('<form class="row"') == 50 and page.count("data:image/png") == 50
    assert page.count('value="keep"') == page.count('value="drop"') == 50
    (choices,) = re.findall(r'data-choices="([^"]*)"', page)
    assert json.loads(html.unescape(choices)) == {"k": "keep", "d": "drop", "x": "skip"}
    assert "text &lt;b&gt;" in page and "text <b>" not in page
    # Two rows of other verdicts differ in what they say, and in nothing else.
    forms = [form.partition("</form>")[0] for form in page.split('<form class="row"')[1:]]
    shapes = {re.sub(r"\d+|data-key=.\w+.|value=.\w+.|src=\S+", "", form) for form in forms}
    assert len(shapes) == 1


def saved(folder: Path, decisions: object) -> Path:
    path = folder / "judged.json"
    path.write_text(json.dumps({"decisions": decisions}))
    return path


def decision(key: str, what: str) -> dict[str, str]:
    return {"key": key, "decision": what, "note": "", "who": "", "when": ""}


def test_a_person_and_the_gate_are_compared_on_rows_that_are_decided(run, tmp_path: Path) -> None:
    drawn = draw(*run)
    word = {d.id: "keep" if d.passed else "drop" for d in drawn}
    passed = [d.id for d in drawn if d.passed]
    dropped = [d.id for d in drawn if not d.passed]
    word |= {passed[0]: "drop", dropped[0]: "keep", dropped[1]: "skip"}
    result = agreement(saved(tmp_path, [decision(*each) for each in word.items()]), drawn)
    assert (result["n"], result["passed"]) == (49, 25)
    assert (result["passed_in_vain"], result["dropped_in_vain"]) == (1, 1)
    assert result["agreement"]["value"] == pytest.approx(47 / 49)
    assert 0.8 < result["kappa"]["value"] < 1 and result["kappa"]["low"] < result["kappa"]["value"]


def test_kappa_is_what_cohen_says() -> None:
    a = np.array([True] * 25 + [False] * 25)
    b = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert cohen_kappa(a, b).value == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5)
    assert cohen_kappa(a, a).value == 1 and cohen_kappa(a, ~a).value == -1
    assert np.isnan(cohen_kappa(np.ones(5, bool), np.ones(5, bool)).value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([decision("strange", "keep")], "is not on this run's review.html"),
        ([], "no row is decided"),
        ([decision("x", "skip")], "no row is decided"),
        ([decision("x", "safe")], "decision 1: no 'key', or none of keep, drop, skip"),
        (["x"], "decision 1"),
        ({}, "no list 'decisions' in it"),
    ],
)
def test_what_was_not_saved_by_this_sheet_is_refused(run, tmp_path: Path, rows, words: str) -> None:
    with pytest.raises(UserError, match=words):
        agreement(saved(tmp_path, rows), draw(*run))
