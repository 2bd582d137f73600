"""h_v and h_t, against the towers themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.cmai.features import picture_features, text_features
from crossguard_jax.core.errors import UserError
from crossguard_jax.nn.clip import ClipText, TextConfig
from tests import small_models
from tests.draws import few

MODEL = small_models.llava()
ROWS = small_models.on_device(small_models.batch(MODEL.config, n=4))


def clip_text():
    config = TextConfig(32, 64, 2, 4, vocab_size=50, max_position_embeddings=12, eos_token_id=49)
    abstract = jax.eval_shape(lambda: ClipText(config, jax.random.key(0)))
    return small_models.filled(abstract, 1)


def texts(n=4, length=9, seed=0):
    """Right-padded texts, each ending in the end-of-text token."""
    rng = np.random.default_rng(seed)
    ids, ends = rng.integers(4, 48, (n, length)), rng.integers(3, length, n)
    mask = np.arange(length) <= ends[:, None]
    ids[np.arange(n), ends] = 49
    return jnp.asarray(np.where(mask, ids, 0), jnp.int32), jnp.asarray(mask)


def test_h_v_is_the_class_token_beside_the_mean_patch_of_llavas_own_layer():
    found = picture_features(MODEL.vision_tower, ROWS["pixel_values"], (-2, 1))
    layers = MODEL.vision_tower.hidden_states(ROWS["pixel_values"], (-2, 1))
    states = np.concatenate([np.asarray(x) for x in layers], axis=-1)
    np.testing.assert_allclose(found[:, :64], states[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 64:], states[:, 1:].mean(axis=1), rtol=1e-4, atol=1e-5)
    assert found.dtype == jnp.float32


def test_h_v_differentiates_with_respect_to_every_pixel():
    grad = jax.grad(lambda x: picture_features(MODEL.vision_tower, x).var(axis=0).sum())(
        ROWS["pixel_values"]
    )
    assert (np.asarray(grad) != 0).mean() > 0.99


def test_h_v_follows_the_adapter_by_example():
    adapted = small_models.adapted(MODEL)
    scale = jnp.array([0.0, 1.0, 0.5, 0.0])
    blended = picture_features(adapted.vision_tower, ROWS["pixel_values"], lora_scale=scale)
    plain = picture_features(MODEL.vision_tower, ROWS["pixel_values"])
    same = np.isclose(blended, plain, atol=1e-5).all(axis=1)
    np.testing.assert_array_equal(same, scale == 0)


@pytest.mark.parametrize("source", few(["clip", "language_model"], 1))
def test_h_t_does_not_depend_on_padding_or_on_other_texts(source):
    model = clip_text() if source == "clip" else MODEL.language_model
    ids, mask = texts()
    found = text_features(source, model, ids, mask)
    for i in range(4):
        n = int(mask[i].sum())
        alone = text_features(source, model, ids[i : i + 1, :n], mask[i : i + 1, :n])
        np.testing.assert_allclose(alone[0], found[i], rtol=1e-4, atol=1e-5)


def test_h_t_of_clip_is_its_text_towers():
    model, (ids, mask) = clip_text(), texts()
    np.testing.assert_allclose(text_features("clip", model, ids, mask), model(ids, mask))


def test_h_t_of_the_language_model_is_its_state_at_the_last_token():
    model, (ids, mask) = MODEL.language_model, texts()
    every = np.asarray(model.hidden(model.embed_tokens(ids), mask))
    last = np.asarray(mask).sum(axis=1) - 1
    found = text_features("language_model", model, ids, mask)
    np.testing.assert_allclose(found, every[np.arange(4), last], rtol=1e-4, atol=1e-5)


def test_a_source_that_does_not_fit_the_model_is_named():
    ids, mask = texts()
    with pytest.raises(UserError, match="'bert' is none of clip, language_model"):
        text_features("bert", clip_text(), ids, mask)
    with pytest.raises(UserError, match="'language_model' does not read a ClipText"):
        text_features("language_model", clip_text(), ids, mask)
