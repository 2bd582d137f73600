"""LLaVA: whose picture goes where, what is not computed, and that rows are strangers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.nn import verdict
from crossguard_jax.nn.clip import ClipVision
from tests.small_models import LABELS, batch, filled, llava, llava_config, on_device

P = llava_config().tokens_per_image


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.fixture(scope="module")
def rows(model):
    return on_device(batch(model.config))


@jax.jit
def logits(model, ids, pixels, mask=None):
    return model(ids, pixels, mask)


@jax.jit
def scores(model, rows):
    return verdict.p_positive(verdict.label_logits(model, rows, jnp.array(LABELS)))


def test_picture_tokens_are_replaced_in_order_wherever_they_stand(model, rows):
    ids = np.array(rows["input_ids"])
    # Row 0 has its picture's tokens scattered among the text; order is what counts.
    places = [0, 2, 3, 4, 5, 7, 8, 10, 12]
    ids[0] = np.where(np.isin(np.arange(ids.shape[1]), places), 3, 17)
    x = np.asarray(jax.jit(type(model).embed)(model, jnp.asarray(ids), rows["pixel_values"]))
    features = np.asarray(jax.jit(type(model).image_features)(model, rows["pixel_values"]))
    table = np.asarray(model.language_model.embed_tokens.embedding[...])
    for i, row in enumerate(ids):
        np.testing.assert_allclose(x[i, row == 3], features[i], atol=1e-5)
        assert np.array_equal(x[i, row != 3], table[row[row != 3]])


def test_a_row_without_picture_tokens_ignores_its_slot(model, rows):
    ids = rows["input_ids"].at[1].set(jnp.arange(4, 4 + rows["input_ids"].shape[1]))
    pixels = rows["pixel_values"]
    changed = pixels.at[1].set(7.0)
    both = [logits(model, ids, p) for p in (pixels, changed)]
    assert np.array_equal(*both)
    alone = jax.jit(lambda m, i: m(i, None))(model, ids[1:2])
    np.testing.assert_allclose(both[0][1:2], alone, atol=1e-5)


def test_no_row_sees_another_rows_picture(model, rows):
    ids, pixels = rows["input_ids"], rows["pixel_values"]
    both = [logits(model, ids, p) for p in (pixels, pixels.at[2].multiply(-1.0))]
    changed = [not np.array_equal(a, b) for a, b in zip(*both, strict=True)]
    assert changed == [False, False, True, False]


def test_an_image_token_outside_the_vocabulary_is_fine(model, rows):
    config = replace(model.config, image_token_id=10_000)
    other = filled(jax.eval_shape(lambda: type(model)(config, jax.random.key(0))), 0)
    ids = jnp.where(rows["input_ids"] == 3, 10_000, rows["input_ids"])
    wanted = logits(model, rows["input_ids"], rows["pixel_values"])
    assert np.array_equal(logits(other, ids, rows["pixel_values"]), wanted)


@pytest.mark.parametrize("strategy, n_tokens", [("default", P), ("full", P + 1)])
def test_the_class_token_goes_or_stays_by_strategy(strategy, n_tokens):
    model = llava(vision_feature_select_strategy=strategy)
    assert model.config.tokens_per_image == n_tokens
    pixels = jnp.ones((2, 3, 12, 12))
    features = jax.jit(type(model).image_features)(model, pixels)
    assert features.shape == (2, n_tokens, model.config.text.hidden_size)


def spoil(model, first):
    """The model with every picture layer from ``first`` on made of NaN."""
    copy = jax.tree.map(lambda a: a, model)
    layers = model.vision_tower.layers
    copy.vision_tower.layers = jax.tree.map(lambda a: a.at[first:].set(jnp.nan), layers)
    return copy


@pytest.mark.parametrize("layer, runs", [(-2, 2), (-1, 3), (1, 1), (0, 0)])
def test_picture_layers_behind_the_feature_layer_are_not_run(rows, layer, runs):
    model = llava(vision_feature_layer=(layer,))
    features = jax.jit(type(model).image_features)
    wanted = features(model, rows["pixel_values"])
    assert np.array_equal(features(spoil(model, runs), rows["pixel_values"]), wanted)
    if runs:
        assert np.isnan(features(spoil(model, runs - 1), rows["pixel_values"])).any()


def test_several_feature_layers_are_joined_along_the_width(rows):
    config = llava_config().vision
    tower = filled(jax.eval_shape(lambda: ClipVision(config, jax.random.key(0))), 0)
    get = jax.jit(ClipVision.hidden_states, static_argnums=2)
    together = get(tower, rows["pixel_values"], (-2, 1, 0, -1))
    for index, state in zip((-2, 1, 0, -1), together, strict=True):
        (alone,) = get(tower, rows["pixel_values"], (index,))
        np.testing.assert_allclose(state, alone, atol=1e-5)
    model = llava(vision_feature_layer=(-2, 1))
    assert model.multi_modal_projector.linear_1.kernel.shape[0] == 2 * config.hidden_size


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_position_alone_gives_the_full_models_logits(model, rows, side):
    ids, pixels = rows["input_ids"], rows["pixel_values"]
    n = ids.shape[1]
    hidden = slice(0, 4) if side == "left" else slice(n - 4, n)
    mask = jnp.ones(ids.shape, bool).at[1, hidden].set(False)
    full = np.asarray(logits(model, ids, pixels, mask))
    ends = n - 1 - np.asarray(mask)[:, ::-1].argmax(1)
    wanted = full[np.arange(len(ids)), ends]
    last = jax.jit(type(model).last_logits)
    np.testing.assert_allclose(last(model, ids, pixels, mask), wanted, atol=1e-5)
    columns = jnp.array([9, 2, 5])
    some = last(model, ids, pixels, mask, columns)
    np.testing.assert_allclose(some, wanted[:, [9, 2, 5]], atol=1e-5)


def test_any_position_can_be_asked_for_alone_and_sees_nothing_behind_it(model):
    text = model.language_model
    x = jax.random.normal(jax.random.key(2), (3, 9, model.config.text.hidden_size))
    mask, places = jnp.ones((3, 9), bool).at[2, :2].set(False), jnp.array([4, 0, 7])
    hidden = jax.jit(type(text).hidden)
    for seen in (None, mask):
        full = hidden(text, x, seen)
        alone = hidden(text, x, seen, 1.0, places)
        np.testing.assert_allclose(alone[:, 0], full[jnp.arange(3), places], atol=1e-5)


def test_a_tied_head_uses_the_embedding_in_full_and_in_columns(rows):
    text = replace(llava_config().text, tie_word_embeddings=True)
    model = llava(text=text)
    assert model.language_model.lm_head is None
    mask = rows["attention_mask"] == 1
    full = logits(model, rows["input_ids"], rows["pixel_values"], mask)
    last = jax.jit(type(model).last_logits)(
        model, rows["input_ids"], rows["pixel_values"], mask, jnp.array(LABELS)
    )
    ends = np.asarray(mask.sum(1)) - 1
    wanted = np.asarray(full)[np.arange(len(ends)), ends][:, list(LABELS)]
    np.testing.assert_allclose(last, wanted, rtol=1e-5, atol=1e-4)


def test_what_stands_in_the_padding_does_not_matter(model, rows):
    padded = rows["attention_mask"] == 0
    other = rows | {"input_ids": jnp.where(padded, 33, rows["input_ids"])}
    assert not np.array_equal(rows["input_ids"], other["input_ids"])
    assert np.array_equal(scores(model, rows), scores(model, other))


def test_a_verdict_does_not_depend_on_its_neighbours(model):
    many = batch(model.config, n=16, seed=4)
    together = scores(model, on_device(many))
    assert np.std(together) > 0.05
    alone = [scores(model, on_device({k: v[i : i + 1] for k, v in many.items()})) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), together[:3], atol=1e-5)
    longer = batch(model.config, n=2, n_text=40, seed=5)
    n = many["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):
        longer[name][0] = np.pad(many[name][0], (0, longer[name].shape[1] - n))
    longer["pixel_values"][0] = many["pixel_values"][0]
    np.testing.assert_allclose(scores(model, on_device(longer))[0], together[0], atol=1e-5)


def test_cross_entropy_and_probability_are_softmax_over_the_two_labels():
    two = jax.random.normal(jax.random.key(0), (6, 2)) * 30
    labels = jnp.array([0, 1, 0, 1, 1, 0])
    log_p = jax.nn.log_softmax(two)
    wanted = -log_p[jnp.arange(6), labels]
    np.testing.assert_allclose(verdict.cross_entropy(two, labels), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(verdict.p_positive(two), jnp.exp(log_p[:, 1]), rtol=1e-5, atol=1e-6)
