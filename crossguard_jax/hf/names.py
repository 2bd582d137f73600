"""Our parameter names and the Hub's: one table, read in both directions.

A row maps a prefix of our dotted path to a prefix of the Hub's key; ``{i}`` marks the layers of a
stack, which are one array here and one tensor a layer there. What follows the prefix is the same
on both sides up to the last word, which `LEAVES` maps, with the transform of the values.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Transform:
    """Values from the Hub's layout to ours (``read``) and back (``write``).

    ``write`` also receives the number of colour channels, which a patch kernel's own shape does
    not tell.
    """

    read: Callable[[Array], Array]
    write: Callable[[Array, int], Array]


SAME = Transform(lambda x: x, lambda x, _: x)
TRANSPOSE = Transform(lambda x: x.T, lambda x, _: x.T)


def _write_patches(x: Array, channels: int) -> Array:
    side = int((x.shape[0] // channels) ** 0.5)
    return x.T.reshape(x.shape[1], channels, side, side)


# A convolution's kernel [D, C, p, p] is the matrix [C * p * p, D] over flattened patches.
PATCHES = Transform(lambda x: x.reshape(x.shape[0], -1).T, _write_patches)

LEAVES: dict[str, tuple[str, Transform]] = {
    "kernel": ("weight", TRANSPOSE),
    "embedding": ("weight", SAME),
    "scale": ("weight", SAME),
    "bias": ("bias", SAME),
}

_VISION = [
    ("class_embedding", "embeddings.class_embedding"),
    ("patch_embedding", "embeddings.patch_embedding"),
    ("position_embedding", "embeddings.position_embedding"),
    ("layers", "encoder.layers.{i}"),
    ("", ""),
]
_TEXT = [
    ("token_embedding", "embeddings.token_embedding"),
    ("position_embedding", "embeddings.position_embedding"),
    ("layers", "encoder.layers.{i}"),
    ("", ""),
]
_LLAMA = [("lm_head", "lm_head"), ("layers", "model.layers.{i}"), ("", "model")]


def _under(ours: str, hub: str, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(".".join(filter(None, (ours, a))), ".".join(filter(None, (hub, b)))) for a, b in rows]


TABLES: dict[str, list[tuple[str, str]]] = {
    "llava": [
        *_under("vision_tower", "vision_tower", _VISION),
        *_under("language_model", "language_model", _LLAMA),
        ("", ""),
    ],
    "llama": _LLAMA,
    "clip": [
        *_under("vision_model", "vision_model", _VISION),
        *_under("text_model", "text_model", _TEXT),
        ("", ""),
    ],
    "clip_text_model": _TEXT,
    "clip_vision_model": _VISION,
    "bert": [
        ("word_embeddings", "embeddings.word_embeddings"),
        ("position_embeddings", "embeddings.position_embeddings"),
        ("token_type_embeddings", "embeddings.token_type_embeddings"),
        ("embedding_norm", "embeddings.LayerNorm"),
        ("layers.query", "encoder.layer.{i}.attention.self.query"),
        ("layers.key", "encoder.layer.{i}.attention.self.key"),
        ("layers.value", "encoder.layer.{i}.attention.self.value"),
        ("layers.attention_output", "encoder.layer.{i}.attention.output.dense"),
        ("layers.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
        ("layers.intermediate", "encoder.layer.{i}.intermediate.dense"),
        ("layers.output", "encoder.layer.{i}.output.dense"),
        ("layers.output_norm", "encoder.layer.{i}.output.LayerNorm"),
    ],
    "mpnet": [
        ("word_embeddings", "embeddings.word_embeddings"),
        ("position_embeddings", "embeddings.position_embeddings"),
        ("embedding_norm", "embeddings.LayerNorm"),
        ("relative_attention_bias", "encoder.relative_attention_bias"),
        ("layers.query", "encoder.layer.{i}.attention.attn.q"),
        ("layers.key", "encoder.layer.{i}.attention.attn.k"),
        ("layers.value", "encoder.layer.{i}.attention.attn.v"),
        ("layers.attention_output", "encoder.layer.{i}.attention.attn.o"),
        ("layers.attention_norm", "encoder.layer.{i}.attention.LayerNorm"),
        ("layers.intermediate", "encoder.layer.{i}.intermediate.dense"),
        ("layers.output", "encoder.layer.{i}.output.dense"),
        ("layers.output_norm", "encoder.layer.{i}.output.LayerNorm"),
    ],
}
"""Per model family; the first row whose prefix holds wins. The Hub side is what transformers'
own ``save_pretrained`` writes."""

ALIASES: dict[str, list[tuple[str, str]]] = {
    "llava": [
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
    ],
    "llama": [],
    "clip": [],
    "clip_text_model": [(r"^text_model\.", "")],
    "clip_vision_model": [(r"^(model\.)?(vision_tower\.)?(vision_model\.)?", "")],
    "bert": [
        (r"^bert\.", ""),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
    ],
    "mpnet": [
        (r"^mpnet\.", ""),
        (r"^lm_head\.", "cls."),  # it guesses masked words, as BERT's does
    ],
}
"""Other generations of the same keys, rewritten to the table's before they are looked up."""

IGNORED = re.compile(
    r".*(position_ids|rotary_emb\.inv_freq)$|^(pooler|cls)\..*|^language_model\.model\.pooler\..*"
)
"""Buffers and heads that a checkpoint may hold and that no model here has."""


@dataclass(frozen=True)
class HubTensor:
    """Where one of our parameters lives on the Hub: ``keys`` has one entry a stacked layer."""

    keys: tuple[str, ...]
    transform: Transform
    stacked: bool


def canonical(family: str, key: str) -> str:
    """A checkpoint's key in the table's spelling."""
    for pattern, replacement in ALIASES[family]:
        key = re.sub(pattern, replacement, key)
    return key


def module_name(family: str, path: str) -> str:
    """The Hub's name of one of our modules, ``{i}`` standing for the layer of a stack."""
    for ours, hub in TABLES[family]:
        if not ours or path == ours or path.startswith(ours + "."):
            rest = path[len(ours) :].lstrip(".")
            return ".".join(filter(None, (hub, rest)))
    raise KeyError(f"no row for {path} in the table of {family}")


def hub_tensor(family: str, path: str, shape: Sequence[int]) -> HubTensor:
    """The Hub tensor(s) of one of our parameters.

    Args:
        family: a key of `TABLES`.
        path: our dotted path, such as ``language_model.layers.mlp.up_proj.kernel``.
        shape: our shape; its first number is the stack's height for a stacked parameter.
    """
    module, _, leaf = path.rpartition(".")
    if leaf in LEAVES:
        word, transform = LEAVES[leaf]
        template = f"{module_name(family, module)}.{word}"
    else:
        template, transform = module_name(family, path), SAME
    if template.endswith("patch_embedding.weight"):
        transform = PATCHES
    stacked = "{i}" in template
    n = shape[0] if stacked else 1
    return HubTensor(tuple(template.replace("{i}", str(i)) for i in range(n)), transform, stacked)
