"""Tensors in open_clip's and open_clip_jax's layouts, shown under transformers' keys for CLIP.

open_clip (torch) fuses the attention's three projections and keeps the two last projections as
matrices [D, E]; open_clip_jax keeps kernels as flax does, [in, out], and attention's by heads.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from crossguard_jax.hf.tensors import Source

Transform = Callable[[np.ndarray], np.ndarray]
Rule = tuple[str, list[tuple[str, Transform]]]
"""A pattern of their keys, and the keys here that a match gives, each with its values."""


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _third(i: int) -> Transform:
    return lambda x: np.split(x, 3)[i]


def _scalar(x: np.ndarray) -> np.ndarray:
    return x.reshape(())


def _torch_tower(theirs: str, ours: str) -> list[Rule]:
    block, layer = rf"{theirs}transformer\.resblocks\.(\d+)\.", rf"{ours}.encoder.layers.\1."
    projections = ("q_proj", "k_proj", "v_proj")
    return [
        (rf"{block}ln_([12])\.(weight|bias)", [(rf"{layer}layer_norm\2.\3", _same)]),
        (rf"{block}mlp\.c_fc\.(weight|bias)", [(rf"{layer}mlp.fc1.\2", _same)]),
        (rf"{block}mlp\.c_proj\.(weight|bias)", [(rf"{layer}mlp.fc2.\2", _same)]),
        (rf"{block}attn\.out_proj\.(weight|bias)", [(rf"{layer}self_attn.out_proj.\2", _same)]),
        (
            rf"{block}attn\.in_proj_(weight|bias)",
            [(rf"{layer}self_attn.{p}.\2", _third(i)) for i, p in enumerate(projections)],
        ),
    ]


_EMBEDDINGS = "vision_model.embeddings"
_TEXT = r"(?:text\.)?"  # a model with a "custom text tower" has it in a room of its own

OPEN_CLIP: list[Rule] = [
    *_torch_tower(r"visual\.", "vision_model"),
    *_torch_tower(_TEXT, "text_model"),
    (r"visual\.class_embedding", [(f"{_EMBEDDINGS}.class_embedding", _same)]),
    (r"visual\.conv1\.weight", [(f"{_EMBEDDINGS}.patch_embedding.weight", _same)]),
    (r"visual\.positional_embedding", [(f"{_EMBEDDINGS}.position_embedding.weight", _same)]),
    (r"visual\.ln_pre\.(weight|bias)", [(r"vision_model.pre_layrnorm.\1", _same)]),
    (r"visual\.ln_post\.(weight|bias)", [(r"vision_model.post_layernorm.\1", _same)]),
    (r"visual\.proj", [("visual_projection.weight", _transposed)]),
    (
        rf"{_TEXT}positional_embedding",
        [("text_model.embeddings.position_embedding.weight", _same)],
    ),
    (
        rf"{_TEXT}token_embedding\.weight",
        [("text_model.embeddings.token_embedding.weight", _same)],
    ),
    (rf"{_TEXT}ln_final\.(weight|bias)", [(r"text_model.final_layer_norm.\1", _same)]),
    (rf"{_TEXT}text_projection", [("text_projection.weight", _transposed)]),
    (r"logit_scale", [("logit_scale", _scalar)]),
]
"""open_clip's state dict."""


def _flax_norm(theirs: str, ours: str) -> list[Rule]:
    return [
        (f"{theirs}/scale", [(f"{ours}.weight", _same)]),
        (f"{theirs}/bias", [(f"{ours}.bias", _same)]),
    ]


def _flax_dense(theirs: str, ours: str, *, ins: int = 1) -> list[Rule]:
    """``ins``: how many of a kernel's axes are inputs; the others are outputs."""

    def matrix(x: np.ndarray) -> np.ndarray:
        return x.reshape(math.prod(x.shape[:ins]), math.prod(x.shape[ins:])).T

    return [
        (f"{theirs}/kernel", [(f"{ours}.weight", matrix)]),
        (f"{theirs}/bias", [(f"{ours}.bias", np.ravel)]),
    ]


def _flax_tower(theirs: str, ours: str) -> list[Rule]:
    # A tower made with checkpointing of gradients has the word in its blocks' names.
    block = rf"{theirs}/Transformer_0/(?:Checkpoint)?TransformerBlock_(\d+)/"
    layer = rf"{ours}.encoder.layers.\1."
    attention = f"{block}MultiHeadAttention_0/"
    return [
        *_flax_norm(f"{block}LayerNorm_0", f"{layer}layer_norm1"),
        *_flax_norm(f"{block}LayerNorm_1", f"{layer}layer_norm2"),
        *_flax_dense(f"{attention}query", f"{layer}self_attn.q_proj"),
        *_flax_dense(f"{attention}key", f"{layer}self_attn.k_proj"),
        *_flax_dense(f"{attention}value", f"{layer}self_attn.v_proj"),
        *_flax_dense(f"{attention}out", f"{layer}self_attn.out_proj", ins=2),
        *_flax_dense(f"{block}MLP_0/Dense_0", f"{layer}mlp.fc1"),
        *_flax_dense(f"{block}MLP_0/Dense_1", f"{layer}mlp.fc2"),
    ]


PICTURES, TEXTS = "params/image_model", "params/text_model"

OPEN_CLIP_JAX: list[Rule] = [
    *_flax_tower(PICTURES, "vision_model"),
    *_flax_tower(TEXTS, "text_model"),
    (f"{PICTURES}/ClsToken_0/cls_token", [(f"{_EMBEDDINGS}.class_embedding", _same)]),
    (
        f"{PICTURES}/PatchEmbed_0/Conv_0/kernel",
        [(f"{_EMBEDDINGS}.patch_embedding.weight", lambda x: x.transpose(3, 2, 0, 1))],
    ),
    (f"{PICTURES}/PosEmbed_0/pos_embed", [(f"{_EMBEDDINGS}.position_embedding.weight", _same)]),
    *_flax_norm(f"{PICTURES}/LayerNorm_0", "vision_model.pre_layrnorm"),
    *_flax_norm(f"{PICTURES}/LayerNorm_1", "vision_model.post_layernorm"),
    (
        f"{TEXTS}/Embed_0/embedding",
        [("text_model.embeddings.token_embedding.weight", _same)],
    ),
    (
        f"{TEXTS}/PosEmbed_0/pos_embed",
        [("text_model.embeddings.position_embedding.weight", _same)],
    ),
    *_flax_norm(f"{TEXTS}/LayerNorm_0", "text_model.final_layer_norm"),
    *_flax_dense("params/Dense_0", "visual_projection"),
    *_flax_dense("params/Dense_1", "text_projection"),
    ("params/temp", [("logit_scale", _scalar)]),
]
"""open_clip_jax's parameter tree, its path joined by slashes."""


class Renamed:
    """Tensors of another layout under our keys; what no rule knows keeps its name."""

    def __init__(self, source: Source, rules: list[Rule]):
        self.problems = list(source.problems)
        self._source = source
        self._views: dict[str, tuple[str, Transform]] = {}
        for key in source:
            for name, transform in _renamed(key, rules):
                if name in self._views:
                    self.problems.append(f"{key}: {self._views[name][0]} is the same parameter")
                self._views[name] = (key, transform)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape here, without reading; a tensor that does not fit its rule keeps its own."""
        theirs, transform = self._views[key]
        shape = self._source.shape(theirs)
        try:
            return transform(np.broadcast_to(np.int8(0), shape)).shape
        except (ValueError, IndexError):
            return shape

    def read(self, key: str) -> np.ndarray:
        """The values here."""
        theirs, transform = self._views[key]
        return transform(self._source.read(theirs))


def _renamed(key: str, rules: list[Rule]) -> list[tuple[str, Transform]]:
    for pattern, targets in rules:
        if match := re.fullmatch(pattern, key):
            return [(match.expand(template), transform) for template, transform in targets]
    return [(key, _same)]


class Arrays:
    """Arrays in memory as a source of tensors."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.problems: list[str] = []
        self._arrays = arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of one array."""
        return self._arrays[key].shape

    def read(self, key: str) -> np.ndarray:
        """One array."""
        return self._arrays[key]
