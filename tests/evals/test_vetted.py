"""What a model says is held against its picture: what is rejected, what it is worth, who knows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.cmai.answering import Checked
from crossguard_jax.cmai.consistency import ConsistencyConfig, make_check
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.reader import Placed, Reader
from crossguard_jax.cmai.vetted import Vetting
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import LeftOut
from crossguard_jax.evals.tasks.attack import Attack, PerturbedTask, measure, searched
from crossguard_jax.evals.tasks.objectives import vetted
from crossguard_jax.evals.tasks.retrieval import Retrieval
from crossguard_jax.evals.tasks.rows import Benchmark
from crossguard_jax.evals.tasks.vetted import Ruled, VettedRows
from crossguard_jax.evals.tasks.words import Captions
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.io.images import decode
from crossguard_jax.toy.tables.responding import rows
from tests.evals.test_tasks import Fake

KEY = jax.random.key(0)


class Words(Fake):
    """`Fake`, whose responses are held against the pictures as texts."""

    def held(self, said, row):
        return f"{row}:{said}"

    def figures(self, said):
        return {"mean": Estimate.exact(float(np.mean(said)), len(said))}


class Rejecting(Vetting):
    """A check that rejects some texts."""

    def __init__(self, *texts: str):
        object.__setattr__(self, "_texts", texts)

    def rejects(self, levels, texts, batch_size=64):
        assert len(levels) == len(texts)
        return np.array([text in self._texts for text in texts])


def test_what_is_rejected_is_no_response_when_clean_and_no_harm_under_attack():
    harm = {(0.1, 0): [0.5, 0.2, 0.9, 9]}
    inner = Words(harm)
    task = VettedRows(inner, Rejecting("1:0.2", "2:1.0"))
    assert isinstance(task, PerturbedTask)
    measured = measure(task, Attack((0.1,), aims=1))
    # Row 1 is attacked and rejected; row 2 was rejected before anybody attacked it.
    assert measured.clean == [Ruled(1.0, False), Ruled(1.0, False), Ruled(1.0, True), (0.0, False)]
    assert measured.attacked[0.1] == [Ruled(0.5, False), *measured.clean[1:]]
    assert inner.attacked == [(0.1, 0, [0, 1])]
    assert task.scores(measured.clean).tolist() == [1.0, 1.0, 0.0, 0.0]
    figures = measured.figures()
    means = {at: figures[at]["mean"].value for at in figures}
    assert means == {"clean": 0.5, "linf.25_5": 0.375}
    assert figures["clean"]["rejected"].value == 0.25
    assert [task.shown(each) for each in measured.clean] == ["1.0", "1.0", "(rejected)", "0.0"]


def test_selective_raises_the_margin_where_nothing_detects_and_obeys_what_does():
    """Up is wrong; above 0.3 it is caught."""

    def objective(detects):
        def outcome(x, key):
            mean = x.reshape(len(x), -1).mean(axis=1)
            return Outcome(mean, mean - 0.2, mean - 0.3 if detects else None)

        return outcome

    x, budget = jnp.full((2, 3, 4, 4), 0.1), Budget(0.5, steps=20)
    free, watched = (
        np.asarray(searched("selective", objective(detects), x, KEY, budget).x_adv).mean((1, 2, 3))
        for detects in (False, True)
    )
    assert (free > 0.5).all()
    assert ((watched > 0.2) & (watched < 0.3)).all()


def cut_at(vetting, levels, texts):
    """The check with its cut amid the scores of some pictures and texts, and those."""
    scores = vetting.s_c(levels, texts, batch_size=4)
    low, high = np.sort(scores)[len(scores) // 2 - 1 :][:2]
    assert high - low > 1e-4
    branches = [{"do": "reject", "below": float(low + high) / 2}]
    return replace(vetting, policy=Policy.from_config({"branches": branches})), scores


def vetting_of(model, normalization, width):
    """A check of random numbers, which rejects what does not fit at all."""
    reader = Reader(Placed(), "clip", "toy://clip", 0)
    layers = model.config.vision_feature_layer
    vision = 2 * model.config.vision.hidden_size
    config = ConsistencyConfig(vision, reader.width, shared_width=8, hidden_width=16)
    check = make_check(config, KEY)
    assert len(layers) == 1
    checked = Checked(model, normalization, width, jnp.float32, reader, check)
    trainable = {"adapters": checked.adapters, "check": nnx.split(check, graph=False)[1]}
    policy = Policy.from_config({"branches": [{"do": "reject", "below": 0.0}]})
    return Vetting(checked, trainable, checked.frozen_parts, policy)


@pytest.fixture(scope="module")
def clip():
    clip = load_clip("toy://clip")
    return clip, vetting_of(clip.model, clip.normalization, 128)


def test_an_attack_knows_the_very_cut_that_rejects(clip):
    _, vetting = clip
    some = rows(6)
    levels = np.stack([load_levels(clip[0], row) for row in some])
    texts = [row.text for row in some]
    vetting, scores = cut_at(vetting, levels, texts)
    arrays = vetting.read(texts) | {
        "held": np.array([True] * 5 + [False]),
        "toward": np.array([False, True] * 3),
    }

    def inner(params, held, x, key):
        ones = jnp.ones(len(x))
        return Outcome(2 * ones, 3 * ones)

    x = jnp.asarray(levels, jnp.float32) / 255
    outcome = jax.jit(vetted(inner, vetting))(((), vetting.params), arrays, x, KEY)
    cut = vetting.policy.branches[0].below
    np.testing.assert_allclose(outcome.detector[:5], cut - scores[:5], atol=1e-5)
    assert outcome.detector[5] == -1
    np.testing.assert_array_equal(outcome.loss, [2, -2] * 3)
    np.testing.assert_array_equal(outcome.margin, [3, -3] * 3)
    rejected = vetting.rejects(levels, texts)
    np.testing.assert_array_equal(np.asarray(outcome.rejected)[:5], rejected[:5])
    assert rejected.sum() == 3


def load_levels(clip, record):
    mean, std = clip.normalization
    return np.round(255 * (clip.picture(decode(record.image, "")) * std + mean)).astype(np.uint8)


def test_a_pictures_nearest_caption_is_what_it_is_held_against(clip, tmp_path):
    model, vetting = clip
    with LeftOut(tmp_path / "bad.jsonl") as left_out:
        inner = Retrieval(model, Benchmark("captions", rows(6)), 6, left_out, vetting)
    nearest = [inner.shown(vector) for vector in inner.respond(inner.levels, np.arange(6))]
    vetting, _ = cut_at(vetting, inner.levels, nearest)
    task = VettedRows(inner, vetting)
    clean = task.respond(task.levels, np.arange(6))
    rejected = vetting.rejects(task.levels, nearest)
    assert [each.rejected for each in clean] == rejected.tolist()
    plain = inner.figures([each.response for each in clean])
    ruled = task.figures(clean)
    assert ruled["rejected"].value == rejected.mean()
    lost = plain["image_to_text.r1"].value - ruled["image_to_text.r1"].value
    assert lost == pytest.approx(rejected.mean()), "all were right, and what is rejected is lost"


def test_words_that_are_held_add_a_donors_to_the_aims(tmp_path):
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    vetting = vetting_of(guard.model, guard.encoder.normalization, 128)
    benchmark = Benchmark("captions", rows(2))
    with LeftOut(tmp_path / "bad.jsonl") as left_out:
        options = "describe the picture.", 40, 2, left_out
        plain, held = (Captions(guard, benchmark, *options, v) for v in (None, vetting))
    clean = plain.respond(plain.levels, np.arange(2))
    assert [len(goals) for goals in plain.aims(clean, 2)] == [2, 2]
    for row, (first, donor) in enumerate(held.aims(clean, 2)):
        assert (first.tokens, first.toward, first.held) == (clean[row].tokens, False, None)
        assert (donor.tokens, donor.toward, donor.held) == (
            *(clean[1 - row].tokens, True, clean[1 - row].text),
        )
