"""The table of CMAI: its rows are configurations, and what a defence costs is paired with none."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from crossguard_jax.cmai.arm import KNOBS
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.report.blocks import Section
from crossguard_jax.report.report import Report
from crossguard_jax.toy.tables import defences
from crossguard_jax.toy.tables import immunized as table
from tests.cmai.small_systems import RECORDS, base
from tests.evals.robustness.test_figures import ENTRIES, curve


@pytest.mark.parametrize("task", defences.TASKS)
@pytest.mark.parametrize("name", defences.ROWS)
def test_a_row_is_attacked_as_every_other_one(task, name):
    config = load_config(
        f"configs/cmai.py:{defences.TASKS[task]}{defences.ROWS[name].variant or 'tiny'}"
    )
    whole = load_config(f"configs/cmai.py:{defences.TASKS[task]}tiny")
    assert config.attack.to_json() == whole.attack.to_json()
    assert config.train.to_json() == whole.train.to_json(), "nobody trains longer"


@pytest.mark.parametrize("task", defences.TASKS)
def test_without_arm_the_adversary_is_what_arms_may_become(task):
    fixed, ramped = (
        load_config(f"configs/cmai.py:{defences.TASKS[task]}{defences.ROWS[name].variant}").arm
        for name in ("iii", "iv")
    )
    for knob in KNOBS:
        assert fixed[knob].start == fixed[knob].maximum == ramped[knob].maximum
        assert ramped[knob].start < ramped[knob].maximum


def test_rows_that_nobody_attacks_are_judged_as_a_user_sees_them(tmp_path):
    system = Immunized.of(base())
    config = load_config("configs/cmai.py:tiny")
    config.attack.batch_size = 4
    found = defences.clean_model(defences.Model(system, system, config, tmp_path), RECORDS, 3)
    pictured = [record for record in RECORDS if record.image is not None]
    words = system.decide(pictured).words
    right = [word == record.label for word, record in zip(words, pictured, strict=True)]
    np.testing.assert_array_equal(found.curves[3].right, right)
    assert len(config.attack.attacks) > 1, "the table's own attacks are left alone"


def test_what_a_defence_costs_is_its_difference_to_none():
    found = {
        "iv": Robustness({0: curve(wrong=30), 1: curve(wrong=40)}),
        "none": Robustness({0: curve(wrong=20), 1: curve(wrong=20)}),
    }
    shown = dict(table._clean_section("vqa", found).all_figures())
    cost = shown["vqa.iv.unattacked.minus.none"]
    assert cost.value == pytest.approx((20 - 35) / 400)
    assert cost.low < cost.value < cost.high < 0
    assert "vqa.none.unattacked.minus.none" not in shown
    assert shown["vqa.none.unattacked.accuracy"].value == 0.95


def test_all_are_compared_at_one_radius_and_some_attacked_closely(tmp_path):
    def under(seed, radii, norm="linf", **options):
        entries = tuple(replace(entry, norm=norm) for entry in ENTRIES)
        return Robustness({seed: curve(radii=radii, entries=entries, **options)})

    at = (0.0, defences.COMPARED)
    clean = under(0, (0.0,))
    whole = {norm: under(0, radii, norm) for norm, radii in defences.CLOSELY.items()}
    closely = defences.SeedResult(whole["linf"], whole["l2"], clean)
    later = defences.SeedResult(under(1, at, wrong=60), None, under(1, (0.0,)))
    found = {
        "iv": [closely, later],
        "none": [closely],
        "ii": [defences.SeedResult(under(0, at), None, clean)],
    }
    sections = [part for task in defences.TASKS for part in table._sections(task, found, 4)]
    shown = dict(figure for part in sections for figure in part.all_figures())
    for task in defences.TASKS:
        robust = f"{task}.iv.linf.8.robust_accuracy"
        assert shown[robust].value < shown[f"{robust}.seed_0"].value
        assert shown[f"{robust}.seed_0"].value == shown[f"{task}.ii.linf.8.robust_accuracy"].value
        assert f"{task}.iv.minus.{task}.ii.linf.8.robust_accuracy_difference" in shown
        for last in ("linf.32", "l2.8"):
            assert f"{task}.closely.iv.{last}.robust_accuracy" in shown
            assert f"{task}.closely.ii.{last}.robust_accuracy" not in shown
            assert f"{task}.iv.{last}.robust_accuracy" not in shown
    Report("CMAI", sections).write(tmp_path)
    drawn = {file.name for file in (tmp_path / "plots").glob("*.png")}
    kinds = ("robustness_linf", "closely_robustness_linf", "closely_robustness_l2")
    assert drawn == {f"{task}_{kind}.png" for task in defences.TASKS for kind in kinds}


@pytest.mark.parametrize("name", ["iv", "none", "ii"])
@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_seed_of_some_rows_is_attacked_closely(tmp_path, monkeypatch, name, first):
    attacked, probed, found = {}, [], Robustness({4: curve()})

    def attack(model, tests, seed, norm, radii, convergence=False, at_cuts=False):
        assert at_cuts == (norm == "linf")
        attacked[norm] = (tuple(radii), convergence)
        return found

    monkeypatch.setattr(defences, "attack_model", attack)
    monkeypatch.setattr(defences, "probe_model", lambda *_: probed.append(name))
    monkeypatch.setattr(defences, "clean_model", lambda *_: found)
    for part in ("model_of", "held_out"):
        monkeypatch.setattr(defences, part, lambda *_: None)
    defences.train_and_attack(tmp_path, "guard", name, 4, first, 2)
    closely = {
        "linf": (defences.CLOSELY["linf"], True),
        "l2": (defences.CLOSELY["l2"], False),
    }
    compared = {"linf": ((0.0, defences.COMPARED), False)}
    assert attacked == (closely if first and name != "ii" else compared)
    assert probed == (["iv"] if first and name == "iv" else [])


def test_every_run_is_counted_to_its_row_and_seed(tmp_path, monkeypatch):
    wrong = {"none": 100, "iii": 60, "ii": 20}
    asked = []

    def attacked(folder, task, name, seed, first, rows):
        asked.append((task, name, seed, first))
        found = Robustness({seed: curve(wrong=wrong[name] + 40 * (task == "vqa") + seed)})
        return defences.SeedResult(found, None, found)

    monkeypatch.setattr(table, "train_and_attack", attacked)
    for part in ("write_sources", "base_guard"):
        monkeypatch.setattr(table, part, lambda *_: None)
    monkeypatch.setattr(table, "_detection", lambda *_: Section("", ()))
    seeds = [5, 6, 7]
    table.main(arguments(tmp_path, seeds, None, list(wrong)))
    report = json.loads((tmp_path / "report.json").read_text())
    for task, more in (("guard", 0), ("vqa", 40)):
        for name, first in wrong.items():
            trained = seeds if name == "iii" or (task, name) == ("guard", "none") else [5]
            assert [seed for *run, seed, _ in asked if run == [task, name]] == trained
            value = report[f"{task}.{name}.unattacked.accuracy"]["value"]
            assert value == pytest.approx(1 - (first + more + np.mean(trained)) / 400)
    assert all(first == (seed == 5) for *_, seed, first in asked)
    guards = [seed for task, _, seed, _ in asked if task == "guard"]
    assert guards == sorted(guards), "what first seeds compile, later ones find"


def arguments(folder, seeds, tasks, only):
    return argparse.Namespace(out=str(folder), seeds=seeds, rows=2, tasks=tasks, only=only, jobs=1)


def test_a_row_that_is_not_there_is_named(tmp_path):
    args = arguments(tmp_path, [0], ["vqa"], ["v"])
    with pytest.raises(UserError, match="--only v: rows are iv, none"):
        table.main(args)


def test_a_row_of_another_task_is_refused_before_anything_is_written(tmp_path):
    args = arguments(tmp_path / "new", [0], None, ["iv_clean"])
    with pytest.raises(UserError, match="iv_clean: not a row of the task vqa"):
        table.main(args)
    assert not (tmp_path / "new").exists()
