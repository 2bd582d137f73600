"""The task: its answers are the guard's own, and what has no picture has no say in the check."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from crossguard_jax.cmai.consistency import pair_loss
from crossguard_jax.cmai.features import picture_features
from crossguard_jax.cmai.recipe import check_loss
from crossguard_jax.cmai.task import Task
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.toy.world.sources import records
from tests.cmai.small_systems import LENGTH, RECORDS, base, on_device, system_of, with_adapter

KEY = jax.random.key(0)
SEEN = np.array([record.image is not None for record in RECORDS])


@pytest.fixture(scope="module")
def plain():
    return base()


@pytest.fixture(scope="module")
def guard(plain):
    return with_adapter(plain)


@pytest.fixture(scope="module")
def system(guard):
    return system_of(guard)


@pytest.fixture(scope="module")
def batch(system):
    made = on_device(system.task.batch(RECORDS, LENGTH))
    return jax.jit(system.task.read)(system.trainable, system.frozen, made)


@pytest.fixture(scope="module")
def ask(system):
    """``ask(batch, scale [B], adapters, shift) -> (logits, answers)``, compiled once."""
    task, frozen = system.task, system.frozen

    @jax.jit
    def run(trainable, batch, shift, scale):
        inputs = (batch["pixels"], shift)
        logits, _ = task.logits(trainable, frozen, batch, inputs, scale)
        return logits, task.answers(trainable, frozen, batch, inputs, scale)

    def ask(batch, scale=1.0, adapters=None, shift=None):
        ids = batch["input_ids"]
        trainable = system.trainable | {"adapters": adapters or task.adapters}
        shift = jnp.zeros((*ids.shape, task.width)) if shift is None else jnp.asarray(shift)
        return run(trainable, batch, shift, jnp.broadcast_to(jnp.float32(scale), len(ids)))

    return ask


@pytest.fixture(scope="module")
def scores(plain, guard):
    """p_unsafe without the adapter and with it, as guards give it."""
    images, texts = [r.image for r in RECORDS], [r.text for r in RECORDS]
    return [np.array([v.p_unsafe for v in g.score(images, texts)]) for g in (plain, guard)]


def p_unsafe(logits):
    return np.asarray(jax.nn.softmax(logits))[:, 1]


def test_the_answers_are_the_guards_with_and_without_pictures(batch, ask, scores, guard):
    logits, answers = ask(batch)
    np.testing.assert_allclose(p_unsafe(logits), scores[1], atol=1e-5)
    label = np.array([r.label == "unsafe" for r in RECORDS])
    right = np.where(label, scores[1], 1 - scores[1])
    np.testing.assert_allclose(answers.loss, -np.log(right), atol=1e-4)
    verdict = scores[1] >= 0.5
    np.testing.assert_array_equal(np.asarray(answers.margin) > 0, verdict != label)
    assert 0 < (verdict != label).sum() < len(label), "all alike: signs would show nothing"
    # In a batch without any picture as well.
    alone = {name: value[~SEEN] for name, value in batch.items()}
    np.testing.assert_allclose(p_unsafe(ask(alone)[0]), scores[1][~SEEN], atol=1e-5)


def test_scale_goes_from_the_base_to_the_adapter_row_by_row(batch, ask, scores, system):
    assert np.abs(scores[0] - scores[1]).max() > 0.01
    np.testing.assert_allclose(p_unsafe(ask(batch, 0.0)[0]), scores[0], atol=1e-5)
    # An update enters linearly: scale s is the adapter with its second factor times s.
    scale = np.array([0.0, 1.0, 0.3, 0.7] * 2, np.float32)
    mixed = np.asarray(ask(batch, scale)[0])
    for s in (0.0, 0.3, 0.7, 1.0):
        weaker = jax.tree.map_with_path(
            lambda path, x, s=s: x * s if "'b'" in jax.tree_util.keystr(path) else x,
            system.task.adapters,
        )
        expected = np.asarray(ask(batch, 1.0, weaker)[0])
        np.testing.assert_allclose(mixed[scale == s], expected[scale == s], atol=1e-4)
    assert np.abs(mixed - np.asarray(ask(batch)[0]))[scale == 0.3].max() > 1e-3


def test_pixels_are_the_pictures_own_grey_levels(batch):
    for record, pixels in zip(RECORDS, np.asarray(batch["pixels"]), strict=True):
        if record.image is None:
            assert not pixels.any()
            continue
        drawn = np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"))
        np.testing.assert_allclose(pixels, drawn.transpose(2, 0, 1) / 255, atol=1e-7)


def test_k_answers_are_a_softmax_over_the_models_own_next_tokens(guard):
    labels = ("yes", "red", "no", "two", "green")
    rows = [
        replace(r, label=label)
        for r, label in zip(records("vqa_closed", "test", 5), labels[::-1], strict=True)
    ]
    task = Task(guard, labels)
    batch = on_device(task.batch(rows, LENGTH))
    inputs = (batch["pixels"], jnp.zeros((1, 1, task.width)))
    trainable = {"adapters": task.adapters}
    answers = jax.jit(task.answers)(trainable, task.frozen_parts, batch, inputs)

    encoded = guard.encode([r.image for r in rows], [r.text for r in rows])
    last = encoded["attention_mask"].sum(axis=1) - 1
    logits = np.asarray(guard.logits(**encoded))[np.arange(5), last]
    tokenizer = guard.encoder.tokenizer
    prompt = "USER: what is it? ASSISTANT:"
    said = [tokenizer(f"{prompt} {label}")["input_ids"] for label in labels]
    ids = [row[len(tokenizer(prompt)["input_ids"])] for row in said]
    assert [tokenizer.decode([i]).strip() for i in ids] == list(labels)
    p = np.asarray(jax.nn.softmax(logits[:, ids]))[np.arange(5), [4, 3, 2, 1, 0]]
    np.testing.assert_allclose(np.exp(-answers.loss), p, atol=1e-5)
    wrong = logits[:, ids].argmax(axis=1) != [4, 3, 2, 1, 0]
    np.testing.assert_array_equal(np.asarray(answers.margin) > 0, wrong)
    # Without a check everything is consistent.
    np.testing.assert_array_equal(answers.s_c, np.ones(5))


def test_a_third_words_mass_is_lost_in_the_outer_loss_and_is_nothing_to_the_attack(guard):
    labels = ("yes", "red", "no")
    rows = [replace(r, label=label) for r, label in zip(RECORDS, labels, strict=False)]
    task = Task(guard, labels)
    batch = on_device(task.batch(rows, LENGTH))
    inputs, frozen = (batch["pixels"], jnp.zeros((1, 1, task.width))), task.frozen_parts
    ask = jax.jit(task.answers, static_argnames="vocabulary")
    encoded = guard.encode([r.image for r in rows], [r.text for r in rows])
    last = encoded["attention_mask"].sum(axis=1) - 1
    p = np.asarray(jax.nn.softmax(guard.logits(**encoded)[np.arange(3), last]))
    right = p[np.arange(3), task.label_ids]
    likely, third = int(p.sum(axis=0).argmax()), int(p.sum(axis=0).argmin())
    assert not (encoded["input_ids"] == third).any()

    def also_said(path, x):
        """A third word's logit, of a head that is the table of embeddings, made a likely one's."""
        if "embed_tokens" not in jax.tree_util.keystr(path):
            return x
        return x.at[third].set(x[likely])

    shifted = jax.tree.map_with_path(also_said, frozen)
    p_shifted = right / (1 + p[:, likely])
    assert p[:, likely].max() > 0.1
    losses = {}
    for vocabulary, parts in ((v, f) for v in (True, False) for f in (frozen, shifted)):
        answers = ask({"adapters": task.adapters}, parts, batch, inputs, vocabulary=vocabulary)
        losses.setdefault(vocabulary, []).append(answers)
    for answers, expected in zip(losses[True], (right, p_shifted), strict=True):
        np.testing.assert_allclose(answers.loss, -np.log(expected), atol=1e-4)
    before, after = losses[False]
    np.testing.assert_array_equal(after.loss, before.loss)
    # What is right is right among the answers in either case.
    for answers in losses[True]:
        np.testing.assert_allclose(answers.margin, before.margin, atol=1e-4)


def test_a_shift_moves_the_texts_tokens_and_no_others(batch, ask, guard):
    mask = np.asarray(batch["text_mask"])
    for record, ids, own in zip(RECORDS, np.asarray(batch["input_ids"]), mask, strict=True):
        assert guard.encoder.tokenizer.decode(ids[own]).split() == record.text.split()
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(*mask.shape, 128)).astype(np.float32)
    before = np.asarray(ask(batch)[0])
    elsewhere = ask(batch, shift=shift * ~mask[..., None])[0]
    np.testing.assert_array_equal(elsewhere, before)
    moved = ask(batch, shift=shift * mask[..., None])[0]
    assert (np.abs(moved - before).max(axis=1) > 1e-3).all()


def test_a_shift_between_two_words_is_the_other_word(batch, ask, guard):
    table = np.asarray(guard.model.language_model.embed_tokens.embedding[...])
    ids = np.array(batch["input_ids"])
    place = ids.shape[1] - 1 - np.asarray(batch["text_mask"])[:, ::-1].argmax(axis=1) - 6
    rows = np.arange(len(ids))
    old, new = ids[rows, place], ids[rows, place][::-1]
    shift = np.zeros((*ids.shape, table.shape[1]), np.float32)
    shift[rows, place] = table[new] - table[old]
    ids[rows, place] = new
    assert (new != old).sum() >= 4
    said = ask(batch | {"input_ids": jnp.asarray(ids)})[0]
    np.testing.assert_allclose(ask(batch, shift=shift)[0], said, atol=1e-4)


# The check


def test_s_c_is_the_checks_of_the_towers_own_features(batch, ask, system, guard):
    clip = load_clip("toy://clip")
    pixels = guard.encoder.pixels([r.image for r in RECORDS if r.image is not None])
    texts = clip.texts([r.text for r in RECORDS])
    layers = guard.model.config.vision_feature_layer
    h_v = jax.jit(lambda t, x: picture_features(t, x, layers))(guard.model.vision_tower, pixels)
    read = jax.jit(lambda model, ids, mask: model(ids, mask))
    h_t = read(clip.model.text_model, texts["input_ids"], texts["attention_mask"])
    expected = system.task.check(system.trainable)(h_v, h_t[SEEN])
    found = np.asarray(ask(batch)[1].s_c)
    np.testing.assert_allclose(found[SEEN], expected, atol=1e-4)
    assert np.ptp(found[SEEN]) > 1e-3
    np.testing.assert_array_equal(found[~SEEN], 1.0)


def test_pairs_are_rows_with_a_picture_and_unequal_texts(system):
    task = system.task
    pictured = [r for r in RECORDS if r.image is not None]
    rows = [*pictured[:3], RECORDS[1], replace(pictured[3], text=pictured[0].text)]
    batch = on_device(task.batch(rows, LENGTH))
    batch = batch | {"h_t": jnp.zeros((5, 1))}
    pairs = task.pairs(system.trainable, system.frozen, batch)
    np.testing.assert_array_equal(pairs["aligned"], [True, True, True, False, True])
    expected = [[bool(a.image and b.image and a.text != b.text) for b in rows] for a in rows]
    np.testing.assert_array_equal(pairs["negatives"], expected)
    assert expected[1] == [True, False, True, False, True]


def test_a_row_without_a_picture_teaches_the_check_nothing(system, batch):
    def loss(batch):
        pairs = system.task.pairs(system.trainable, system.frozen, batch)
        return pair_loss(system.task.check(system.trainable), pairs)[0]

    other = batch | {"h_t": jnp.where(SEEN[:, None], batch["h_t"], 9.0)}
    other["pixels"] = jnp.where(SEEN[:, None, None, None], batch["pixels"], 0.5)
    loss = jax.jit(loss)
    assert float(loss(batch)) == pytest.approx(float(loss(other)), rel=1e-6)
    seen = batch | {"h_t": jnp.where(SEEN[:, None], 9.0, batch["h_t"])}
    assert float(loss(batch)) != pytest.approx(float(loss(seen)), rel=1e-3)


def test_attacked_pictures_are_beside_their_own_when_asked(system, batch):
    parts = system.trainable, system.frozen
    attacked = jnp.clip(batch["pixels"] + 0.05, 0, 1)
    pairs = system.task.pairs(*parts, batch | {"attacked": attacked}, adversarial=True)
    alone = system.task.pairs(*parts, batch | {"pixels": attacked})
    np.testing.assert_allclose(pairs["attacked_v"], alone["h_v"], atol=1e-5)
    assert np.abs(pairs["h_v"] - alone["h_v"]).max() > 1e-3
    assert "attacked_v" not in alone


@pytest.mark.robustness
def test_pictures_that_were_seen_are_not_seen_again(system, batch):
    attacked = jnp.clip(batch["pixels"] + 0.05, 0, 1)
    parts, shift = (system.trainable, system.frozen), jnp.zeros((1, 1, system.task.width))
    known = {
        name: system.task.answers(*parts, batch, (pixels, shift)).h_v
        for name, pixels in (("h_v", batch["pixels"]), ("attacked_h_v", attacked))
    }
    wanted = system.task.pairs(*parts, batch | {"attacked": attacked}, adversarial=True)
    found = system.task.pairs(*parts, batch | known | {"pixels": None}, adversarial=True)
    for name in ("h_v", "attacked_v"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_the_checks_loss_moves_the_adapter_only_when_joint(system, batch, joint):
    loss = check_loss(system.task, joint, adversarial=True)
    grad = jax.jit(jax.grad(lambda *args: loss(*args)[0]))
    attacked = {"attacked": jnp.clip(batch["pixels"] + 0.05, 0, 1)}
    found = grad(system.trainable, system.frozen, batch | attacked, KEY)
    largest = {
        part: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[part]))
        for part in ("adapters", "check")
    }
    assert largest["check"] > 0
    assert (largest["adapters"] > 0) == joint


def test_the_language_model_reads_as_it_was_and_is_kept_once(system, guard, batch):
    other = system_of(guard, "language_model")
    task = other.task
    assert set(other.frozen) == {"model"} and set(system.frozen) == {"model", "reader"}
    made = on_device(task.batch(RECORDS, LENGTH))
    read = jax.jit(task.read)
    h_t = read(other.trainable, other.frozen, made)["h_t"]
    # The model's own states at the text's last token, without an adapter and without a prompt.
    ids = guard.encoder.tokenizer([r.text for r in RECORDS])["input_ids"]
    tower = guard.model.language_model
    for row in (0, 1):
        x = tower.embed_tokens(jnp.asarray(ids[row])[None])
        state = tower.hidden(x, jnp.ones((1, len(ids[row])), bool), 0.0)[0, -1]
        np.testing.assert_allclose(h_t[row], state, atol=1e-4)


# What a tower keeps to


def test_deviations_are_how_far_the_towers_states_are_from_the_bases(system, batch, guard):
    task = system.task
    aimed = jax.jit(task.add_clean_states)(system.trainable, system.frozen, batch)
    away = jax.jit(task.deviations)
    inputs = (batch["pixels"], jnp.zeros(()))
    found = away(system.trainable, system.frozen, aimed, inputs)
    states = [
        np.asarray(jax.jit(guard.model.see)((batch["pixels"] - 0.49) / 0.2, scale))
        for scale in (0.0, 1.0)
    ]
    expected = ((states[1] - states[0]) ** 2).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-3)
    assert expected.min() > 0
    still = away(system.trainable, system.frozen, aimed, inputs, 0.0)
    np.testing.assert_allclose(still.loss, 0.0, atol=1e-6)


# What is refused


def test_a_label_that_is_no_answer_is_named(system, guard):
    wrong = replace(RECORDS[0], label="perhaps")
    with pytest.raises(UserError, match=f"{wrong.id}: label 'perhaps' is none of safe, unsafe"):
        system.task.batch([wrong], LENGTH)
    with pytest.raises(UserError, match="begin with one token"):
        Task(guard, ("red", "green", "red"))


def test_a_guard_without_a_check_needs_no_reader(guard):
    assert isinstance(guard, Guard)
    task = Task(guard)
    assert task.labels == ("safe", "unsafe") and set(task.frozen_parts) == {"model"}
    made = task.batch(RECORDS[:2], LENGTH)
    assert task.read({}, {}, made) is made and "read_ids" not in made
