"""Continuations behind a cached prompt: the full forward's states, gradients, and fewer FLOPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.nn import lora, prefix
from crossguard_jax.nn.llama import Llama
from tests.draws import few
from tests.small_models import batch, filled, llava, llava_config, on_device

B, S, N, T = 3, 7, 5, 4


@pytest.fixture(scope="module")
def small():
    """A random Llama with an adapter on every layer that changes something."""
    config = llava_config().text
    model = filled(jax.eval_shape(lambda: Llama(config, jax.random.key(0))), 0)
    fresh = jax.eval_shape(
        lambda m: lora.attach(m, r"layers\..*_proj", 4, 6.0, jax.random.key(0)), model
    )
    graphdef, adapters, _ = lora.split(fresh)
    return lora.merge(graphdef, filled(adapters, 1), lora.split(model)[2])


def draw(seed):
    """Prompts with padding on the left, continuations, and each row's last real place in them."""
    rng = np.random.default_rng(seed)
    mask = np.arange(S) >= np.array([0, 3, rng.integers(1, S)])[:, None]
    prompt, ids = (rng.integers(4, 60, shape) for shape in ((B, S), (B, N, T)))
    return tuple(map(jnp.asarray, (prompt, mask, ids, rng.integers(1, T, B))))


@functools.partial(jax.jit, static_argnames="chunk")
def cached(model, prompt, mask, ids, last, scale=1.0, columns=None, *, chunk=16):
    _, cache = model.prefill(model.embed_tokens(prompt), mask, S, scale)
    return prefix.last_logits(model, cache, ids, last, columns, scale, chunk)


@jax.jit
def full(model, prompt, mask, ids, last, scale=1.0):
    """Every continuation behind a prompt of its own, read anew."""
    repeated = jnp.repeat(prompt, N, axis=0), jnp.repeat(mask, N, axis=0)
    rows = jnp.concatenate([repeated[0], ids.reshape(B * N, T)], axis=1)
    seen = jnp.concatenate([repeated[1], jnp.ones((B * N, T), bool)], axis=1)
    scale = jnp.repeat(scale, N) if jnp.ndim(scale) else scale
    logits = model(rows, seen, scale).reshape(B, N, S + T, -1)
    return jnp.take_along_axis(logits, (S + last)[:, None, None, None], axis=2)[:, :, 0]


@pytest.mark.parametrize("seed", few(range(3), 1))
def test_logits_behind_a_cached_prompt_equal_the_full_forward(small, seed):
    drawn, scale = draw(seed), jnp.array([1.0, 0.0, 0.5])
    wanted = full(small, *drawn, scale)
    found = cached(small, *drawn, scale)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    columns = jnp.array([9, 5])
    some = cached(small, *drawn, scale, columns, chunk=2)
    np.testing.assert_allclose(some, wanted[..., columns], atol=1e-5 * np.abs(wanted).max())


def test_a_picture_is_read_once_for_all_continuations():
    model, rows = llava(1), on_device(batch(llava_config(), n=B))
    prompt, mask = rows["input_ids"], jnp.ones((B, rows["input_ids"].shape[1]), bool)
    _, _, ids, last = draw(9)

    @jax.jit
    def found(model, pixels):
        x, text = model.embed(prompt, pixels), model.language_model
        cache = text.prefill(x, mask, x.shape[1])[1]
        return prefix.last_logits(text, cache, ids, last)

    @jax.jit
    def wanted(model, pixels):
        behind = jnp.concatenate([prompt, ids[:, 1]], axis=1)
        logits = model(behind, pixels)[:, prompt.shape[1] :]
        return jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]

    pixels = rows["pixel_values"]
    logits = wanted(model, pixels)
    np.testing.assert_allclose(found(model, pixels)[:, 1], logits, atol=1e-5 * np.abs(logits).max())
    assert np.abs(logits - wanted(model, -pixels)).max() > 0.1, "the pictures are seen"


@pytest.mark.parity
def test_one_hot_gradients_behind_a_cached_prompt_equal_those_of_the_full_forward(small):
    prompt, mask, ids, last = draw(5)
    ids, rows = ids[:, 0], jnp.arange(B)
    table = small.embed_tokens.embedding[...]

    def loss(logits):
        return jax.nn.log_softmax(logits)[:, 7]

    @jax.jit
    def found(model):
        cache = model.prefill(model.embed_tokens(prompt), mask, S)[1]
        return prefix.one_hot_gradient(
            model, ids, lambda x: loss(model.head(prefix.hidden(model, cache, x))[rows, last])
        )

    @jax.jit
    @jax.grad
    def wanted(one_hot, model):
        x = jnp.concatenate([model.embed_tokens(prompt), one_hot @ table], axis=1)
        seen = jnp.concatenate([mask, jnp.ones_like(ids, bool)], axis=1)
        return loss(model.head(model.hidden(x, seen))[rows, S + last]).sum()

    gradient = wanted(jax.nn.one_hot(ids, len(table)), small)
    np.testing.assert_allclose(found(small), gradient, atol=1e-5 * np.abs(gradient).max())
    assert all(np.abs(gradient[i, : last[i] + 1]).max() > 1e-3 for i in range(B))
    assert all(not np.any(gradient[i, last[i] + 1 :]) for i in range(B)), "nothing looks back"


def test_a_long_prompt_costs_once_what_it_would_cost_every_continuation(small):
    """Counted in XLA's FLOPs: 16 tokens behind 64, eight times."""
    prompt, ids = jnp.zeros((2, 64), int), jnp.zeros((2, 8, 16), int)
    mask, last = jnp.ones((2, 64), bool), jnp.array([15, 15])

    def with_cache(model):
        cache = model.prefill(model.embed_tokens(prompt), mask, 64)[1]
        return prefix.last_logits(model, cache, ids, last, jnp.array([5, 9]), chunk=8)

    def without(model):
        rows = jnp.concatenate([jnp.repeat(prompt, 8, axis=0), ids.reshape(16, 16)], axis=1)
        x = model.hidden(model.embed_tokens(rows), None)[:, -1:]
        return model.head(x, jnp.array([5, 9]))

    flops = [
        jax.jit(f).lower(small).compile().cost_analysis()["flops"] for f in (with_cache, without)
    ]
    assert flops[0] < 0.5 * flops[1], flops
