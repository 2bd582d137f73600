"""The rewriter's table, a few steps of it: every figure there, and nothing done twice."""

import argparse
import json

import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.report.text import escape_markdown
from crossguard_jax.toy.tables import rewriters, weights
from tests.impforge.ppo.test_rewriter import OVERRIDES
from tests.toy.test_quickstart import SHORT

GUARD = [o for o in SHORT if ".implicit." not in o and "validation" not in o]


@pytest.fixture
def short(monkeypatch):
    def load(path, overrides=()):
        own = GUARD if "guard.py" in path else [*OVERRIDES, "--config.rewriter.max_new_tokens=24"]
        return load_config(path, [*own, *overrides])

    monkeypatch.setattr(rewriters, "load_config", load)


@pytest.mark.tables
def test_the_table_has_every_figure_and_goes_on_where_it_was_stopped(short, tmp_path, capsys):
    args = argparse.Namespace(
        out=str(tmp_path), seeds=[0], rows=16, only=["reference", "tiny"], jobs=1
    )
    rewriters.main(args)
    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "rewriter.json").read_text())
    figures = document["figures"]
    for column in (*rewriters.COLUMNS, *rewriters.VARIETY):
        for name in args.only:
            (found,) = figures[f"{name}.{column}"]
            assert found["value"] is not None and found["n"] == 16, (name, column)
    assert figures["reference.gain"][0]["value"] == figures["reference.kl"][0]["value"] == 0
    assert figures["tiny.kl"][0]["value"] != 0
    assert 0 <= figures["before.asr"]["low"] <= figures["before.asr"]["high"] <= 1
    assert "Three rewards, breadth on" in shown and "Without" not in shown
    cells = sorted(tmp_path.glob("figures/*.json"))
    before = [cell.stat().st_mtime_ns for cell in cells]
    rewriters.main(args)
    assert [cell.stat().st_mtime_ns for cell in cells] == before and len(cells) == 2
    assert capsys.readouterr().out == shown


@pytest.mark.tables
def test_the_weights_are_the_same_engine_and_a_failed_run_is_a_row(short, tmp_path, monkeypatch):
    args = argparse.Namespace(out=str(tmp_path), seeds=[0], rows=16, only=["safety=2"], jobs=1)
    assert weights.main(args) == 0
    figures = json.loads((tmp_path / "report.json").read_text())
    for name in weights.SHOWN:
        assert figures[f"base.{name}"]["value"] is not None, name
        assert figures[f"safety=2.less_base.{name}"]["n"] == 1, name
    work = json.loads((tmp_path / "cells/safety=2-0.json").read_text())["work"]
    assert "--config.rewards.weights.safety=2" in work["overrides"]
    monkeypatch.setattr(weights, "GRID", ("ppo.batch_size=0",))
    assert weights.main(argparse.Namespace(**vars(args) | {"only": None})) == 1
    reason = escape_markdown("ppo.batch_size 0: give a whole number")
    assert reason in (tmp_path / "report.md").read_text()
