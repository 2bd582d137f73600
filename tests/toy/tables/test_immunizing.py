"""The search for how to immunize: what a training costs, and that no threshold wins by itself."""

import argparse
import json

import numpy as np
import pytest

from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report.text import escape_markdown
from crossguard_jax.toy.tables import immunizing as table
from crossguard_jax.toy.tables.trials import TRIALS, passes
from tests.cmai.small_systems import RECORDS, base

TRAINED = [name for name, trial in TRIALS.items() if trial.variant]


def config_of(name):
    return load_config(f"configs/cmai.py:{TRIALS[name].variant}", TRIALS[name].changes)


@pytest.mark.parametrize("name", TRAINED)
def test_a_trial_reads_its_sources_in_shares_that_add_up_and_costs_what_it_says(name):
    config = config_of(name)
    assert sum(s.weight for s in config.data.sources.values()) == pytest.approx(1.0)
    rows = config.train.steps * config.train.batch_size
    # An inner step is a pass, and so are the clean and the adversarial row.
    assert passes(config) == rows * len(["clean", "attacked", *range(config.mbat.steps)])


def test_of_scores_that_separate_no_rows_no_threshold_makes_both_classes_right():
    unsafe = np.arange(400) % 2 == 0
    scores = np.linspace(-3.0, 3.0, 400)
    figures = table.under_attack(scores, unsafe, {"": 0.0, ".0.01": 2.5, ".0.05": -2.5})
    assert figures["robust"].value == pytest.approx(0.5, abs=0.01)
    assert figures["auroc"].value == pytest.approx(0.5, abs=0.01)
    assert figures["recall.0.01"].value < 0.1 < 0.9 < figures["specificity.0.01"].value
    assert figures["specificity.0.05"].value < 0.1 < 0.9 < figures["recall.0.05"].value
    assert {f.n for f in figures.values()} == {200, 400}


@pytest.mark.robustness
def test_an_attacked_score_is_no_better_than_the_clean_one():
    system = Immunized.of(base())
    rows = [row for row in RECORDS if row.image is not None]
    scores, unsafe = table.attacked_scores(system, rows, 0)
    clean, labels = table._scores(system.guard, rows)
    np.testing.assert_array_equal(unsafe, labels)
    away = np.where(unsafe, clean - scores, scores - clean)
    assert away.min() > -1e-3 and away.max() > 0.05


def test_finished_cells_are_read_written_into_the_tables_and_drawn(tmp_path, monkeypatch):
    columns = {**table.COLUMNS, **table.CLEAN}
    figures = {column: Estimate(0.5, 0.4, 0.6, 320) for column in columns}

    def judged(guard, rows, seed):
        assert (rows, seed) == (320, 0)
        return figures

    monkeypatch.setattr(table, "judge", judged)
    monkeypatch.setattr(table.Guard, "from_pretrained", lambda model: model)
    cost = {key: Estimate.exact(1_000) for key in ("passes", "cpu_seconds")}
    monkeypatch.setattr(table, "_train", lambda *_: cost)
    args = argparse.Namespace(out=tmp_path, only=None, seeds=[0], rows=320, guard="g", jobs=1)
    table.main(args)
    monkeypatch.setattr(table, "judge", lambda *_: pytest.fail("judged a finished cell"))
    table.main(args)
    written = json.loads((tmp_path / "immunizing.json").read_text())["figures"]
    assert written["none.passes"]["value"] == 0 and written[f"{TRAINED[0]}.robust"]["n"] == 320
    page = (tmp_path / "immunizing.md").read_text()
    assert all(escape_markdown(trial.title) in page for trial in TRIALS.values())
    assert (tmp_path / "immunizing.png").read_bytes().startswith(b"\x89PNG")
    args.only = ["nothing"]
    with pytest.raises(UserError, match="--only nothing: rows are none, "):
        table.main(args)
