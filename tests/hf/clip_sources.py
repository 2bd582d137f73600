"""One CLIP written in three layouts, and how its vectors are compared."""

import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from crossguard_jax.hf.clip import BPE
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


def change(path, edit):
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
