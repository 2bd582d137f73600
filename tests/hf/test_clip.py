"""What a CLIP folder may be, and what its encoder makes of texts and pictures."""

import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.clip import BPE, load_clip
from crossguard_jax.hf.load import load_model, resolve_folder
from tests.hf.clip_sources import (
    SIDE,
    TEXTS,
    VOCAB,
    agree,
    draw_model,
    three_sources,
    vectors_of_texts,
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return three_sources(draw_model(random.Random(5)), tmp_path_factory.mktemp("clip"))


@pytest.fixture
def copies(sources, tmp_path):
    """Copies of the three folders, to be broken."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in sources]


def test_a_folder_with_two_layouts_is_read_as_transformers(copies):
    theirs, torches, _ = copies
    for file in torches.glob("open_clip_*"):
        shutil.copy(file, theirs)
    alone = load_clip(torches)
    both = load_clip(theirs)
    assert both.source == "transformers" and load_model(theirs).config == both.model.config
    agree(vectors_of_texts(both, TEXTS), vectors_of_texts(alone, TEXTS))
    (theirs / "model.safetensors").unlink()
    assert load_clip(theirs).source == "open_clip"


def test_a_tree_is_found_by_its_path_or_alone_in_its_folder(copies):
    folder = copies[2]
    tree = folder / "vit-tiny.pkl"
    assert load_clip(tree).digest == load_clip(folder).digest
    shutil.copy(tree, folder / "other.pkl")
    with pytest.raises(UserError, match=r"other\.pkl, vit-tiny\.pkl: give the path of one"):
        load_clip(folder)
    assert load_clip(tree).source == "open_clip_jax"


def test_a_folder_that_is_no_clip_says_what_it_may_be(tmp_path):
    with pytest.raises(UserError, match=r"no CLIP; give a folder with config\.json"):
        load_clip(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_clip(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="a Bert, not a CLIP"):
        load_clip("toy://sentence")


def test_the_digest_follows_weights_settings_and_dtype(copies):
    changes = {
        0: ("preprocessor_config.json", b'"image_mean"', b'"image_mean" '),
        1: ("open_clip_config.json", b'"model_cfg"', b'"model_cfg" '),
    }
    for i, folder in enumerate(copies):
        before = load_clip(folder).digest
        assert before == load_clip(folder).digest != load_clip(folder, "bfloat16").digest
        if i in changes:
            name, old, new = changes[i]
            data = (folder / name).read_bytes()
            assert old in data
            (folder / name).write_bytes(data.replace(old, new, 1))
            assert load_clip(folder).digest != before
    assert len({load_clip(folder).digest for folder in copies}) == 3


def test_safetensors_under_the_name_of_a_pickle_are_read_and_a_pickle_is_not(copies):
    folder = copies[1]
    weights, other = (folder / f"open_clip_{n}" for n in ("model.safetensors", "pytorch_model.bin"))
    before = load_clip(folder)
    weights.rename(other)
    agree(vectors_of_texts(load_clip(folder), TEXTS), vectors_of_texts(before, TEXTS))
    for legacy in (False, True):
        torch.save({"a": torch.zeros(2)}, other, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"bin: a pickle of torch, which is not opened; downl"):
            load_clip(folder)
    other.unlink()
    with pytest.raises(UserError, match=r"no weights; download open_clip_model\.safetensors"):
        load_clip(folder)


def test_texts_beyond_the_context_keep_their_end_token(sources):
    for folder in sources:
        encoder = load_clip(folder)
        batch = encoder.texts(["the kettle " * 50, "a"])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ids.shape == (2, encoder.context)
        assert ids[0, 0] == VOCAB - 2 and ids[0, -1] == VOCAB - 1 and mask[0].all()
        assert mask[1].sum() == 3 and not ids[1, 3:].any()
        short = encoder.texts(["a"])
        assert short["input_ids"].shape == (1, 16)
        np.testing.assert_allclose(
            vectors_of_texts(encoder, ["a"]),
            vectors_of_texts(encoder, ["the kettle " * 50, "a"])[1:],
            atol=1e-6,
        )


def test_a_tokenizer_that_cannot_serve_is_refused(copies):
    folder = copies[1]
    (folder / BPE).rename(folder / "kept")
    with pytest.raises(UserError, match=r"no tokenizer; put CLIP's tokenizer\.json"):
        load_clip(folder)
    (folder / BPE).write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"16e6\.txt\.gz: unreadable"):
        load_clip(folder)
    (folder / BPE).unlink()
    for file in resolve_folder("toy://clip").glob("tokenizer*"):
        shutil.copy(file, folder)
    with pytest.raises(UserError, match="has the id 605, and the model's table has 531 rows"):
        load_clip(folder)


def test_a_tokenizer_without_the_models_end_token_is_refused(tmp_path):
    folder = Path(shutil.copytree(resolve_folder("toy://clip"), tmp_path / "clip"))
    assert load_clip(folder).texts(["a"])["input_ids"][0, 2] == 3
    shutil.copy(resolve_folder("toy://rewriter") / "tokenizer.json", folder)
    with pytest.raises(UserError, match="does not end a text with the model's end-of-text"):
        load_clip(folder)


def test_transformers_files_are_preferred_to_openais(sources, copies):
    """And both tokenizers say the same."""
    tokenizer = load_clip(sources[1]).tokenizer
    tokenizer.save_pretrained(copies[1])
    (copies[1] / BPE).write_bytes(b"not read")
    expected = load_clip(sources[1]).texts(TEXTS)["input_ids"]
    np.testing.assert_array_equal(load_clip(copies[1]).texts(TEXTS)["input_ids"], expected)


def test_very_long_pictures_take_no_more_than_square_ones(sources, monkeypatch):
    scaled, resize = [], Image.Image.resize

    def recorded(picture, size, *arguments, **settings):
        scaled.append(math.prod(size))
        return resize(picture, size, *arguments, **settings)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    for folder in sources:
        encoder = load_clip(folder)
        pixels = encoder.pictures([Image.new("L", (2, 30_000)), Image.new("L", (2, 2))])
        assert pixels.shape == (2, 3, SIDE, SIDE)
        np.testing.assert_allclose(pixels[0], pixels[1], atol=1e-6)
        assert encoder.pictures([]).shape == (0, 3, SIDE, SIDE)
    assert len(scaled) >= 6 and max(scaled) <= 16 * SIDE**2
