"""What the consistency check sees of attacks, what ARM costs, and rows to look at."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import stats

from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.robustness.branches import branch_figures, latencies
from crossguard_jax.evals.robustness.consistency import (
    consistency_changes,
    consistency_section,
)
from crossguard_jax.evals.robustness.detection import detection_section, figures
from crossguard_jax.evals.robustness.pictures import REJECTED, pick, pictures_section
from crossguard_jax.evals.robustness.probe import Attacked, Probe, probe, s_c
from crossguard_jax.io import images
from crossguard_jax.report.blocks import Plot, Table
from crossguard_jax.report.report import Report
from crossguard_jax.toy.world.sources import records
from tests.cmai.small_systems import base, system_of

ROWS = records("implicit", "test", 12)
LEVELS = 8
CONFIG = ConfigDict(
    {
        "norm": "linf",
        "batch_size": 8,
        "picture": -1,
        "seed": 3,
        "convergence": {"epsilon": LEVELS / 255, "rows": 4},
    }
)
POINT = ConfigDict(CONFIG.to_dict() | {"convergence": {"epsilon": 0.0, "rows": 4}})
"""A radius at which nothing is searched, nor compiled for it."""

RNG = np.random.default_rng(0)


def by_hand(clean: np.ndarray, cut: float | None, **attacks: np.ndarray) -> Probe:
    """A probe of scores alone; every second attacked row is fooled."""

    def pictures(scores: np.ndarray) -> np.ndarray:
        return np.zeros((len(scores), 3, 2, 2))

    attacked = {
        name: Attacked(
            np.arange(len(s)), pictures(s).astype(np.uint8), s, np.arange(len(s)) % 2 == 0
        )
        for name, s in attacks.items()
    }
    return Probe("linf", LEVELS / 255, 1, cut, [], pictures(clean), {}, clean, attacked)


CLEAN, SEEN, UNSEEN = (RNG.normal(mean, 0.2, 200) for mean in (0.6, 0.2, 0.5))
SCORES = by_hand(CLEAN, 0.45, oblivious=SEEN, adaptive=UNSEEN)


@pytest.mark.parametrize("part", ["", "fooling."])
@pytest.mark.parametrize(("name", "scores"), [("oblivious", SEEN), ("adaptive", UNSEEN)])
def test_auroc_is_the_chance_that_an_attacked_row_scores_below_a_clean_one(
    part: str, name: str, scores: np.ndarray
) -> None:
    scores = scores[::2] if part else scores
    u = stats.mannwhitneyu(CLEAN, scores).statistic / (len(CLEAN) * len(scores))
    found = figures(SCORES)[f"{name}.{part}auroc"]
    assert found.value == pytest.approx(u)
    assert found.low < found.value < found.high and found.n == len(CLEAN) + len(scores)
    for percent in (1, 5):
        # The clean rows that may be lost are the lowest; what lies below the next is told.
        first_kept = np.sort(CLEAN)[len(CLEAN) * percent // 100]
        told = figures(SCORES)[f"{name}.{part}tpr_at_{percent}_fpr"]
        assert told == metrics.proportion(scores < first_kept)


def test_s_c_of_attacked_rows_is_compared_on_the_rows_that_both_models_had_right() -> None:
    after = by_hand(CLEAN, 0.45, oblivious=SEEN + 0.1, adaptive=UNSEEN)
    before = by_hand(CLEAN, 0.45, oblivious=SEEN[:100])
    change = consistency_changes(after, before)
    assert set(change) == {"oblivious.s_c_difference", "oblivious.s_c_deviations_difference"}
    assert change["oblivious.s_c_difference"].value == pytest.approx(0.1)
    assert change["oblivious.s_c_difference"].n == 100
    deviation = CLEAN.std()
    assert change["oblivious.s_c_deviations_difference"].value == pytest.approx(0.1 / deviation)
    louder = by_hand(10 * CLEAN, 4.5, oblivious=10 * (SEEN + 0.1))
    same = consistency_changes(louder, before)["oblivious.s_c_deviations_difference"]
    assert same.value == pytest.approx(0.1 / deviation), "a check's scale changes nothing"
    section = consistency_section({"after": after, "before": before})
    where = "detection.linf.8.oblivious"
    assert section.figures[f"after.minus.before.{where}.s_c_difference"].n == 100
    assert section.figures[f"after.{where}.s_c"] == metrics.mean(SEEN + 0.1)
    assert section.figures[f"after.{where}.s_c_change"] == metrics.mean(SEEN + 0.1 - CLEAN)
    with pytest.raises(UserError, match="different rows or in other balls"):
        consistency_changes(after, replace(before, epsilon=0.5))


def test_what_is_accepted_fools_the_model_and_lies_above_the_cuts() -> None:
    found = figures(SCORES)
    assert found["adaptive.fooled"].value == 0.5
    accepted = (UNSEEN >= 0.45) & (np.arange(200) % 2 == 0)
    assert found["adaptive.accepted"] == metrics.proportion(accepted)
    with pytest.raises(UserError, match="no consistency check"):
        figures(by_hand(CLEAN, None, oblivious=SEEN))


def test_an_attack_that_nobody_fell_for_has_figures_of_no_rows() -> None:
    found = figures(by_hand(CLEAN, 0.45, oblivious=np.zeros(0)))
    assert found["oblivious.auroc"].n == found["oblivious.tpr_at_1_fpr"].n == 0
    assert math.isnan(found["oblivious.fooled"].value)


def test_every_branch_says_who_takes_it_and_what_that_costs() -> None:
    branches = [{"below": 0.2, "do": "reject"}, {"below": 0.5, "do": "smooth", "n": 3}]
    policy = Policy.from_config({"branches": [*branches, {"below": 0.6, "do": "flag"}]})
    found = branch_figures(policy, {"clean": CLEAN, "adaptive": UNSEEN})
    took = np.digitize(CLEAN, [0.2, 0.5, 0.6])
    for i, do in enumerate(("reject", "smooth", "flag", "accept")):
        assert found[f"arm.{i}_{do}.share.clean"] == metrics.proportion(took == i)
        assert found[f"arm.{i}_{do}.abstention"].value == (do == "reject")
    assert [found[f"arm.{b}.passes"].value for b in ("0_reject", "1_smooth")] == [0, 3]
    assert found["arm.all.abstention.adaptive"] == metrics.proportion(UNSEEN < 0.2)
    assert found["arm.all.flagged.clean"] == metrics.proportion(took == 2)
    passes = np.array([0, 3, 1, 1])[took]
    assert found["arm.all.passes.clean"].value == pytest.approx(passes.mean())


# A model


@pytest.fixture(scope="module")
def system() -> Immunized:
    """A policy of three branches, which untrained scores are spread over."""
    free = system_of(base())
    x, rows = free.rows(ROWS)
    low, high = np.quantile(s_c(free, free.params, rows, x), [0.2, 0.6]).tolist()
    branches = [
        {"below": low, "do": "reject"},
        {"below": high, "do": "smooth", "n": 6, "sigma": 0.05},
    ]
    return replace(free, policy=Policy.from_config({"branches": branches}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def probed(system: Immunized, folder: Path) -> Probe:
    return probe(system, ROWS, CONFIG, folder, steps=4)


@functools.partial(jax.jit, static_argnums=0)
def said(system: Immunized, params: Any, inputs: Any) -> tuple[Any, Any]:
    x = inputs["pixels"]
    p = system.predict(params, inputs, jnp.zeros(len(x)))
    return p.argmax(axis=1), system.s_c(params, inputs, x)


@pytest.mark.robustness
def test_both_attacks_see_every_row_that_is_answered_rightly(
    system: Immunized, probed: Probe
) -> None:
    x, rows = system.rows(ROWS)
    best, scores = said(system, system.params, rows | {"pixels": x})
    np.testing.assert_allclose(probed.s_c, scores, atol=1e-5)
    right = np.flatnonzero(best == rows["labels"])
    assert 0 < len(right) < len(x)
    assert (probed.s_c[right] < probed.cut).any()  # those below a cut as well
    for attacked in probed.attacked.values():
        np.testing.assert_array_equal(attacked.rows, right)


@pytest.mark.robustness
def test_scores_and_answers_are_those_of_the_pictures_that_were_kept(
    system: Immunized, probed: Probe
) -> None:
    for attacked in probed.attacked.values():
        levels = 255 * probed.x[attacked.rows]
        assert 0 < np.abs(attacked.pictures - levels).max() <= LEVELS + 1e-3
        x = attacked.pictures.astype(np.float32) / 255
        rows = probed.at(attacked.rows)
        best, scores = said(system, system.params, rows | {"pixels": x})
        np.testing.assert_allclose(attacked.s_c, scores, atol=1e-5)
        wrong = best != rows["labels"]
        np.testing.assert_array_equal(attacked.fooled, wrong)


@pytest.mark.robustness
def test_the_adaptive_attack_agrees_with_the_text_where_the_other_does_not_care(
    probed: Probe,
) -> None:
    oblivious, adaptive = probed.attacked["oblivious"], probed.attacked["adaptive"]
    both = oblivious.fooled & adaptive.fooled
    assert both.any()
    assert adaptive.s_c[both].mean() > oblivious.s_c[both].mean() + 0.02


@pytest.mark.robustness
def test_a_probe_goes_on_where_it_stopped(system: Immunized, probed: Probe, folder: Path) -> None:
    def written() -> Mapping[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    before = written()
    again = probe(system, ROWS, CONFIG, folder, steps=4)
    assert written() == before
    np.testing.assert_array_equal(again.attacked["adaptive"].s_c, probed.attacked["adaptive"].s_c)
    other = replace(system, policy=Policy.from_config({"branches": [{"below": 0, "do": "reject"}]}))
    with pytest.raises(UserError, match="holds another run"):
        probe(other, ROWS, CONFIG, folder, steps=4)


def test_without_branches_the_threshold_is_the_cut(system: Immunized, tmp_path: Path) -> None:
    bare = replace(system, policy=Policy())
    with pytest.raises(UserError, match="no threshold"):
        probe(bare, ROWS, CONFIG, tmp_path)
    with pytest.raises(UserError, match="0 of 1 rows have a picture"):
        probe(bare, [replace(ROWS[0], images=())], CONFIG, tmp_path)
    cut = replace(bare, threshold=Threshold(0.25, 0.9, 0.9, 40))
    assert probe(cut, ROWS, POINT, tmp_path).cut == 0.25


@pytest.mark.robustness
def test_a_rejected_row_costs_less_than_an_accepted_one_and_a_smoothed_one_more(
    system: Immunized, probed: Probe
) -> None:
    found = latencies(system, probed, 8, runs=3)
    assert found["arm.2_accept.latency"].value == 1
    assert found["arm.0_reject.latency"].value < 1 < found["arm.1_smooth.latency"].value
    assert found["arm.check.latency"].value > 1 and found["arm.check.latency"].n == 3


@pytest.mark.robustness
def test_the_section_has_tables_a_plot_and_every_figure(
    system: Immunized, probed: Probe, tmp_path: Path
) -> None:
    section = detection_section("guard.immunized", system, probed, 8)
    assert [type(b) for b in section.blocks if isinstance(b, Plot | Table)] == [Table, Plot, Table]
    Report("r", [section, pictures_section("guard.immunized", system, probed)]).write(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    where = f"guard.immunized.detection.linf.{LEVELS}"
    for name in ("adaptive.tpr_at_1_fpr", "arm.1_smooth.latency", "arm.all.abstention.oblivious"):
        assert f"{where}.{name}" in found
    text = (tmp_path / "report.md").read_text()
    assert "reject: S" in text and "AUROC" in text
    assert (tmp_path / "plots" / "attacked_guard_immunized.png").exists()


# Rows to look at


@pytest.mark.robustness
def test_verdicts_are_what_the_system_decides_of_the_same_pictures(
    system: Immunized, probed: Probe
) -> None:
    shown = pick(system, probed, 4)
    assert len(shown) == 4
    asked = {record.text: record for record in ROWS}
    for side in (0, 1):
        requests = []
        for i, row in enumerate(shown):
            png = images.encode_png(Image.fromarray(row.pictures[side]))
            requests.append(replace(asked[row.text], id=str(i), images=(png,)))
        decided = system.decide(requests, batch_size=4)
        for i, row in enumerate(shown):
            assert row.s_c[side] == pytest.approx(float(decided.s_c[i]), abs=1e-4)
            do = system.policy.branches[decided.decisions.branches[i]].do
            if do == "reject":
                assert row.verdicts[side] == REJECTED
            else:
                assert do == "accept" or row.verdicts[side].endswith(f" ({do})")
            if do == "accept":  # noise has keys of its own
                assert row.verdicts[side] == decided.words[i]


@pytest.mark.robustness
def test_rows_are_taken_in_turn_from_what_came_of_them(system: Immunized, probed: Probe) -> None:
    attacked = probed.attacked["adaptive"]
    n = len(attacked.rows)
    kinds = np.arange(n) % 3
    assert probed.cut is not None
    s = np.where(kinds == 1, probed.cut - 1, probed.cut + 1)
    made = {"adaptive": replace(attacked, fooled=kinds < 2, s_c=s)}
    shown = pick(system, replace(probed, attacked=made), 3)
    at = [next(i for i in range(n) if same(shown[k], attacked.pictures[i])) for k in range(3)]
    assert [kinds[i] for i in at] == [0, 1, 2]


def same(row: Any, picture: np.ndarray) -> bool:
    return np.array_equal(row.pictures[1], np.moveaxis(picture, 0, -1))


@pytest.mark.robustness
def test_a_model_without_a_check_is_probed_by_the_oblivious_attack_alone(tmp_path: Path) -> None:
    plain = Immunized.of(base())
    found = probe(plain, ROWS, POINT, tmp_path)
    assert list(found.attacked) == ["oblivious"] and found.cut is None
    shown = pick(plain, found, 2)
    assert all(np.isnan(row.s_c).all() and row.verdicts[0] == row.verdicts[1] for row in shown)
    section = pictures_section("plain", plain, found, 2)
    assert isinstance(section.blocks[0], Plot)
