"""What a CLIP folder may be, and what its encoder makes of texts and pictures."""

import json
import os
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, CLIPTextModel

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.clip import BPE, load_clip, load_text_tower, save_text_tower
from crossguard_jax.hf.load import load_model, resolve_folder
from tests.hf.clip_sources import (
    SIDE,
    TEXTS,
    TOLERANCE,
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


def test_long_pictures_are_cropped_and_those_that_would_take_gigabytes_are_refused(sources):
    for folder in sources:
        encoder = load_clip(folder)
        pixels = encoder.pictures([Image.new("L", (2, 3_000)), Image.new("L", (2, 2))])
        assert pixels.shape == (2, 3, SIDE, SIDE)
        np.testing.assert_allclose(pixels[0], pixels[1], atol=1e-6)
        assert encoder.pictures([]).shape == (0, 3, SIDE, SIDE)
        with pytest.raises(UserError, match="1 x 200,000 pixels are too long to be cropped"):
            encoder.picture(Image.new("RGB", (1, 200_000)))


# The text tower alone


def states_of(tower):
    batch = tower.texts(TEXTS)
    call = jax.jit(type(tower.model).__call__)
    return np.asarray(call(tower.model, batch["input_ids"], batch["attention_mask"]))


def states_in_transformers(folder):
    """The same of a folder that transformers alone reads."""
    model = CLIPTextModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = model.config.max_position_embeddings
    rows = tokenizer(TEXTS, truncation=True, max_length=longest)["input_ids"]
    with torch.no_grad():  # one text at a time, so that nothing is padded
        return np.concatenate([model(torch.tensor([ids])).pooler_output for ids in rows])


@pytest.fixture(scope="module")
def towers(sources, tmp_path_factory):
    """Each source's text tower as it was loaded, and the folder it was saved to."""
    root = tmp_path_factory.mktemp("towers")
    pairs = []
    for i, path in enumerate([*sources, "toy://clip"]):
        tower = load_text_tower(path)
        save_text_tower(root / str(i), tower)
        pairs.append((tower, root / str(i)))
    return pairs


def test_a_saved_text_tower_reads_as_the_whole_model_did_here_and_in_transformers(towers):
    for tower, folder in towers:
        again = load_text_tower(folder)
        assert again.model.config == tower.model.config and again.context == tower.context
        for name, ids in tower.texts(TEXTS).items():
            np.testing.assert_array_equal(again.texts(TEXTS)[name], ids)
        np.testing.assert_array_equal(states_of(again), states_of(tower))
        agree(states_in_transformers(folder), states_of(tower), TOLERANCE)


def test_a_text_tower_is_saved_in_the_dtype_of_its_source(sources, towers, tmp_path):
    dtypes = [
        {str(v.dtype) for v in load_file(f / "model.safetensors").values()} for _, f in towers
    ]
    assert dtypes == [{"float32"}, {"float32"}, {"float32"}, {"bfloat16"}]
    half = Path(shutil.copytree(sources[0], tmp_path / "half"))
    tensors = load_file(half / "model.safetensors")
    save_file({k: v.astype("float16") for k, v in tensors.items()}, half / "model.safetensors")
    save_text_tower(tmp_path / "tower", load_text_tower(half))
    weights = load_file(tmp_path / "tower" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"float16"}
    assert json.loads((tmp_path / "tower" / "config.json").read_text())["dtype"] == "float16"


def test_a_text_tower_holds_no_picture_tower_and_no_path(sources, towers):
    for (tower, folder), source in zip(
        towers, [*sources, resolve_folder("toy://clip")], strict=True
    ):
        parameters = sum(x.size for x in jax.tree.leaves(tower.model))
        weights = load_file(folder / "model.safetensors")
        assert sum(value.size for value in weights.values()) == parameters
        for file in folder.iterdir():
            assert str(source).encode() not in file.read_bytes()
            assert os.fsencode(folder) not in file.read_bytes()


def test_a_text_tower_survives_that_it_moves_and_its_source_is_gone(copies, tmp_path):
    source = copies[0]
    save_text_tower(tmp_path / "tower", load_text_tower(source))
    expected = states_of(load_text_tower(source))
    shutil.rmtree(source)
    (tmp_path / "tower").rename(tmp_path / "moved")
    tower = load_text_tower(tmp_path / "moved")
    np.testing.assert_array_equal(states_of(tower), expected)
    save_text_tower(tmp_path / "moved", tower)  # over itself
    np.testing.assert_array_equal(states_of(load_text_tower(tmp_path / "moved")), expected)
    with pytest.raises(UserError, match="a ClipText, not a CLIP"):
        load_clip(tmp_path / "moved")
    shutil.copy(resolve_folder("toy://rewriter") / "tokenizer.json", tmp_path / "moved")
    with pytest.raises(UserError, match="they are not of one model"):
        load_text_tower(tmp_path / "moved")
