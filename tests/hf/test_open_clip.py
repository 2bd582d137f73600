"""One CLIP from three sources: transformers, open_clip (torch) and open_clip_jax (flax)."""

import json
import math
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import freeze
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoImageProcessor

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.clip import BPE, load_clip
from tests.hf import linen_clip
from tests.hf.clip_sources import (
    FIXTURES,
    HERE,
    SIDE,
    SIZES,
    TEXTS,
    VOCAB,
    agree,
    change,
    draw_model,
    three_sources,
    vectors_of_pictures,
    vectors_of_texts,
)

# --- open_clip's own results ---------------------------------------------------------------------


def check_against_open_clip(folder):
    expected = load_file(folder / "expected.st")
    texts = json.loads((folder / "texts.json").read_text())
    encoder = load_clip(folder)
    assert encoder.source == "open_clip"
    batch = encoder.texts(texts)
    length = batch["input_ids"].shape[1]
    np.testing.assert_array_equal(batch["input_ids"], expected["ids"][:, :length])
    assert not expected["ids"][:, length:].any()
    n = sum(name.startswith("picture_") for name in expected) - 1  # less picture_vectors
    pixels = encoder.pictures([Image.fromarray(expected[f"picture_{i}"]) for i in range(n)])
    agree(pixels, expected["pixels"])
    agree(vectors_of_pictures(encoder, pixels), expected["picture_vectors"])
    agree(vectors_of_texts(encoder, texts), expected["text_vectors"])
    np.testing.assert_allclose(encoder.model.logit_scale[...], expected["logit_scale"])


@pytest.mark.parametrize("folder", sorted(FIXTURES.iterdir()), ids=lambda folder: folder.name)
def test_open_clip_folders_equal_open_clip(folder):
    check_against_open_clip(folder)


OPEN_CLIP = os.environ.get("CROSSGUARD_OPEN_CLIP")


@pytest.mark.skipif(not OPEN_CLIP, reason="CROSSGUARD_OPEN_CLIP names no folder of open_clip_torch")
@pytest.mark.parametrize("seed", range(100, 108))
def test_random_open_clip_models_equal_open_clip(seed, tmp_path):
    command = [sys.executable, HERE / "open_clip_reference.py", str(seed), tmp_path / "m"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(OPEN_CLIP)}, check=True)
    check_against_open_clip(tmp_path / "m")


# --- one model in three layouts ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_three_sources_of_one_model_give_the_same_vectors(seed, tmp_path):
    rng = random.Random(seed)
    model = draw_model(rng)
    folders = three_sources(model, tmp_path)
    noise = np.random.default_rng(seed)
    shapes = [(y, x, 3) for x, y in SIZES]
    pictures = [Image.fromarray(noise.integers(0, 256, shape, np.uint8)) for shape in shapes]
    processor = AutoImageProcessor.from_pretrained(folders[0], backend="pil")
    encoders = [load_clip(folder) for folder in folders]
    assert [e.source for e in encoders] == [folder.name for folder in folders]
    batch = encoders[0].texts(TEXTS)
    with torch.no_grad():
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        pooled = model.vision_model(pixels).pooler_output
        theirs = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)
        ids, mask = (torch.tensor(batch[k]) for k in ("input_ids", "attention_mask"))
        pooled = model.text_model(ids, mask).pooler_output
        said = torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)
    for encoder in encoders:
        agree(vectors_of_pictures(encoder, encoder.pictures(pictures)), theirs)
        agree(vectors_of_texts(encoder, TEXTS), said)
        assert encoder.dimension == model.config.projection_dim
        assert encoder.model.logit_scale[...] == model.logit_scale.detach().numpy()


# --- open_clip_jax's layout, by flax's own layers ------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_open_clip_jax_trees_equal_flax(seed, tmp_path):
    rng = random.Random(seed)
    remat = seed % 2 == 1  # blocks that were made with it have other names
    widths = [heads * rng.choice([6, 8]) for heads in (2, 3)]
    patch, side = rng.choice([(6, 3), (8, 2)])
    towers = [
        {"depth": rng.choice([1, 3]), "heads": heads, "inner": 2 * width, "remat": remat}
        for heads, width in zip((2, 3), widths, strict=True)
    ]
    model = linen_clip.LinenClip(
        linen_clip.ImageModel(towers[0], widths[0], patch),
        linen_clip.TextModel(towers[1], widths[1], VOCAB),
        width=14,
        temperature=2.5 if remat else None,
    )
    noise = np.random.default_rng(seed)
    pixels = noise.normal(size=(3, patch * side, patch * side, 3)).astype(np.float32)
    ids = noise.integers(0, VOCAB - 2, (4, 16))
    for row, end in zip(ids, (3, 9, 15, 6), strict=True):
        row[end], row[end + 1 :] = VOCAB - 1, 0
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels, ids)

    def weights(path, x):
        spread = 2 * x.shape[0] ** -0.5 if len(x.shape) > 1 else 0.3
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(middle + noise.normal(size=x.shape) * spread, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(weights, shapes)
    theirs = jax.jit(model.apply)(variables, pixels, ids)

    shutil.copy(FIXTURES / "7" / BPE, tmp_path)
    saved = freeze(variables) if remat else jax.tree.map(np.asarray, variables)
    (tmp_path / "vit-nano-patch8-none.pkl").write_bytes(pickle.dumps(saved))
    encoder = load_clip(tmp_path)
    assert encoder.source == "open_clip_jax"
    agree(vectors_of_pictures(encoder, pixels.transpose(0, 3, 1, 2)), theirs[0])
    agree(np.asarray(encoder.model.embed_texts(jnp.asarray(ids))), theirs[1])
    scale = float(encoder.model.logit_scale[...])
    assert scale == pytest.approx(variables["params"].get("temp", math.log(100)))


def test_a_hostile_tree_is_refused(tmp_path):
    class Calls:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    shutil.copy(FIXTURES / "7" / BPE, tmp_path)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"params": {"x": Calls()}}))
    with pytest.raises(UserError, match=r"m\.pkl: it wants posix\.mkdir; only arrays"):
        load_clip(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return three_sources(draw_model(random.Random(5)), tmp_path_factory.mktemp("clip"))


@pytest.fixture
def copies(sources, tmp_path):
    """Copies of the three folders, to be broken."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in sources]


# --- what is not run, or does not fit -------------------------------------------------------------


MODELS_NOT_RUN = {
    "timm": ("vision_cfg", {"timm_model_name": "vit_x"}, "vision_cfg.timm_model_name 'vit_x'"),
    "resnet": ("vision_cfg", {"layers": [3, 4, 6, 3]}, "only transformers are run"),
    "pooled": ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type 'avg'"),
    "attention pool": ("vision_cfg", {"attentional_pool": True}, "attentional_pool True"),
    "layer scale": ("vision_cfg", {"ls_init_value": 0.1}, "ls_init_value 0.1"),
    "no first norm": ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre True"),
    "oblong": ("vision_cfg", {"image_size": [24, 32]}, "only squares are run"),
    "hf text": ("text_cfg", {"hf_model_name": "roberta"}, "text_cfg.hf_model_name 'roberta'"),
    "last token": ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type 'last'"),
    "own eos": ("text_cfg", {"pool_type": "eos", "eos_id": 5}, "text_cfg.pool_type 'eos'"),
    "both ways": ("text_cfg", {"no_causal_mask": True}, "no_causal_mask True"),
    "tokens left out": (
        "text_cfg",
        {"tokenizer_kwargs": {"reduction_mask": "simple"}},
        "tokenizer_kwargs",
    ),
    "activation": ("text_cfg", {"act_kwargs": {"approximate": "x"}}, "not a model's settings"),
    "no width": ("vision_cfg", {"width": None}, "not a model's settings"),
}


@pytest.mark.parametrize("name", MODELS_NOT_RUN)
def test_an_open_clip_model_that_is_not_run_is_refused(copies, name):
    section, settings, message = MODELS_NOT_RUN[name]
    path = copies[1] / "open_clip_config.json"
    change(path, lambda config: config["model_cfg"][section].update(settings))
    with pytest.raises(UserError, match=f"open_clip_config.json: .*{re.escape(message)}"):
        load_clip(copies[1])


def test_settings_without_effect_are_accepted(copies):
    def edit(config):
        config["model_cfg"]["vision_cfg"] |= {"patch_dropout": 0.5, "timm_model_name": None}
        config["model_cfg"]["vision_cfg"]["image_size"] = [SIDE, SIDE]
        config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x/y", "pool_type": "argmax"}

    before = vectors_of_texts(load_clip(copies[1]), TEXTS)
    change(copies[1] / "open_clip_config.json", edit)
    agree(vectors_of_texts(load_clip(copies[1]), TEXTS), before)


def test_what_does_not_fit_the_settings_is_named(copies):
    theirs, torches, flax = copies
    path = torches / "open_clip_config.json"
    original = path.read_text()
    change(path, lambda c: c["model_cfg"]["text_cfg"].update(width=12, heads=3))
    with pytest.raises(UserError, match=r"text_model.*fc1\.weight: shape .* config says \[24, 12"):
        load_clip(torches)
    for odd, message in (
        ({"heads": 5}, "text_cfg.heads 5 does not divide"),
        ({"heads": 0}, "not a model's settings"),
        ({"layers": 0}, "num_hidden_layers 0 is not"),
        ({"norm_kwargs": {"eps": float("nan")}}, "layer_norm_eps nan is not a number"),
    ):
        path.write_text(original)
        change(path, lambda c, odd=odd: c["model_cfg"]["text_cfg"].update(odd))
        with pytest.raises(UserError, match=rf"open_clip_config\.json: .*{message}"):
            load_clip(torches)
    path.write_text(original)
    change(path, lambda c: c["model_cfg"].update(multimodal_cfg={"width": 8}))
    with pytest.raises(UserError, match="CoCa is not run"):
        load_clip(torches)
    path.write_text(original)
    change(path, lambda c: c.update(preprocess_cfg={"resize_mode": "crop"}))
    with pytest.raises(UserError, match="preprocess_cfg.resize_mode 'crop' is none of shortest"):
        load_clip(torches)
    path.write_text(original)

    file = torches / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["visual.extra"] = tensors.pop("visual.ln_pre.bias")
    tensors["text.logit_bias"] = tensors["logit_scale"]
    tensors["text.ln_final.bias"] = tensors["ln_final.bias"]
    save_file(tensors, file)
    with pytest.raises(UserError) as raised:
        load_clip(torches)
    for part in (
        "vision_model.pre_layrnorm.bias: missing",
        "visual.extra: maps to no parameter",
        "text.logit_bias: maps to no parameter",
        "ln_final.bias is the same parameter",
    ):
        assert part in str(raised.value), part

    tree = pickle.loads((flax / "vit-tiny.pkl").read_bytes())
    tree["params"]["Dense_0"]["bias"] = np.zeros(3, np.float32)
    del tree["params"]["text_model"]["LayerNorm_0"]["scale"]
    (flax / "vit-tiny.pkl").write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError) as raised:
        load_clip(flax)
    assert "visual_projection.bias: maps to no parameter" in str(raised.value)
    assert "text_model.final_layer_norm.weight: missing" in str(raised.value)
    for wrong in ({"params": {"ConvNeXt_0": np.zeros(2)}}, [1], {}):
        (flax / "vit-tiny.pkl").write_bytes(pickle.dumps(wrong))
        with pytest.raises(UserError, match="not open_clip_jax's tree of a CLIP"):
            load_clip(flax)

    change(theirs / "preprocessor_config.json", lambda c: c.update(do_center_crop=False))
    with pytest.raises(UserError, match=r"makes pictures of \[3, 24, .*wants \[3, 24, 24\]"):
        load_clip(theirs)
    for file in theirs.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(UserError, match="no picture processor that transformers can load"):
        load_clip(theirs)
