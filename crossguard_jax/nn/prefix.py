"""Many continuations of one prompt: the prompt is read once, whoever continues it.

A search over texts (GCG, arXiv 2307.15043) evaluates hundreds of suffixes behind the same system
prompt, picture and question. Their keys and values lie in a `Cache` (from `Llama.prefill`), and all
the continuations of a row attend to the row's one copy of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.nn.layers import REMAT_POLICIES, pick_layer
from crossguard_jax.nn.llama import (
    Cache,
    Llama,
    LlamaLayer,
    Rotation,
    rotate,
    rotations,
    take_rows,
)
from crossguard_jax.nn.lora import LoraScale


def hidden(
    model: Llama,
    cache: Cache,
    x: Float[Array, "B T D"],
    lora_scale: LoraScale = 1.0,
    last: Int[Array, " B"] | None = None,
) -> Float[Array, "B N D"]:
    """Final normalized states of tokens that follow a cached prompt.

    Under `jax.vmap` over ``x`` alone the continuations share the cache, which is not copied.

    Args:
        model: the language model that filled the cache.
        cache: the prompts, filled to its last column (``capacity`` was their length).
        x: embeddings of the tokens that follow, none of them padding (what follows a row's last
            real token changes nothing before it).
        lora_scale: weight of the adapter, per example if an array; the one of the cache.
        last: places in T; the last layer then works on these alone, and one state a row returns.
    """
    positions = jnp.broadcast_to(cache.length + jnp.arange(x.shape[1]), x.shape[:2])
    rotation = rotations(positions, model.config, x.dtype)
    total = model.config.num_hidden_layers
    n = total - (last is not None)
    graphdef, adapters, base = nnx.split(model.layers, nnx.LoRAParam, ..., graph=False)

    def body(x: Array, at: tuple[Any, Any, Array, Array]) -> tuple[Array, None]:
        adapter, i, keys, values = at
        # Indexed, not sliced beforehand: see `layers.run_stack`.
        layer = nnx.merge(graphdef, adapter, jax.tree.map(lambda a: a[i], base))
        x = _layer(layer, model.pins.rows(x), (keys, values), cache.mask, rotation, lora_scale)
        return model.pins.rows(x), None

    policy = REMAT_POLICIES[model.config.remat]
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    some = jax.tree.map(lambda a: a[:n], (adapters, cache.keys, cache.values))
    x, _ = jax.lax.scan(body, x, (some[0], jnp.arange(n), *some[1:]))
    if last is not None:
        kv = cache.keys[n], cache.values[n]
        x = _layer(pick_layer(model.layers, n), x, kv, cache.mask, rotation, lora_scale, last)
    return model.norm(x)


def _layer(
    layer: LlamaLayer,
    x: Array,
    prompt: tuple[Array, Array],
    mask: Array,
    rotation: Rotation,
    lora_scale: LoraScale,
    last: Array | None = None,
) -> Array:
    """A layer on the tokens that follow, or on one of them that sees those before it."""
    attn, y = layer.self_attn, layer.input_layernorm(x)
    own = attn.keys_values(y, rotation, lora_scale)
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    if last is not None:
        x, y, cos, sin, places = (take_rows(a, last) for a in (x, y, *rotation, places))
        rotation = cos, sin
    q = attn.q_proj(y, lora_scale).reshape(*y.shape[:2], -1, attn.head_dim)
    attended = _attend(rotate(q, rotation), places, prompt, mask, own)
    x = x + attn.o_proj(attended.reshape(*y.shape[:2], -1), lora_scale)
    return x + layer.mlp(layer.post_attention_layernorm(x), lora_scale)


def _attend(
    q: Array, places: Array, prompt: tuple[Array, Array], mask: Array, own: tuple[Array, Array]
) -> Array:
    """Attention to a prompt's keys [B, K, S, E] and to the tokens' own [B, T, K, E], of which a
    query at place t sees those up to t.

    The two are scored apart, and one softmax runs over both: joined keys would be a copy of the
    prompt's for every continuation.
    """
    b, t, h, e = q.shape
    (keys, values), n_kv = prompt, prompt[0].shape[1]
    own_keys, own_values = (a.swapaxes(1, 2) for a in own)
    # [B, K, G * T, E]: the queries of one key head are one matrix, whatever the group size.
    q = q.reshape(b, t, n_kv, -1, e).transpose(0, 2, 3, 1, 4).reshape(b, n_kv, -1, e) * e**-0.5
    before = _product("bkle,bkse->bkls", q, keys)
    within = _product("bkle,bkse->bkls", q, own_keys)
    nothing = jnp.finfo(jnp.float32).min
    before = jnp.where(mask[:, None, None], before, nothing)
    visible = jnp.arange(own_keys.shape[2]) <= places[..., None]
    within = jnp.where(jnp.tile(visible, (1, h // n_kv, 1))[:, None], within, nothing)
    top = jax.lax.stop_gradient(jnp.maximum(before.max(-1), within.max(-1))[..., None])
    before, within = jnp.exp(before - top), jnp.exp(within - top)
    total = (before.sum(-1) + within.sum(-1))[..., None]
    out = _product("bkls,bkse->bkle", before.astype(q.dtype), values)
    out = out + _product("bkls,bkse->bkle", within.astype(q.dtype), own_values)
    # Divided last: there is less of it.
    out = (out / total).astype(q.dtype).reshape(b, h, t, e)
    return out.transpose(0, 2, 1, 3)


def _product(axes: str, x: Array, y: Array) -> Array:
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def last_logits(
    model: Llama,
    cache: Cache,
    ids: Int[Array, "B N T"],
    last: Int[Array, " B"],
    columns: Int[Array, " V"] | None = None,
    lora_scale: LoraScale = 1.0,
    chunk: int = 16,
) -> Float[Array, "B N V"]:
    """Logits after each of a row's N continuations.

    Args:
        model: the language model that filled the cache.
        cache: the prompts (see `hidden`).
        ids: the continuations; behind a searched suffix stands what follows it in the prompt.
        last: the place in T of each row's last real token; what lies behind is padding.
        columns: the tokens asked for; None for all.
        lora_scale: weight of the adapter, per example if an array.
        chunk: continuations run at a time; memory follows it, the result does not.
    """

    def one(ids: Array) -> Array:
        x = model.embed_tokens(ids).astype(cache.keys.dtype)
        return model.head(hidden(model, cache, x, lora_scale, last), columns)[:, 0]

    return jax.lax.map(one, ids.swapaxes(0, 1), batch_size=chunk).swapaxes(0, 1)


def one_hot_gradient(
    model: Llama,
    ids: Int[Array, "B T"],
    loss: Callable[[Float[Array, "B T D"]], Any],
) -> Float[Array, "B T V"]:
    """Gradient of every row's loss by the one-hot vectors of its tokens, float32.

    Args:
        model: gives the table of embeddings.
        ids: the tokens.
        loss: ``loss(embeddings) -> [B]``, such as a loss of `hidden`'s states; a row's by that
            row's embeddings alone.
    """
    table = model.embed_tokens.embedding[...]
    by_embedding = jax.grad(lambda x: jnp.asarray(loss(x)).sum())(table[ids])
    return jnp.matmul(by_embedding, table.T, preferred_element_type=jnp.float32)
