"""Sampling from a `Llama` (alone, or inside LLaVA) with a cache, and log-probs of what was sampled.

One temperature shapes both the draw and every log-probability; there is no top-k and no top-p, so
that what is sampled is what is scored (PPO's ratio is 1 before the first update).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray, Shaped
from crossguard_jax.nn.llama import Cache, Llama
from crossguard_jax.nn.lora import LoraScale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """Continuations of a batch of prompts.

    Attributes:
        tokens: ``[B, N]`` int32, ``pad_id`` after the end.
        mask: ``[B, N]``, True up to and with the token that ends the row.
        logprobs: ``[B, N]`` float32, of the tokens at the sampling temperature, in nats; 0 after
            the end.
    """

    tokens: Any
    mask: Any
    logprobs: Any


def sample(
    model: Llama,
    embeddings: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    lora_scale: LoraScale = 1.0,
) -> Sampled:
    """Continues every prompt until it ends; stops when all have.

    To be called inside `jax.jit`. A row's draws follow from ``key``, its index and its prompt
    alone: not from the other rows, nor from how the batch is spread over devices.

    Args:
        model: the language model; its adapter, if it has one, takes part.
        embeddings: the prompts, from ``model.embed_tokens(ids)`` or ``Llava.embed(ids, pixels)``.
        mask: False at padding, on either side. (A row of padding alone gets tokens of no meaning.)
        key: random key.
        max_new_tokens: N.
        eos_ids: tokens that end a row.
        pad_id: what fills a row after its end.
        temperature: divides the logits. At 0 the likeliest token is taken, and log-probabilities
            are those of temperature 1.
        lora_scale: weight of the adapter, per example if an array.
    """
    embeddings, mask = _flush_right(embeddings, mask)
    b, length = mask.shape
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))
    ends = jnp.array(eos_ids, jnp.int32)

    def put(t: Array, state: Array, alive: Array, out: Sampled) -> tuple[Array, Sampled]:
        """Draws column ``t``; who goes on, and what there is now."""
        logits = _tempered(model, state, temperature)[:, 0]
        token = _draw(logits, row_keys, t, temperature)
        out = _write(out, t, alive, token, _chosen(logits, token), pad_id)
        return alive & ~jnp.isin(token, ends), out

    def going(carry: tuple[Array, Array, Cache, Sampled]) -> Array:
        t, alive, _, _ = carry
        return (t < max_new_tokens) & alive.any()

    def step(carry: tuple[Array, Array, Cache, Sampled]) -> tuple[Array, Array, Cache, Sampled]:
        t, alive, cache, out = carry
        last = jax.lax.dynamic_slice_in_dim(out.tokens, t - 1, 1, axis=1)
        x = model.embed_tokens(last).astype(embeddings.dtype)
        state, cache = model.decode(x, cache, lora_scale)
        alive, out = put(t, state, alive, out)
        return t + 1, alive, cache, out

    out = _blank((b, max_new_tokens), pad_id)
    # The last token is drawn but never read, so it needs no column.
    capacity = length + max_new_tokens - 1
    state, cache = model.prefill(embeddings, mask, capacity, lora_scale)
    alive, out = put(jnp.int32(0), state, jnp.ones(b, bool), out)
    return jax.lax.while_loop(going, step, (jnp.int32(1), alive, cache, out))[-1]


def _blank(shape: tuple[int, int], pad_id: int) -> Sampled:
    return Sampled(
        jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)
    )


def _draw(
    logits: Float[Array, "B V"],
    row_keys: Shaped[Array, " B"],
    t: Int[Array, ""],
    temperature: float,
) -> Int[Array, " B"]:
    """Each row's token of column ``t``; the likeliest at temperature 0."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, t)
    return jax.vmap(jax.random.categorical)(keys, logits)


def _write(
    out: Sampled,
    t: Int[Array, ""],
    alive: Bool[Array, " B"],
    token: Int[Array, " B"],
    logprob: Float[Array, " B"],
    pad_id: int,
) -> Sampled:
    """``out`` with column ``t`` filled in, in the rows that have not ended."""
    return Sampled(
        out.tokens.at[:, t].set(jnp.where(alive, token.astype(jnp.int32), pad_id)),
        out.mask.at[:, t].set(alive),
        out.logprobs.at[:, t].set(jnp.where(alive, logprob, 0.0)),
    )


def completion_states(
    model: Llama,
    ids: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    n: int,
    lora_scale: LoraScale = 1.0,
) -> Float[Array, "B {n} D"]:
    """The final states that predict each row's last ``n`` tokens, by one full forward pass.

    Args:
        model: the language model.
        ids: prompts of ``S - n`` columns, padded on either side, then the tokens that were sampled.
        mask: False at padding, in the prompts and after the end.
        n: how many columns were sampled.
        lora_scale: weight of the adapter, per example if an array.
    """
    x = model.embed_tokens(ids)
    prompt, prompt_mask = _flush_right(x[:, :-n], mask[:, :-n])
    x = jnp.concatenate([prompt, x[:, -n:]], axis=1)
    mask = jnp.concatenate([prompt_mask, mask[:, -n:]], axis=1)
    # The last column predicts nothing that is asked for. It is run all the same, and so is one
    # before the first where that makes them even: an odd number of columns would keep a GPU from
    # its fastest attention.
    n_last = min(n + 1 + (n + 1) % 2, mask.shape[1])
    return model.hidden(x, mask, lora_scale, last=n_last)[:, -n - 1 : -1]


def logprobs_of(
    model: Llama,
    states: Float[Array, "B N D"],
    tokens: Int[Array, "B N"],
    temperature: float = 1.0,
) -> Float[Array, "B N"]:
    """Log-probabilities in nats of ``tokens``, each after its state (see `completion_states`).

    Args:
        model: gives the head.
        states: final states.
        tokens: what was sampled there.
        temperature: the one of `sample`.
    """
    return _chosen(_tempered(model, states, temperature), tokens)


def _tempered(
    model: Llama, states: Float[Array, "B N D"], temperature: float
) -> Float[Array, "B N V"]:
    logits = model.head(states)
    return logits if temperature in (0, 1) else logits / temperature


def _chosen(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-softmax at the tokens alone."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _flush_right(
    x: Float[Array, "B L D"], mask: Bool[Array, "B L"]
) -> tuple[Float[Array, "B L D"], Bool[Array, "B L"]]:
    """Rows turned so that each ends with its last real token, whichever side the padding was."""
    length = mask.shape[1]
    behind = jnp.argmax(mask[:, ::-1], axis=1)
    index = (jnp.arange(length) - behind[:, None]) % length
    rows = jnp.take_along_axis(x, index[..., None], axis=1)
    return rows, jnp.take_along_axis(mask, index, axis=1)
