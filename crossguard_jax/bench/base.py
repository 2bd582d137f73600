"""The model that the benches of guard and attacks measure, its rows, and what they must multiply.

A LLaVA with a CLIP ViT d=256 x 8 at 224 px and a Llama d=512 x 8, with random weights; a row has
256 picture tokens and 64 text tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.tree import count
from crossguard_jax.nn.llava import Llava

LABELS = (1000, 2000)
TARGETS = r"(vision_tower|language_model)\..*\.(q|k|v|o|out|gate|up|down)_proj"
RANK, ALPHA, LEARNING_RATE = 16, 32.0, 1e-4
N_TEXT = 64
BEFORE = 4
"""Text tokens before the picture."""

VISION: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "vocab_size": 32_064,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
}


def make_folder(scratch: Path) -> Path:
    """The model with random weights, as transformers saves it."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision, text = CLIPVisionConfig(**VISION), LlamaConfig(**TEXT)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000)
    LlavaForConditionalGeneration(config).save_pretrained(scratch / "base")
    return scratch / "base"


def make_batch(model: Llava, size: int, n_text: int | None = None) -> dict[str, np.ndarray]:
    """Random rows: ids [B, L] of ``n_text`` (None: `N_TEXT`) text tokens, their mask, normalized
    pixels [B, 3, X, X] and labels [B]."""
    rng = np.random.default_rng(0)
    config = model.config
    length = config.tokens_per_image + (n_text or N_TEXT)
    ids = rng.integers(3, 31_000, (size, length), dtype=np.int64)
    ids[:, BEFORE : BEFORE + config.tokens_per_image] = config.image_token_id
    side = config.vision.image_size
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": rng.normal(size=(size, 3, side, side)).astype(np.float32),
        "labels": rng.integers(0, 2, size),
    }


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward pass.

    Attributes:
        matrices: products with the model's weights, 2N a token; N are the weights of matrices that
            a position must meet: unused layers of the tower are left out, of the last layer of the
            language model all but keys and values (one position asks), and the two columns of the
            head.
        attention: the two products of queries, keys and values; causal ones are half of all.
    """

    matrices: float
    attention: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.matrices + other.matrices, self.attention + other.attention)

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.matrices + self.attention

    @property
    def gradient(self) -> float:
        """A forward pass, and the gradient by the inputs: with frozen weights 2N a token more (not
        4N, of which half is the weights' gradient), and four products of attention for two."""
        return 2 * self.matrices + 3 * self.attention


def seeing(model: Llava, n: int) -> Work:
    """The tower and the projector on ``n`` pictures."""
    config = model.config.vision
    total, positions = config.num_hidden_layers, config.n_patches + 1
    used = max(i % (total + 1) for i in model.config.vision_feature_layer)
    layers = count(model.vision_tower.layers) * used / total
    patches = count(model.vision_tower.patch_embedding) + count(model.multi_modal_projector)
    matrices = 2 * n * (layers * positions + patches * config.n_patches)
    return Work(matrices, 4.0 * n * positions**2 * config.hidden_size * used)


def reading(model: Llava, rows: int, tokens: int, before: int = 0) -> Work:
    """The language model on rows of ``tokens`` tokens behind ``before`` others that are cached."""
    language = model.language_model
    n, width = language.config.num_hidden_layers, language.config.hidden_size
    attention = language.layers.self_attn
    of_last = count(attention.k_proj) + count(attention.v_proj)
    weights = (count(language.layers) * (n - 1) + of_last) / n
    pairs = tokens * (before + tokens / 2)
    return Work(2.0 * rows * tokens * weights, 4.0 * rows * pairs * width * (n - 1))
