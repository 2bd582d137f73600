"""What a guard sees and reads: the sets are what their names say, and the page has every figure."""

import argparse
import json

import numpy as np
import pytest

from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.guard.guard import Guard
from crossguard_jax.toy.tables import reach
from crossguard_jax.toy.world.injections import INJECTIONS
from crossguard_jax.toy.world.long_texts import length


def test_long_texts_have_their_harm_where_their_name_says():
    sets = reach.long_sets(rows=10, seed=0, tokens=400, window=60)
    harm = [row.text for row in sets["short"] if row.label == "unsafe"]
    assert len(harm) == 2 and len(sets["short"]) == 2 + 10
    for i, place in enumerate(reach.PLACES):
        for text, row in zip(harm, sets[f"long_{i}"], strict=True):
            before, _, behind = row.text.partition(text)
            share = length(before) / max(length(before) + length(behind), 1)
            assert abs(share - place) < 0.1 and 350 < length(row.text) < 450
    assert {row.label for row in sets["long"]} == {"safe"} and len(sets["long"]) == 10
    for text, row in zip(harm, sets["straddling"], strict=True):
        before = length(row.text.partition(text)[0])
        assert before < 60 < before + length(text)
    assert all(row.images == () for rows in sets.values() for row in rows)


def test_every_unsafe_row_gets_every_string_once_and_its_neutral_twin_at_the_same_place():
    sets = reach.forged_sets(rows=8, seed=0)
    assert {row.label for row in sets["own"]} == {"unsafe"} and len(sets["own"]) == 8
    assert len(sets["forged"]) == len(sets["neutral"]) == 8 * len(INJECTIONS)
    text_of = {row.id: row.text for row in sets["own"]}
    for forged, neutral in zip(sets["forged"], sets["neutral"], strict=True):
        assert forged.id == neutral.id
        own, string = text_of[forged.id.split("|")[0]], INJECTIONS[int(forged.id.split("|")[1])]
        assert forged.text.replace(string, "", 1).split() == own.split()
        assert forged.text.partition(string)[0] == neutral.text[: forged.text.index(string)]


def test_only_rows_that_were_flagged_can_flip():
    flagged = {"own": [0.9, 0.2], "forged": [0.4, 0.1], "neutral": [0.8, 0.1]}
    names = [(kind, i) for kind in flagged for i in range(2)]
    rows = [
        {"id": f"{i}" if kind == "own" else f"{i}|0", "label": "unsafe", "benchmark": kind}
        | {"p_unsafe": flagged[kind][i]}
        for kind, i in names
    ]
    scored = ScoredRows.from_rows(rows)
    assert reach.flipped(scored, "forged").value == 1 and reach.flipped(scored, "forged").n == 1
    assert reach.flipped(scored, "neutral").value == 0


@pytest.mark.tables
def test_the_page_has_every_figure_of_a_guard(monkeypatch, tmp_path):
    class Trained:
        guard = Guard.from_pretrained("toy://llava", prompt="short")

    measure = reach.measure
    monkeypatch.setattr(reach, "train_guard", lambda *_: Trained)
    monkeypatch.setattr(reach, "measure", lambda *args: measure(*args, tokens=200))
    reach.main(argparse.Namespace(out=tmp_path, only=["full"], seeds=[0], rows=40, jobs=1))
    figures = json.loads((tmp_path / "reach.json").read_text())["figures"]
    columns = {column for table in reach.TABLES.values() for column in table}
    assert set(figures) == {f"full.{column}" for column in columns}
    assert all(np.isfinite(figure["value"]) for figure in figures.values())
    assert (tmp_path / "reach.md").read_text().count("Full mixture") == len(reach.TABLES)
