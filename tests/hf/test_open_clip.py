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
from transformers import AutoImageProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.clip import BPE, load_clip
from crossguard_jax.hf.load import load_model, resolve_folder
from tests.hf import linen_clip
from tests.hf.hub_models import randomized

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures" / "open_clip"
TOLERANCE = 1e-5
VOCAB = 531  # of the fixtures' tokenizer: 512 bytes, 17 merges, two special tokens
TEXTS = [
    "a red kettle on the table",
    "",
    "THE HOT pan, and 42 more things!",
    "the kettle and the pan " * 9,
    "ça va? 東京 🍳",
]


def vectors_of_texts(encoder, texts):
    batch = encoder.texts(texts)
    embed = jax.jit(type(encoder.model).embed_texts)
    return np.asarray(embed(encoder.model, batch["input_ids"], batch["attention_mask"]))


def vectors_of_pictures(encoder, pixels):
    return np.asarray(jax.jit(type(encoder.model).embed_pictures)(encoder.model, pixels))


def agree(ours, theirs, tolerance=TOLERANCE):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert theirs.std(0).max() > 1e-2, "the reference is constant: it would show nothing"
    assert np.abs(ours - theirs).max() <= tolerance


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

SIDE = 24
# Where a picture's two halves of what is cut off are equal, transformers crops as open_clip does.
SIZES = [(24, 24), (40, 20), (31, 31), (20, 40), (90, 30)]


def draw_model(rng):
    """A CLIP with what all three layouts have: exact gelu and an epsilon of 1e-5."""

    def tower(heads, layers):
        return {
            "hidden_size": heads * 8,
            "intermediate_size": heads * 8 * rng.choice([2, 4]),
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "hidden_act": "gelu",
        }

    config = CLIPConfig(
        text_config=tower(rng.choice([2, 3]), rng.choice([1, 3]))
        | {
            "vocab_size": VOCAB,
            "max_position_embeddings": rng.choice([16, 20, 37]),
            "bos_token_id": VOCAB - 2,
            "eos_token_id": rng.choice([2, VOCAB - 1]),
        },
        vision_config=tower(rng.choice([2, 4]), rng.choice([1, 2]))
        | {"image_size": SIDE, "patch_size": rng.choice([6, 8, 12])},
        projection_dim=rng.choice([12, 20]),
    )
    return randomized(CLIPModel(config), rng)


def write_transformers(model, folder):
    model.save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size=size, crop_size=crop).save_pretrained(folder)


def torch_block(layer):
    """open_clip's names of one layer's parameters."""
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    tensors = {
        "attn.in_proj_weight": torch.cat([p.weight for p in projections]),
        "attn.in_proj_bias": torch.cat([p.bias for p in projections]),
    }
    modules = {
        "ln_1": layer.layer_norm1,
        "ln_2": layer.layer_norm2,
        "attn.out_proj": attention.out_proj,
        "mlp.c_fc": layer.mlp.fc1,
        "mlp.c_proj": layer.mlp.fc2,
    }
    for name, module in modules.items():
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return tensors


def write_open_clip(model, folder):
    vision, text = model.vision_model, model.text_model
    tensors = {
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": model.logit_scale,
    }
    norms = {
        "visual.ln_pre": vision.pre_layrnorm,
        "visual.ln_post": vision.post_layernorm,
        "ln_final": text.final_layer_norm,
    }
    for name, norm in norms.items():
        tensors |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    for prefix, tower in (("visual.", vision), ("", text)):
        for i, layer in enumerate(tower.encoder.layers):
            block = torch_block(layer)
            tensors |= {f"{prefix}transformer.resblocks.{i}.{k}": v for k, v in block.items()}
    arrays = {k: np.ascontiguousarray(v.detach().numpy()) for k, v in tensors.items()}
    save_file(arrays, folder / "open_clip_model.safetensors")
    sides = model.config.vision_config, model.config.text_config
    picture, words = (
        {
            "width": c.hidden_size,
            "layers": c.num_hidden_layers,
            "mlp_ratio": c.intermediate_size / c.hidden_size,
        }
        for c in sides
    )
    picture |= {"head_width": 8, "patch_size": sides[0].patch_size, "image_size": SIDE}
    words |= {"heads": sides[1].num_attention_heads, "vocab_size": VOCAB}
    words |= {"context_length": sides[1].max_position_embeddings}
    model_cfg = {
        "embed_dim": model.config.projection_dim,
        "vision_cfg": picture,
        "text_cfg": words,
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))


def dense(module):
    return {"kernel": module.weight.T, "bias": module.bias}


def flax_block(layer, heads):
    def attention(module):
        kernel = module.weight.T
        return {
            "kernel": kernel.reshape(len(kernel), heads, -1),
            "bias": module.bias.reshape(heads, -1),
        }

    def norm(module):
        return {"scale": module.weight, "bias": module.bias}

    a = layer.self_attn
    out = a.out_proj.weight.T
    return {
        "LayerNorm_0": norm(layer.layer_norm1),
        "LayerNorm_1": norm(layer.layer_norm2),
        "MLP_0": {"Dense_0": dense(layer.mlp.fc1), "Dense_1": dense(layer.mlp.fc2)},
        "MultiHeadAttention_0": {
            "query": attention(a.q_proj),
            "key": attention(a.k_proj),
            "value": attention(a.v_proj),
            "out": {"kernel": out.reshape(heads, -1, out.shape[-1]), "bias": a.out_proj.bias},
        },
    }


def flax_tree(model):
    """The model as open_clip_jax's tree of numpy arrays."""
    vision, text = model.vision_model, model.text_model

    def transformer(tower, heads):
        layers = enumerate(tower.encoder.layers)
        return {f"TransformerBlock_{i}": flax_block(layer, heads) for i, layer in layers}

    def norm(module):
        return {"scale": module.weight, "bias": module.bias}

    tree = {
        "Dense_0": {"kernel": model.visual_projection.weight.T},
        "Dense_1": {"kernel": model.text_projection.weight.T},
        "temp": model.logit_scale,
        "image_model": {
            "PatchEmbed_0": {
                "Conv_0": {"kernel": vision.embeddings.patch_embedding.weight.permute(2, 3, 1, 0)}
            },
            "ClsToken_0": {"cls_token": vision.embeddings.class_embedding},
            "PosEmbed_0": {"pos_embed": vision.embeddings.position_embedding.weight},
            "LayerNorm_0": norm(vision.pre_layrnorm),
            "Transformer_0": transformer(vision, model.config.vision_config.num_attention_heads),
            "LayerNorm_1": norm(vision.post_layernorm),
        },
        "text_model": {
            "Embed_0": {"embedding": text.embeddings.token_embedding.weight},
            "PosEmbed_0": {"pos_embed": text.embeddings.position_embedding.weight},
            "Transformer_0": transformer(text, model.config.text_config.num_attention_heads),
            "LayerNorm_0": norm(text.final_layer_norm),
        },
    }
    return {"params": jax.tree.map(lambda x: x.detach().numpy(), tree)}


def three_sources(model, root):
    """The model as three folders, each with the fixtures' tokenizer."""
    folders = [root / name for name in ("transformers", "open_clip", "open_clip_jax")]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(FIXTURES / "7" / BPE, folder)
    write_transformers(model, folders[0])
    write_open_clip(model, folders[1])
    (folders[2] / "vit-tiny.pkl").write_bytes(pickle.dumps(flax_tree(model)))
    return folders


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


# --- what a folder may be ------------------------------------------------------------------------


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


def change(path, edit):
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


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
    change(path, lambda c: c["model_cfg"]["text_cfg"].update(width=8))
    with pytest.raises(UserError, match=r"text_model.*fc1\.weight: shape .* config says \[16, 8"):
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


# --- texts and pictures --------------------------------------------------------------------------


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
    with pytest.raises(UserError, match="the tokenizer has 606 tokens, the model 531"):
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
