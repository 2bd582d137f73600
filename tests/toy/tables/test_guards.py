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
    monkeypatch.setattr(table, "train_guard", lambda *_: pytest.fail("trained a finished cell"))
    only = ["full", "explicit_only", "no_benign"]
    for name in only:
        for seed in (0, 1):
            cell = tmp_path / "cells" / f"{name}-{seed}"
            cell.mkdir(parents=True)
            hits = 10 * seed + (5 if name == "full" else 400)
            figures = {column: share(hits, 1000).as_dict() for column in table.COLUMNS}
            text = json.dumps({"seconds": 1.0, **figures})
            (cell / "figures-2000.json").write_text(text)
    table.main(argparse.Namespace(out=tmp_path, only=only, seeds=[0, 1], rows=2000))
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["figures"]["full.implicit.asr"]["value"] == 20 / 2000
    assert found["figures"]["full.implicit.asr"]["seeds"] == [0.005, 0.015]
    page = (tmp_path / "table.md").read_text()
    assert r"1.0 \[0.6, 1.5\] (0.5, 1.5)" in page and "Explicit data only" in page
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
