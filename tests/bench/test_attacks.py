"""``crossguard bench attacks`` at sizes that say nothing about speed: both sides do the same."""

import argparse
import json

import numpy as np
import pytest
from transformers import LlavaForConditionalGeneration

from crossguard_jax.bench import (
    attacks,
    attacks_mbat,
    attacks_parts,
    attacks_pgd,
    attacks_text,
    attacks_universal,
    base,
)
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import load_model

# They compile several minutes' worth of programs to guard a measurement that is made by hand.
pytestmark = pytest.mark.benches


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def test_the_bench_runs_and_leaves_out_what_is_not_asked_for(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attacks, "make_folder", lambda scratch: folder)
    for name, value in (("PROMPTS", 3), ("CANDIDATES", 5), ("KS", (1, 2))):
        monkeypatch.setattr(attacks, name, value)
    monkeypatch.setattr(attacks, "mostly_tower", lambda model: model)
    args = argparse.Namespace(batch=2, runs=1, threads=1, out=str(tmp_path), only=None)
    attacks.main(args)
    shown = capsys.readouterr().out
    for row in ("| PGD-10 |", "| PGD-10, random start |", "3 prompts, tower once", "5 candidates"):
        assert row in shown
    document = json.loads((tmp_path / "bench_attacks.json").read_text())
    measured = ["pgd", "universal:guard", "universal:mostly_tower", "text", "mbat"]
    assert list(document) == ["machine", "versions", *measured]
    pgd, shapes = document["pgd"], [document[name] for name in measured[1:3]]
    ratios = [pgd["ratio"], pgd["ratio_random"], *document["text"]["ratio"].values()]
    ratios += [ratio for one in shapes for ratio in one["ratio"].values()]
    ratios += document["mbat"]["cost"].values()
    assert len(ratios) == 10
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in ratios)
    assert pgd["floor_seconds"] == pytest.approx(pgd["gflop"] / pgd["matmul_gflops"])
    for name in measured[1:]:
        assert all(0 < floor < 60 for floor in document[name]["floor_seconds"].values())
    args.only = ["text"]
    attacks.main(args)
    assert "text" in json.loads((tmp_path / "bench_attacks.json").read_text())
    shown = capsys.readouterr().out
    assert "5 candidates" in shown and "PGD" not in shown and "MBAT" not in shown


def test_a_torch_model_that_normalizes_otherwise_is_not_timed(folder, model, monkeypatch):
    monkeypatch.setattr(attacks_pgd, "OPENAI_MEAN", (0.1, 0.9, 0.5))
    with pytest.raises(UserError, match="PGD: the two sides differ"):
        attacks_pgd.against_torchattacks(folder, model, 2, 1)


def test_a_shared_pass_over_another_picture_is_not_timed(model, monkeypatch):
    other = {"shared": lambda model, x, ids: attacks_universal.shared(model, 1 - x, ids)}
    monkeypatch.setattr(attacks_universal, "WAYS", attacks_universal.WAYS | other)
    with pytest.raises(UserError, match="universal attack, shared: the two sides differ"):
        attacks_universal.universal(model, 3, 1)


def test_logits_that_differ_behind_a_cached_prompt_are_not_timed(model, monkeypatch):
    right = attacks_text.cached
    monkeypatch.setattr(attacks_text, "cached", lambda *a: 1.001 * right(*a))
    with pytest.raises(UserError, match="off by 1.0e-03"):
        attacks_text.candidates_behind_prefix(attacks_text.shorter(model), 5, 1)


def test_a_clean_step_on_another_loss_is_not_timed(model, monkeypatch):
    right = attacks_mbat.make_step

    def other(loss, adam):
        return right(lambda *a: (1.001 * loss(*a)[0], {}), adam)

    monkeypatch.setattr(attacks_mbat, "make_step", other)
    with pytest.raises(UserError, match="MBAT, k1: with a radius of zero its loss"):
        attacks_mbat.step_costs(model, 2, (1,), 1)


def test_pictures_that_did_not_move_or_left_the_ball_show_nothing():
    x = np.full((2, 3, 4, 4), 0.5, np.float32)
    near, far = x + np.float32(8 / 255), x + np.float32(9 / 255)
    assert attacks_parts.check_same_pixels(near, near, x, "it") == 0
    one_off = near.copy()
    one_off[0, 0, 0, 0] = 0.5
    with pytest.raises(UserError, match="differ in 1.04%"):
        attacks_parts.check_same_pixels(near, one_off, x, "it")
    with pytest.raises(UserError, match="does not move"):
        attacks_parts.check_same_pixels(x, x, x, "it")
    attacks_parts.check_in_ball(near, x, "it")
    for wrong in (x, far, near + 0.48):
        with pytest.raises(UserError, match="grey levels"):
            attacks_parts.check_in_ball(wrong, x, "it")


def test_the_floor_counts_the_matrices_that_positions_must_meet(folder, model):
    """By the names of transformers' own parameters."""
    theirs = LlavaForConditionalGeneration.from_pretrained(folder)
    sizes = {name: p.numel() for name, p in theirs.named_parameters() if p.ndim > 1}

    def total(*words):
        return sum(n for name, n in sizes.items() if all(word in name for word in words))

    # Of three layers of the tower the last is not used; of the second and last layer of the
    # language model only keys and values.
    vision = sum(total("vision_tower", f"layers.{i}.") for i in (0, 1))
    patches = total("patch_embedding") + total("multi_modal_projector")
    work = base.seeing(model, 5)
    assert work.matrices == pytest.approx(2 * 5 * (17 * vision + 16 * patches), rel=0.05)
    assert work.attention == 5 * 2 * (2 * 2 * 17 * 17 * 32)
    language = total("language_model", "layers.0.")
    language += total("layers.1.", "k_proj") + total("layers.1.", "v_proj")
    language -= total("vision_tower", "layers.1.", "k_proj")
    language -= total("vision_tower", "layers.1.", "v_proj")
    work = base.reading(model, 3, 10, before=20)
    assert work.matrices == pytest.approx(2 * 3 * 10 * language, rel=0.05)
    assert work.attention == 3 * (10 * 20 + 50) * 4 * 32
    both = base.seeing(model, 1) + base.reading(model, 1, 10)
    assert both.gradient == 2 * both.matrices + 3 * both.attention
