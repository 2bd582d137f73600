"""Counts of tasks: figures, paired differences and pooled seeds from the same columns."""

import numpy as np
import pytest

from crossguard_jax.core import metrics, tasks
from crossguard_jax.evals.tasks.counts import differences_of, figures_of, of_rows, together
from crossguard_jax.evals.tasks.report import compare, compared_table
from crossguard_jax.toy.tables.responding import figures_by_name, own_figures, paired_figures, table

PLACES = {"clean": "clean", "linf.4": "4/255", "linf.8": "8/255"}
RNG = np.random.default_rng(0)
SAID = ["a red thing on the left", "a blue thing", "a cup of tea here", "two red things on it"]
PEOPLE = [("a red thing on the left side",), ("a blue one",), ("a cup of tea",), ("two things",)]


def test_figures_are_those_of_the_metrics_themselves():
    hits, scores = np.array([True, False, True, True]), tasks.cider_scores(SAID, PEOPLE)
    bleu = tasks.bleu_counts(SAID, PEOPLE)
    found = figures_of({"r1": of_rows(hits), "cider": of_rows(scores), "bleu4": bleu})
    assert found["r1"] == metrics.proportion(hits)
    assert found["cider"] == tasks.cider(SAID, PEOPLE)
    assert found["bleu4"] == tasks.bleu4(SAID, PEOPLE)


def test_a_difference_is_paired_by_row_and_of_what_both_have():
    a, b = RNG.random(40), RNG.random(40)
    hits = RNG.random((2, 40)) < 0.5
    one = {"cider": of_rows(a), "r1": of_rows(hits[0]), "rejected": of_rows(hits[0])}
    other = {"cider": of_rows(b), "r1": of_rows(hits[1])}
    found = differences_of(one, other)
    assert set(found) == {"cider", "r1"}
    assert found["r1"] == metrics.paired_difference(*hits)
    assert found["cider"].value == pytest.approx((a - b).mean())
    shifted = differences_of({"cider": of_rows(b + 1)}, {"cider": of_rows(b)})["cider"]
    assert shifted.value == pytest.approx(1) and np.isnan(shifted.low), "every row says the same"
    apart = np.ptp([found["cider"].low, found["cider"].high])
    assert 0 < apart < 2 * 1.96 * np.sqrt(2 / 12 / 40) * 1.5


def test_shares_of_captions_are_drawn_with_their_pictures():
    wholes = np.full(30, 5.0)
    hits = np.minimum(RNG.integers(0, 6, 30), wholes)
    found = figures_of({"text_to_image.r1": np.stack([hits, wholes], axis=1)})["text_to_image.r1"]
    assert found.value == pytest.approx(hits.sum() / 150) and found.n == 30


def counts(shift: float, seed: int):
    rng = np.random.default_rng(seed)
    hits = rng.random(20) < 0.3 + shift
    return {place: {"image_to_text.r1": of_rows(hits)} for place in PLACES}


def test_seeds_rows_are_put_together_and_each_seed_is_shown():
    seeds = [{"cmai": counts(0.5, s), "none": counts(0.0, s)} for s in (0, 1)]
    whole, each = figures_by_name(seeds, own_figures)["cmai.linf.8.image_to_text.r1"]
    assert whole.n == 40 and [e.n for e in each] == [20, 20]
    assert whole.value == pytest.approx(np.mean([e.value for e in each]))
    paired = figures_by_name(seeds, paired_figures)
    (name,) = {n for n in paired if ".linf.8." in n}
    assert name == "cmai.minus.none.rows.linf.8.image_to_text.r1" and paired[name][0].value > 0
    shown = table("retrieval less", paired, [0, 1])
    ((title, *cells),) = shown.rows
    assert title == "cmai less none, image_to_text.r1" and len(cells) == 3
    assert all(cell.count(",") == 2 for cell in cells), "an interval, and two seeds"
    assert together([seeds[0]["cmai"]["clean"]] * 2)["image_to_text.r1"].shape == (40, 2)


def test_systems_of_other_rows_are_not_compared():
    systems = {"a": {"x": counts(0, 0)}, "b": {"x": counts(0, 1)}, "c": {"y": counts(0, 2)}}
    compared = compare(systems)
    assert {name.split(".")[2] for name in compared} == {"b"} and len(compared) == 3
    ((title, *cells),) = compared_table(compared, PLACES).rows
    assert title == "a minus b: x, R@1, image to text" and len(cells) == 3
    short = {"clean": {"image_to_text.r1": of_rows(np.ones(3))}}
    assert not compare({"a": {"x": counts(0, 0)}, "b": {"x": short}})
