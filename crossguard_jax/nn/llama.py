"""Llama (arXiv 2302.13971 and later): GQA, RoPE with scaling, after ``modeling_llama``."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.nn.attention import attention
from crossguard_jax.nn.layers import (
    ACTIVATIONS,
    Dense,
    Embed,
    Linear,
    RMSNorm,
    pick_layer,
    run_stack,
    stack,
)
from crossguard_jax.nn.lora import LoraScale
from crossguard_jax.nn.pins import Pinned

Rotation = tuple[Float[Array, "B L E"], Float[Array, "B L E"]]
KeysValues = tuple[Float[Array, "B S K E"], Float[Array, "B S K E"]]


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling: kind "default", "linear" or "llama3", with that kind's numbers."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The Hub config's fields, by their names there."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    remat: str = "none"
    attention: str = "auto"


def rope_frequencies(config: LlamaConfig) -> Float[Array, " half"]:
    """Angular frequency per pair of channels, in radians per position."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequency = config.rope_theta**-exponent
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "llama3":
        # Long waves are slowed by the factor, short ones kept, those between interpolated.
        turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        keep = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
        return frequency * (keep + (1 - keep) / scaling.factor)
    return frequency


def rotations(positions: Int[Array, "B L"], config: LlamaConfig, dtype: jnp.dtype) -> Rotation:
    """Cosines and sines of every position, computed in float32."""
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: Float[Array, "B L H E"], rotation: Rotation) -> Float[Array, "B L H E"]:
    """Rotary position embedding, halves paired (the Hub's layout)."""
    cos, sin = rotation
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


class LlamaAttention(Pinned):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        d, bias = config.hidden_size, config.attention_bias
        n_q = config.num_attention_heads * config.head_dim
        n_kv = config.num_key_value_heads * config.head_dim
        self.q_proj = Dense(d, n_q, keys[0], ("embed", "heads"), bias=bias)
        self.k_proj = Dense(d, n_kv, keys[1], ("embed", "kv"), bias=bias)
        self.v_proj = Dense(d, n_kv, keys[2], ("embed", "kv"), bias=bias)
        self.o_proj = Dense(n_q, d, keys[3], ("heads", "embed"), bias=bias)
        self.head_dim = config.head_dim
        self.implementation = config.attention

    def keys_values(
        self, x: Float[Array, "B L D"], rotation: Rotation, lora_scale: LoraScale
    ) -> KeysValues:
        """What these tokens are to others: rotated keys, and values."""
        b, n_tokens = x.shape[:2]
        k = self.k_proj(x, lora_scale).reshape(b, n_tokens, -1, self.head_dim)
        v = self.v_proj(x, lora_scale).reshape(b, n_tokens, -1, self.head_dim)
        k, v = (self.pins(a, "batch", "seq", "kv", None) for a in (rotate(k, rotation), v))
        return k, v

    def attend(
        self,
        x: Float[Array, "B T D"],
        kv: KeysValues,
        mask: Bool[Array, "B S"] | None,
        rotation: Rotation,
        lora_scale: LoraScale,
        *,
        causal: bool,
    ) -> Float[Array, "B T D"]:
        """What these tokens take from the keys and values of those they see."""
        b, n_tokens = x.shape[:2]
        q = self.q_proj(x, lora_scale).reshape(b, n_tokens, -1, self.head_dim)
        q = self.pins(rotate(q, rotation), "batch", "seq", "heads", None)
        out = attention(
            q, *kv, mask, causal=causal, implementation=self.implementation, rules=self.pins.rules
        )
        return self.o_proj(out.reshape(b, n_tokens, -1), lora_scale)


class LlamaMlp(nnx.Module):
    """The gated feed-forward layer."""

    def __init__(self, config: LlamaConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Dense(d, inner, keys[0], ("embed", "mlp"), bias=bias)
        self.up_proj = Dense(d, inner, keys[1], ("embed", "mlp"), bias=bias)
        self.down_proj = Dense(inner, d, keys[2], ("mlp", "embed"), bias=bias)
        self.act = config.hidden_act

    def __call__(self, x: Array, lora_scale: LoraScale) -> Array:
        gate = ACTIVATIONS[self.act](self.gate_proj(x, lora_scale))
        return self.down_proj(gate * self.up_proj(x, lora_scale), lora_scale)


class LlamaLayer(Pinned):
    """A pre-norm decoder layer."""

    def __init__(self, config: LlamaConfig, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, keys[0])
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMlp(config, keys[1])

    def __call__(
        self,
        x: Array,
        mask: Array | None,
        rotation: Rotation,
        lora_scale: LoraScale,
        last: Array | int | None = None,
    ) -> Array:
        """With ``last``, only that position of each row (or, a number, so many of the last columns)
        asks; all its predecessors answer."""
        y = self.input_layernorm(x)
        kv = self.self_attn.keys_values(y, rotation, lora_scale)
        if isinstance(last, int):
            x, y, cos, sin = (a[:, -last:] for a in (x, y, *rotation))
            return self.attend(x, y, kv, mask, (cos, sin), lora_scale, causal=True)
        if last is not None:
            before = jnp.arange(x.shape[1]) <= last[:, None]
            mask = before if mask is None else mask & before
            x, y = (self.pins.rows(take_rows(a, last)) for a in (x, y))
            cos, sin = (take_rows(a, last) for a in rotation)
            rotation = cos, sin
        return self.attend(x, y, kv, mask, rotation, lora_scale, causal=last is None)

    def attend(
        self,
        x: Array,
        y: Array,
        kv: KeysValues,
        mask: Array | None,
        rotation: Rotation,
        lora_scale: LoraScale,
        *,
        causal: bool,
    ) -> Array:
        """The layer on tokens ``x`` (``y`` is ``x`` normalized) that see these keys and values."""
        x = x + self.self_attn.attend(y, kv, mask, rotation, lora_scale, causal=causal)
        return x + self.mlp(self.post_attention_layernorm(x), lora_scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far, a column a token, in the embeddings' dtype.

    Attributes:
        keys: rotated keys of every layer, ``[n_layers, B, K, S, E]``: heads first, as the matrix
            products want them. Zeros where not yet filled.
        values: values of every layer, of the same shape.
        mask: ``[B, S]``, False at the prompts' padding and where not yet filled.
        length: int32, how many columns are filled: the place and position of the next token.
    """

    keys: Any
    values: Any
    mask: Any
    length: Any


class Llama(Pinned):
    """The decoder with its head."""

    def __init__(self, config: LlamaConfig, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        d, v = config.hidden_size, config.vocab_size
        self.embed_tokens = Embed(v, d, keys[0], ("vocab", "embed"))
        self.layers = stack(lambda k: LlamaLayer(config, k), keys[1], config.num_hidden_layers)
        self.norm = RMSNorm(d, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = (
            nnx.data(None) if tied else Linear(d, v, keys[2], ("embed", "vocab"), bias=False)
        )
        self.config = config

    def hidden(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"] | None,
        lora_scale: LoraScale = 1.0,
        last: Int[Array, " B"] | int | None = None,
    ) -> Float[Array, "B T D"]:
        """Final normalized states from token embeddings.

        Args:
            x: token embeddings.
            mask: False at padding, which may be on either side.
            lora_scale: weight of the adapter, per example if an array.
            last: positions, one a row; the last layer then works on these alone, and T is 1. Or
                how many of the last columns it works on: T.
        """
        config, rotation = self.config, self._rotation(x)
        n = config.num_hidden_layers - (last is not None)
        x, _ = run_stack(
            self.layers,
            n,
            lambda layer, x: layer(x, mask, rotation, lora_scale),
            x,
            remat=config.remat,
        )
        if last is not None:
            x = pick_layer(self.layers, n)(x, mask, rotation, lora_scale, last)
        return self.norm(x)

    def layer_states(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], at: Int[Array, " B"]
    ) -> Float[Array, "n_layers B D"]:
        """Every layer's output at one position of each row, before the final norm."""
        rotation = self._rotation(x)

        def body(x: Array, layer: LlamaLayer) -> tuple[Array, Array]:
            x = self.pins.rows(layer(self.pins.rows(x), mask, rotation, 1.0))
            return x, take_rows(x, at)[:, 0]

        return jax.lax.scan(body, x, self.layers)[1]

    def prefill(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        capacity: int,
        lora_scale: LoraScale = 1.0,
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """Reads prompts into a new cache.

        Args:
            x: token embeddings.
            mask: False at padding, which must be on the left: the next token follows column L.
            capacity: S, the columns of the cache, at least L.
            lora_scale: weight of the adapter, per example if an array.

        Returns:
            The final state of the last column, and the cache.
        """
        rotation = self._rotation(x)

        def body(x: Array, layer: LlamaLayer) -> tuple[Array, KeysValues]:
            x = self.pins.rows(x)
            y = layer.input_layernorm(x)
            kv = layer.self_attn.keys_values(y, rotation, lora_scale)
            x = layer.attend(x, y, kv, mask, rotation, lora_scale, causal=True)
            return self.pins.rows(x), kv

        y, filled = jax.lax.scan(body, x, self.layers)
        spare = capacity - x.shape[1]
        room = ((0, 0), (0, 0), (0, 0), (0, spare), (0, 0))
        keys, values = (self._stored(jnp.pad(a.swapaxes(2, 3), room)) for a in filled)
        cache = Cache(keys, values, jnp.pad(mask, ((0, 0), (0, spare))), jnp.int32(x.shape[1]))
        return self.norm(y[:, -1:]), cache

    def decode(
        self,
        x: Float[Array, "B 1 D"],
        cache: Cache,
        lora_scale: LoraScale = 1.0,
    ) -> tuple[Float[Array, "B 1 D"], Cache]:
        """One token more: its final state, and the cache with it.

        Args:
            x: the token's embedding.
            cache: the tokens before it, with a column to spare.
            lora_scale: weight of the adapter, per example if an array.
        """
        place, rotation = cache.length, self._rotation(x, cache.length)
        mask = cache.mask.at[:, place].set(True)

        # The cache is carried, not scanned over, so that a column is written in place.
        def body(carry: Any, at: Any) -> tuple[Any, None]:
            (x, *stored), (layer, i) = carry, at
            y = layer.input_layernorm(x)
            new = layer.self_attn.keys_values(y, rotation, lora_scale)
            keys, values = (
                self._stored(
                    jax.lax.dynamic_update_slice(a, b.swapaxes(1, 2)[None], (i, 0, 0, place, 0))
                )
                for a, b in zip(stored, new, strict=True)
            )
            kv = keys[i].swapaxes(1, 2), values[i].swapaxes(1, 2)
            x = layer.attend(x, y, kv, mask, rotation, lora_scale, causal=False)
            return (x, keys, values), None

        layers = self.layers, jnp.arange(self.config.num_hidden_layers)
        (x, keys, values), _ = jax.lax.scan(body, (x, cache.keys, cache.values), layers)
        return self.norm(x), Cache(keys, values, mask, place + 1)

    def head(self, x: Float[Array, "B L D"], columns: Array | None = None) -> Float[Array, "B L V"]:
        """Logits in float32, of all tokens or of the given ``columns`` alone."""
        if self.lm_head is None:
            table = self.embed_tokens.embedding[...]
            kernel = (table if columns is None else table[columns]).T
        else:
            kernel = self.lm_head.kernel[...]
            kernel = kernel if columns is None else kernel[:, columns]
        logits = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return self.pins.rows(logits, "vocab")

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        lora_scale: LoraScale = 1.0,
    ) -> Float[Array, "B L V"]:
        """Next-token logits at every position."""
        return self.head(self.hidden(self.embed_tokens(input_ids), mask, lora_scale))

    def _rotation(self, x: Array, first: int | Array = 0) -> Rotation:
        """Of consecutive columns, the position of the first given."""
        positions = jnp.broadcast_to(first + jnp.arange(x.shape[1]), x.shape[:2])
        cos, sin = rotations(positions, self.config, x.dtype)
        return self.pins(cos, "batch", "seq", None), self.pins(sin, "batch", "seq", None)

    def _stored(self, x: Float[Array, "N B K S E"]) -> Float[Array, "N B K S E"]:
        """Keys or values of a `Cache`, pinned."""
        return self.pins(x, "layers", "batch", "kv", "seq", None)


def take_rows(x: Array, index: Int[Array, " B"]) -> Array:
    """One position of each row, its axis kept: [B, L, ...] and [B] to [B, 1, ...]."""
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1)
