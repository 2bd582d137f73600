"""Sampling: transformers' greedy text, the full forward's log-probs, softmax's frequencies."""

import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from crossguard_jax.hf.load import load_model
from crossguard_jax.nn import lora, sampling
from crossguard_jax.nn.llama import Llama
from tests.draws import few
from tests.hf import hub_models
from tests.small_models import filled, llava_config

PAD = 1
TARGETS = r"layers\..*_proj"


@functools.partial(jax.jit, static_argnames=("n", "eos", "temperature"))
def sample(model, ids, mask, key, scale=1.0, *, n, eos=(), temperature=1.0):
    return sampling.sample(
        model,
        model.embed_tokens(ids),
        mask,
        key,
        max_new_tokens=n,
        eos_ids=eos,
        pad_id=PAD,
        temperature=temperature,
        lora_scale=scale,
    )


@functools.partial(jax.jit, static_argnames="temperature")
def scored(model, ids, mask, out, scale=1.0, *, temperature=1.0):
    """Log-probs of the sampled tokens by one full forward pass."""
    ids = jnp.concatenate([ids, out.tokens], axis=1)
    mask = jnp.concatenate([mask, out.mask], axis=1)
    states = sampling.completion_states(model, ids, mask, out.tokens.shape[1], scale)
    return sampling.logprobs_of(model, states, out.tokens, temperature)


@pytest.fixture(scope="module")
def small():
    """A random Llama, without an adapter."""
    config = llava_config().text
    return filled(jax.eval_shape(lambda: Llama(config, jax.random.key(0))), 0)


call = jax.jit(Llama.__call__)


def with_adapter(model, seed=0):
    """The model with an adapter on every layer that changes something."""
    fresh = jax.eval_shape(lambda m: lora.attach(m, TARGETS, 4, 6.0, jax.random.key(0)), model)
    graphdef, adapters, _ = lora.split(fresh)
    return lora.merge(graphdef, filled(adapters, seed), lora.split(model)[2])


def prompts(seed, n_rows=4, length=9, side="left"):
    """Ids below 60, and which of them are real: the longest row full, the others ragged."""
    rng = np.random.default_rng(seed)
    mask = np.ones((n_rows, length), bool)
    for i, row in enumerate(mask[1:]):
        n = rng.integers(1, length - 1) if i else length - 1  # one row of a single token
        row[slice(0, n) if side == "left" else slice(length - n, length)] = False
    return jnp.asarray(rng.integers(4, 60, mask.shape)), jnp.asarray(mask)


def other_side(ids, mask):
    """Prompts padded on the left, padded on the right instead."""
    rows = [
        np.roll(row, real.sum()) for row, real in zip(*map(np.asarray, (ids, mask)), strict=True)
    ]
    return jnp.asarray(np.stack(rows)), mask[:, ::-1]


def generated(model, ids, mask, n, **more):
    """What transformers' greedy search adds to the prompts, and the logits it chose from."""
    out = model.generate(
        input_ids=torch.tensor(np.asarray(ids)),
        attention_mask=torch.tensor(np.asarray(mask, np.int64)),
        do_sample=False,
        max_new_tokens=n,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_logits=True,
        **more,
    )
    return out.sequences[:, ids.shape[1] :].numpy(), torch.stack(out.logits, 1)


def assert_greedy_is_theirs(ours, tokens, logits):
    steps = tokens.shape[1]
    assert np.array_equal(ours.tokens[:, :steps], tokens)
    assert not np.any(ours.mask[:, steps:]) and np.all(ours.tokens[:, steps:] == PAD)
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[..., None])[..., 0].numpy()
    mask = np.asarray(ours.mask[:, :steps])
    np.testing.assert_allclose(ours.logprobs[:, :steps][mask], wanted[mask], atol=1e-4)


@pytest.mark.parametrize("last", few([4, 1, 9], 1))
def test_the_last_columns_alone_have_the_full_models_states_and_gradients(small, last):
    graphdef, adapters, frozen = lora.split(with_adapter(small))
    ids, mask = prompts(3)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def asked(adapters, only):
        model = lora.merge(graphdef, adapters, frozen)
        states = model.hidden(model.embed_tokens(ids), mask, last=only)
        states = jnp.where(mask[:, -last:, None], states[:, -last:], 0)
        return (states**3).sum(), states

    (_, wanted), gradient = asked(adapters, None)
    (_, found), of_last = asked(adapters, last)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (of_last, gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("seed", few(range(4), 1))
def test_greedy_tokens_equal_transformers_and_rows_end_as_there(seed, tmp_path):
    rng = random.Random(seed)
    model = hub_models.draw_causal(rng)
    model.save_pretrained(tmp_path)
    model.generation_config.eos_token_id = None
    ours = load_model(tmp_path)
    ids, mask = prompts(seed)
    n, key = 12, jax.random.key(seed)
    tokens, _ = generated(model, ids, mask, n)
    assert len(np.unique(tokens)) > 3
    # Ends that are met: one in the third row after five tokens, one in the first after eight.
    eos = int(tokens[2, 4]), int(tokens[0, 7])
    tokens, logits = generated(model, ids, mask, n, eos_token_id=list(eos))
    for rows in ((ids, mask), other_side(ids, mask)):
        out = sample(ours, *rows, key, n=n, eos=eos, temperature=0.0)
        assert_greedy_is_theirs(out, tokens, logits)
    lengths = np.asarray(out.mask).sum(axis=1)
    assert lengths[2] <= 5 and lengths[0] <= 8


@pytest.mark.parametrize("seed", range(2))
def test_greedy_tokens_about_pictures_equal_transformers(seed, tmp_path):
    rng = random.Random(seed)
    model = hub_models.draw_llava(rng)
    model.save_pretrained(tmp_path)
    model.generation_config.eos_token_id = None
    ours = load_model(tmp_path)
    config, p = ours.config, ours.config.tokens_per_image
    ids, mask = prompts(seed, n_rows=3, length=p + 6)
    mask = mask | (jnp.arange(p + 6) >= 4)
    ids = ids.at[:, 5 : p + 5].set(config.image_token_id)
    torch.manual_seed(seed)
    pixels = torch.randn(3, 3, config.vision.image_size, config.vision.image_size)
    tokens, _ = generated(model, ids, mask, 8, pixel_values=pixels)
    eos = int(tokens[1, 3])
    tokens, logits = generated(model, ids, mask, 8, pixel_values=pixels, eos_token_id=eos)

    @jax.jit
    def greedy(model, ids, pixels, mask):
        return sampling.sample(
            model.language_model,
            model.embed(ids, pixels),
            mask,
            jax.random.key(0),
            max_new_tokens=8,
            eos_ids=(eos,),
            pad_id=PAD,
            temperature=0.0,
        )

    found, other = (greedy(ours, ids, sign * pixels.numpy(), mask) for sign in (1, -1))
    assert_greedy_is_theirs(found, tokens, logits)
    assert np.abs(found.logprobs - other.logprobs)[:, 0].max() > 1e-2, "the pictures are seen"


@pytest.mark.parametrize("seed", few(range(4), 1))
def test_cached_logprobs_equal_the_full_forward_with_the_adapter_on(seed, tmp_path):
    rng = random.Random(100 + seed)
    hub_models.draw_causal(rng).save_pretrained(tmp_path)
    model = with_adapter(load_model(tmp_path), seed)
    ids, mask = prompts(seed, side=rng.choice(["left", "right"]))
    temperature, n = rng.choice([0.6, 1.0, 1.7]), 10
    key, eos = jax.random.key(seed), tuple(range(0, 60, 10))
    out = sample(model, ids, mask, key, n=n, eos=eos, temperature=temperature)
    real = np.asarray(out.mask)
    assert real[:, 0].all() and real.sum() > 8

    again = np.asarray(scored(model, ids, mask, out, temperature=temperature))
    np.testing.assert_allclose(out.logprobs[real], again[real], atol=1e-5)
    assert np.all(np.asarray(out.logprobs)[~real] == 0)

    # Row by row without padding, the adapter folded into the weights, log-softmax in float64.
    folded = lora.fold(model)
    for i in range(2):
        said = np.asarray(out.tokens[i])
        row = np.concatenate([np.asarray(ids[i])[np.asarray(mask[i])], said])
        logits = np.asarray(call(folded, jnp.asarray(row)[None])[0], np.float64) / temperature
        logits -= logits.max(axis=1, keepdims=True)
        wanted = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[-n - 1 : -1]
        wanted = wanted[np.arange(n), said]
        np.testing.assert_allclose(out.logprobs[i][real[i]], wanted[real[i]], atol=1e-4)
    off = np.asarray(scored(model, ids, mask, out, 0.0, temperature=temperature))
    assert np.abs(off - again)[real].max() > 0.05, "the adapter takes part"


@pytest.mark.parity
def test_each_row_takes_its_own_adapter_scale(small):
    model, key = with_adapter(small), jax.random.key(3)
    ids, mask = prompts(0)
    scale = jnp.array([0.0, 1.0, 0.0, 0.5])
    mixed = sample(model, ids, mask, key, scale, n=6)
    bare = sample(small, ids, mask, key, n=6)
    for i in (0, 2):
        assert np.array_equal(mixed.tokens[i], bare.tokens[i])
    assert np.abs(mixed.logprobs - bare.logprobs)[1::2].max() > 0.05
    again = scored(model, ids, mask, mixed, scale)
    np.testing.assert_allclose(mixed.logprobs, again, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_frequencies_are_softmax_of_the_tempered_logits(small, temperature):
    n_rows = 6000
    ids, mask = prompts(1, n_rows=1)
    ids, mask = (jnp.repeat(a, n_rows, axis=0) for a in (ids, mask))
    out = sample(small, ids, mask, jax.random.key(7), n=2, temperature=temperature)
    first, second = np.asarray(out.tokens).T
    commonest = np.bincount(first).argmax()
    follows = second[first == commonest]
    row = jnp.append(ids[0], commonest)[None]
    logits = np.asarray(call(small, row)[0, -2:], np.float64) / temperature
    for drawn, tokens in zip(logits, (first, follows), strict=True):
        p = np.exp(drawn - drawn.max())
        expected = p / p.sum() * len(tokens)
        counts = np.bincount(tokens, minlength=len(p))
        # Rare tokens together, so that the statistic is chi-square's.
        rare = expected < max(5, np.sort(expected)[4])
        kept = [np.append(a[~rare], a[rare].sum()) for a in (counts, expected)]
        assert len(kept[0]) > 8
        assert chisquare(*kept).pvalue > 0.01


def test_a_row_is_padded_after_its_end_and_drawn_the_same_up_to_it(small):
    ids, mask = prompts(2, n_rows=16)
    key, eos = jax.random.key(1), tuple(range(0, 64, 9))
    endless, ending = (sample(small, ids, mask, key, n=12, eos=e) for e in ((), eos))
    assert np.all(endless.mask)
    tokens, real = np.asarray(ending.tokens), np.asarray(ending.mask)
    lengths = real.sum(axis=1)
    assert lengths.min() < 4 and lengths.max() == 12
    for row, wanted, here, n in zip(tokens, np.asarray(endless.tokens), real, lengths, strict=True):
        assert here[:n].all() and np.array_equal(row[:n], wanted[:n]) and np.all(row[n:] == PAD)
        assert not np.isin(row[: n - 1], eos).any()
        assert n == 12 or row[n - 1] in eos
    np.testing.assert_allclose(ending.logprobs, np.where(real, endless.logprobs, 0), atol=1e-6)


@pytest.mark.parametrize("every", few([1, 9], 1))
def test_no_step_is_run_once_all_rows_have_ended(small, monkeypatch, every):
    steps, decode = [], Llama.decode

    def counted(self, *args):
        jax.debug.callback(lambda: steps.append(1))
        return decode(self, *args)

    monkeypatch.setattr(Llama, "decode", counted)
    ids, mask = prompts(3)
    out = sample.__wrapped__(
        small, ids, mask, jax.random.key(0), n=50, eos=tuple(range(0, 64, every))
    )
    jax.effects_barrier()
    longest = int(np.asarray(out.mask).sum(axis=1).max())
    assert len(steps) == longest - 1 < 49
    assert (longest == 1) == (every == 1)


def test_a_rows_sample_does_not_depend_on_its_neighbours(small):
    ids, mask = prompts(4, n_rows=6)
    key = jax.random.key(5)
    together = sample(small, ids, mask, key, n=8)
    # Others beside the first two rows, one of them of nothing but padding.
    others = sample(small, ids.at[2:].set(7), mask.at[2:].set(True).at[3].set(False), key, n=8)
    few = sample(small, ids[:2], mask[:2], key, n=8)
    for out in (others, few):
        assert np.array_equal(out.tokens[:2], together.tokens[:2])
        np.testing.assert_allclose(out.logprobs[:2], together.logprobs[:2], atol=1e-5)
    assert np.isfinite(others.logprobs).all()
    assert not np.array_equal(others.tokens[2:], together.tokens[2:])


def test_every_row_and_step_and_key_draws_anew(small):
    ids, mask = prompts(5, n_rows=1)
    ids, mask = (jnp.repeat(a, 8, axis=0) for a in (ids, mask))
    one, again, other = (
        np.asarray(sample(small, ids, mask, jax.random.key(seed), n=8).tokens) for seed in (0, 0, 1)
    )
    assert np.array_equal(one, again)
    assert len({row.tobytes() for row in (*one, *other)}) == 16
    flat = jax.tree.map(jnp.zeros_like, small)  # every token as likely as any other, always
    drawn = np.asarray(sample(flat, ids, mask, jax.random.key(0), n=8).tokens)
    assert len(np.unique(drawn)) > 30


def test_the_cache_has_the_embeddings_dtype(small):
    x = jnp.zeros((2, 5, small.config.hidden_size), jnp.bfloat16)
    mask = jnp.ones((2, 5), bool)
    state, cache = jax.eval_shape(lambda: small.prefill(x, mask, 7))
    assert {cache.keys.dtype, cache.values.dtype, state.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert cache.keys.shape == (3, 2, 2, 7, 12)


MESH = """
import json
import jax, jax.numpy as jnp, numpy as np
from crossguard_jax.core.sharding import batch_sharding, make_mesh, shardings
from crossguard_jax.nn import lora, sampling
from crossguard_jax.nn.llama import Llama
from tests.small_models import filled, llava_config

def make():
    model = Llama(llava_config().text, jax.random.key(0))
    return lora.attach(model, ".*_proj", 4, 6.0, jax.random.key(0))

model = filled(jax.eval_shape(make), 0)
ids = jnp.asarray(np.random.default_rng(0).integers(4, 60, (8, 9)))
mask = jnp.arange(9) >= jnp.arange(8)[:, None]

@jax.jit
def run(model, ids, mask, key):
    return sampling.sample(
        model, model.embed_tokens(ids), mask, key,
        max_new_tokens=16, eos_ids=(7, 8), pad_id=1, temperature=0.9,
    )

def on(mesh):
    rows = jax.device_put((ids, mask), batch_sharding(mesh))
    out = run(jax.device_put(model, shardings(model, mesh)), *rows, jax.random.key(3))
    return {"tokens": out.tokens.tolist(), "logprobs": out.logprobs.tolist(),
            "devices": len(out.tokens.sharding.device_set)}

one = make_mesh(devices=jax.devices()[:1])
print(json.dumps([on(one), on(make_mesh(data=8)), on(make_mesh(data=2, fsdp=2, tensor=2))]))
"""


@pytest.mark.devices
def test_eight_devices_sample_the_tokens_of_one(run_with_devices):
    one, *many = json.loads(run_with_devices(8, MESH).splitlines()[-1])
    assert len({token for row in one["tokens"] for token in row}) > 20
    for found in many:
        assert found["devices"] == 8
        assert found["tokens"] == one["tokens"]
        np.testing.assert_allclose(found["logprobs"], one["logprobs"], atol=1e-4)
