"""A published picture tower in a LLaVA: its features are the library's, all else as it was."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    CLIPModel,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.export import save_model
from crossguard_jax.hf.load import load_model, make_model
from crossguard_jax.hf.towers import tower_hash, with_tower
from crossguard_jax.nn import llama, llava
from tests.hf.clip_sources import FIXTURES, agree, draw_model, vectors_of_pictures, write_open_clip
from tests.hf.hub_models import randomized

TOLERANCE = 1e-4
LAYER = -2


@dataclass
class Published:
    """A CLIP as its library has it, and the folder of a LLaVA with another tower of that shape."""

    clip: CLIPModel
    llava: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    rng = random.Random(6)
    clip = draw_model(rng).eval()
    text = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    vision = clip.config.vision_config
    assert vision.num_hidden_layers > 1, "the features would be of no layer"
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=60)
    folder = tmp_path_factory.mktemp("llava")
    randomized(LlavaForConditionalGeneration(config), rng).save_pretrained(folder)
    return Published(clip, folder)


def write_whole(clip, folder):
    clip.save_pretrained(folder)


def write_tower(clip, folder):
    """As transformers saves a picture tower alone."""
    tower = CLIPVisionModel(clip.config.vision_config)
    state = {k: v for k, v in clip.state_dict().items() if k.startswith("vision_model.")}
    own = tower.state_dict()
    short = {k.removeprefix("vision_model."): v for k, v in state.items()}
    tower.load_state_dict(state if set(own) == set(state) else short)
    tower.save_pretrained(folder)


def write_bare(clip, folder):
    """open_clip's state dict of the picture tower alone, without settings: as FARE's is published,
    by safetensors."""
    write_open_clip(clip, folder)
    tensors = load_file(folder / "open_clip_model.safetensors")
    inside = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    for file in folder.iterdir():
        file.unlink()
    save_file(inside, folder / "fare_eps_4.safetensors")


LAYOUTS = {
    "clip": write_whole,
    "tower": write_tower,
    "open_clip": write_open_clip,
    "state_dict": write_bare,
}


@pytest.fixture(params=LAYOUTS)
def tower(request, published, tmp_path):
    LAYOUTS[request.param](published.clip, tmp_path)
    return tmp_path


def features(model, pixels):
    return np.asarray(jax.jit(type(model).see)(model, pixels))


def test_features_are_the_librarys_and_the_rest_is_as_it_was(published, tower, tmp_path_factory):
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 3, 24, 24)).astype(np.float32)
    with torch.no_grad():
        states = published.clip.vision_model(torch.tensor(pixels), output_hidden_states=True)
    expected = states.hidden_states[LAYER]
    before = load_model(published.llava)
    assert np.abs(features(before, pixels) - expected.numpy()).max() > 0.1
    after = with_tower(load_model(published.llava), tower)
    agree(features(after, pixels), expected, TOLERANCE)
    for part in ("multi_modal_projector", "language_model"):
        assert digest(getattr(after, part)) == digest(getattr(before, part)), part
    # What is exported is a LLaVA of transformers' with that tower.
    folder = tmp_path_factory.mktemp("exported")
    save_model(after, folder, published.llava)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        exported = theirs.model.vision_tower(torch.tensor(pixels), output_hidden_states=True)
    agree(exported.hidden_states[LAYER].numpy(), expected, TOLERANCE)


@pytest.mark.parametrize("folder", sorted(FIXTURES.iterdir()), ids=lambda folder: folder.name)
def test_a_tower_that_open_clip_wrote_gives_open_clips_own_vectors(folder):
    expected, encoder = load_file(folder / "expected.st"), load_clip(folder)
    config = llava.LlavaConfig(encoder.model.config.vision, llama.LlamaConfig(32, 8, 8, 1, 2, 2, 4))
    encoder.model.vision_model = with_tower(make_model("llava", config), folder).vision_tower
    vectors = vectors_of_pictures(encoder, expected["pixels"])
    agree(vectors, expected["picture_vectors"], TOLERANCE)


def test_a_llavas_own_tower_may_be_taken_too(published):
    model = with_tower(load_model(published.llava), published.llava)
    assert digest(model) == digest(load_model(published.llava))


@pytest.mark.parametrize(
    ("field", "value"),
    [("patch_size", 3), ("num_hidden_layers", 4), ("hidden_act", "quick_gelu"), ("hidden_size", 8)],
)
def test_a_tower_of_another_shape_or_arithmetic_is_refused_by_name(
    field, value, published, tmp_path
):
    published.clip.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{field} {value!r}, and the model's own"):
        with_tower(load_model(published.llava), tmp_path)


def test_a_state_dict_of_another_shape_or_none_is_refused(published, tmp_path):
    write_bare(published.clip, tmp_path)
    file = tmp_path / "fare_eps_4.safetensors"
    tensors = load_file(file)
    before = tower_hash(tmp_path)
    save_file(tensors | {"ln_pre.weight": np.zeros(3, np.float32)}, file)
    assert tower_hash(tmp_path) != before
    with pytest.raises(UserError, match=r"pre_layrnorm.weight: shape \[3\], the config says"):
        with_tower(load_model(published.llava), tmp_path)
    del tensors["ln_post.bias"]
    save_file(tensors, file)
    with pytest.raises(UserError, match="post_layernorm.bias: missing"):
        with_tower(load_model(published.llava), tmp_path)
    shutil.move(file, tmp_path / "fare_eps_4.pt")
    with pytest.raises(UserError, match="no safetensors; a pickle of torch is not opened"):
        with_tower(load_model(published.llava), tmp_path)
