"""Small models of the real architectures, made in place, and batches for them."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.nn import lora
from crossguard_jax.nn.clip import VisionConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import Llava, LlavaConfig

TARGETS = r"(vision_tower|language_model)\..*\.(q|k|v|o|out|gate|up|down)_proj|.*\.linear_1"
"""Layers on both towers and the projector."""

LABELS = (5, 9)
"""Token ids of two labels."""


def llava_config(**changes: Any) -> LlavaConfig:
    """Every width divides by 2 x 2, so that a mesh of 8 devices has something to split."""
    vision = VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=12,
        patch_size=4,
    )
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
    )
    return replace(LlavaConfig(vision=vision, text=text, image_token_id=3), **changes)


def llava(seed: int = 0, **changes: Any) -> Llava:
    """A model in which no scale is one and no bias zero."""
    config = llava_config(**changes)
    return filled(jax.eval_shape(lambda: Llava(config, jax.random.key(0))), seed)


def adapted(model: Any, rank: int = 4, alpha: float = 6.0, seed: int = 0) -> Any:
    """The model with an adapter that changes something."""
    key = jax.random.key(0)
    attached = jax.eval_shape(lambda m: lora.attach(m, TARGETS, rank, alpha, key), model)
    graphdef, adapters, _ = lora.split(attached)
    return lora.merge(graphdef, filled(adapters, seed), lora.split(lora.detach(model))[2])


def filled(abstract: Any, seed: int) -> Any:
    """Random numbers in place of shapes, at a scale that keeps activations lively.

    Drawn by NumPy: compiling JAX's generator takes longer than all that is done with them.
    """
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: Any) -> jax.Array:
        x = rng.normal(size=leaf.shape)
        words = re.findall(r"\w+", jax.tree_util.keystr(path))
        if "kernel" in words or "lora" in words:
            # A gentle update: one as strong as its kernel makes scores, and rounding, explode.
            x = x * leaf.shape[-2] ** -0.5 * (0.3 if "b" in words else 1.0)
        elif "embedding" not in words:
            x = ("scale" in words) + 0.1 * x
        return jnp.asarray(x, leaf.dtype)

    return jax.tree.map_with_path(one, abstract)


def batch(config: LlavaConfig, n: int = 4, n_text: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with a picture in them; every second one has padding on the right."""
    rng = np.random.default_rng(seed)
    p, size = config.tokens_per_image, config.vision.image_size
    ids = rng.integers(4, config.text.vocab_size - 1, (n, p + n_text)).astype(np.int32)
    ids[:, 1 : p + 1] = config.image_token_id
    mask = np.ones_like(ids)
    mask[1::2, -2:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": rng.normal(size=(n, 3, size, size)).astype(np.float32),
        "labels": rng.integers(0, 2, n).astype(np.int32),
    }


def on_device(rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch as JAX arrays."""
    return {name: jnp.asarray(value) for name, value in rows.items()}
