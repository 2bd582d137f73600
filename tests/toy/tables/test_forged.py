"""The table of guards of forged data, a few steps of it."""

import argparse
import json

import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.data.builders import open_dataset
from crossguard_jax.toy.tables import forged
from tests.toy.test_quickstart import FORGE, SHORT


@pytest.fixture
def short(monkeypatch):
    def load(path, overrides=()):
        return load_config(path, [*(SHORT if "guard.py" in path else FORGE), *overrides])

    monkeypatch.setattr(forged, "load_config", load)
    monkeypatch.setattr(forged, "QUERIES", 48)


@pytest.mark.tables
def test_guards_with_and_without_twins_are_judged_on_the_same_rewritten_rows(short, tmp_path):
    args = argparse.Namespace(out=str(tmp_path), seeds=[3], rows=32, only=["forged", "no_twins"])
    forged.main(args)
    figures = json.loads((tmp_path / "forged.json").read_text())["figures"]
    for column in forged.COLUMNS:
        ours, alone = (figures[f"{name}.{column}"] for name in args.only)
        assert ours["n"] == alone["n"] > 0, column
    labels = {}
    for name in args.only:
        rows = open_dataset(tmp_path / "cells" / f"{name}-3" / "data", "implicit", "train")
        labels[name] = {rows[i].label for i in range(len(rows))}
    assert labels == {"forged": {"safe", "unsafe"}, "no_twins": {"unsafe"}}
    page = (tmp_path / "forged.md").read_text()
    assert "Forged rows alone" in page and "ASR, rewritten" in page
