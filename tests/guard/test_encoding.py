"""Grey levels and first tokens: what attacks and closed lists of answers need of an encoder."""

import json

import numpy as np
import pytest
from PIL import Image

from crossguard_jax import Guard
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.pictures import Processor


@pytest.fixture(scope="module")
def encoder(llava_folder):
    return Guard.from_pretrained(llava_folder, prompt="short").encoder


def picture(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(24, 24), (30, 26), (19, 50)])
def test_levels_are_what_is_normalized(encoder, size):
    drawn = picture(sum(size), *size)
    levels = encoder.levels(drawn)
    grey = 255 * levels.astype(np.float64)
    assert levels.dtype == np.float32 and levels.min() >= 0 and levels.max() <= 1
    np.testing.assert_allclose(grey, grey.round(), atol=1e-4)
    mean, std = encoder.normalization
    assert np.ptp(mean) > 0.01 and np.ptp(std) > 0.001, "channels alike: order would not show"
    np.testing.assert_allclose((levels - mean) / std, encoder.picture(drawn), atol=1e-5)
    if size == (24, 24):
        np.testing.assert_allclose(grey, np.asarray(drawn).transpose(2, 0, 1), atol=1e-4)


def test_a_processor_that_does_not_normalize_divides_alone(
    encoder, llava_folder, tmp_path, monkeypatch
):
    drawn = picture(1, 24, 24)
    normal = encoder.levels(drawn)
    file = "preprocessor_config.json"
    settings = json.loads((llava_folder / file).read_text()) | {"do_normalize": False}
    (tmp_path / file).write_text(json.dumps(settings))
    monkeypatch.setattr(encoder, "processor", Processor(tmp_path, 24))
    mean, std = encoder.normalization
    assert not mean.any() and (std == 1).all()
    np.testing.assert_array_equal(encoder.levels(drawn), normal)
    np.testing.assert_allclose(encoder.picture(drawn), normal, atol=1e-6)


def test_levels_of_what_does_not_decode_are_refused_by_name(encoder):
    with pytest.raises(UserError, match="row 7"):
        encoder.levels(b"no picture", "row 7")


def test_first_tokens_are_where_the_prompts_continuations_differ(encoder):
    words = ("safe", "unsafe", "true", "harm")
    ids = encoder.first_tokens(words)
    assert ids[:2] == encoder.label_ids and len(set(ids)) == 4
    for word, first in zip(words, ids, strict=True):
        whole = encoder.tokenizer(f"USER: is it? ASSISTANT: {word}")["input_ids"]
        start = encoder.tokenizer("USER: is it? ASSISTANT:")["input_ids"]
        assert whole[: len(start)] == start and whole[len(start)] == first
    with pytest.raises(UserError, match="'safe' and 'safe' begin with one token"):
        encoder.first_tokens(["safe", "true", "safe"])
