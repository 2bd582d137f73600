"""The table pools rows of seeds, and a cell that is done is not done again."""

import argparse
import json

import pytest

from crossguard_jax.core.metrics import Estimate, wilson_interval
from crossguard_jax.toy.tables import cells
from crossguard_jax.toy.tables import guards as table


def share(hits: int, n: int) -> Estimate:
    return Estimate(hits / n, *wilson_interval(hits, n), n)


def test_pooling_seeds_is_counting_their_rows():
    pooled = cells.pooled([share(3, 1000), share(20, 1000), share(1, 500)])
    assert pooled == share(24, 2500)
    assert cells.pooled([]).n == 0


def test_finished_cells_are_read_and_written_into_the_table(tmp_path, monkeypatch):
    def measured(scores, threshold):
        hits = 10 * int(scores[-1]) + (5 if scores.startswith("full") else 400)
        return {column: share(hits, 1000) for column in table.COLUMNS}

    class Trained:
        guard = None

    monkeypatch.setattr(table, "train_guard", lambda *_: Trained)
    monkeypatch.setattr(table, "score_benchmarks", lambda guard, tests, name: name)
    monkeypatch.setattr(table, "evaluate", measured)
    only = ["full", "explicit_only", "no_benign"]
    args = argparse.Namespace(out=tmp_path, only=only, seeds=[0, 1], rows=8, jobs=1)
    table.main(args)
    monkeypatch.setattr(table, "train_guard", lambda *_: pytest.fail("trained a finished cell"))
    table.main(args)
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["figures"]["full.implicit.asr"]["value"] == 20 / 2000
    assert found["figures"]["full.implicit.asr"]["seeds"] == [0.005, 0.015]
    page = (tmp_path / "table.md").read_text()
    assert r"1.0 \[0.6, 1.5\] (0.5, 1.5)" in page and "Explicit data only" in page
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    # What `evaluate` reads: every test set, the two that no training has a form of among them.
    for name in ("implicit", "wrapped", "keyword_picture"):
        rows = (tmp_path / f"tests/{name}.jsonl").read_text().splitlines()
        assert len(rows) == (8 if name == "implicit" else 4)
        assert (tmp_path / "tests" / json.loads(rows[0])["image"]).is_file()
