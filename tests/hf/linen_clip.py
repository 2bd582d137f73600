"""CLIP in flax.linen, named so that its parameters fall into open_clip_jax's layout.

flax's own layers do the work; the class names here are the layout's names. What it must give:
``params/{Dense_0, Dense_1, image_model/..., text_model/...}``.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class MultiHeadAttention(nn.MultiHeadDotProductAttention):
    """flax's, under the layout's name."""


class MLP(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x):
        inner = nn.gelu(nn.Dense(self.inner)(x), approximate=False)
        return nn.Dense(x.shape[-1])(inner)


class TransformerBlock(nn.Module):
    heads: int
    inner: int

    @nn.compact
    def __call__(self, x, mask=None):
        x = x + MultiHeadAttention(self.heads)(nn.LayerNorm(epsilon=1e-5)(x), mask=mask)
        return x + MLP(self.inner)(nn.LayerNorm(epsilon=1e-5)(x))


class Transformer(nn.Module):
    depth: int
    heads: int
    inner: int
    remat: bool

    @nn.compact
    def __call__(self, x, mask=None):
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock
        for _ in range(self.depth):
            x = block(self.heads, self.inner)(x, mask)
        return x


class PatchEmbed(nn.Module):
    width: int
    patch: int

    @nn.compact
    def __call__(self, pixels):
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, strides=size, padding="VALID", use_bias=False)(pixels)
        return x.reshape(len(x), -1, self.width)


class ClsToken(nn.Module):
    @nn.compact
    def __call__(self, x):
        token = self.param("cls_token", nn.initializers.normal(0.1), x.shape[-1:])
        return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, x.shape[-1])), x], axis=1)


class PosEmbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embed", nn.initializers.normal(0.1), x.shape[1:])


class ImageModel(nn.Module):
    tower: dict[str, Any]
    width: int
    patch: int

    @nn.compact
    def __call__(self, pixels):
        x = PosEmbed()(ClsToken()(PatchEmbed(self.width, self.patch)(pixels)))
        x = Transformer(**self.tower)(nn.LayerNorm(epsilon=1e-5)(x))
        return nn.LayerNorm(epsilon=1e-5)(x[:, 0])


class TextModel(nn.Module):
    tower: dict[str, Any]
    width: int
    vocab_size: int

    @nn.compact
    def __call__(self, ids):
        x = PosEmbed()(nn.Embed(self.vocab_size, self.width)(ids))
        x = Transformer(**self.tower)(x, nn.make_causal_mask(ids))
        return nn.LayerNorm(epsilon=1e-5)(x)[jnp.arange(len(ids)), ids.argmax(1)]


class LinenClip(nn.Module):
    image_model: ImageModel
    text_model: TextModel
    width: int
    temperature: float | None = None

    @nn.compact
    def __call__(self, pixels, ids):
        """Unit vectors of pixels [M, X, Y, C] and ids [B, L]."""
        pictures, texts = self.image_model(pixels), self.text_model(ids)
        pictures = nn.Dense(self.width, use_bias=False)(pictures)
        texts = nn.Dense(self.width, use_bias=False)(texts)
        if self.temperature is not None:
            self.param("temp", lambda _: jnp.asarray(self.temperature))
        return tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (pictures, texts))
