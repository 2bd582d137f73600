"""Stacks of layers: how many run, what is saved of them, what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.nn import lora
from crossguard_jax.nn.layers import (
    REMAT_POLICIES,
    LayerNorm,
    RMSNorm,
    pick_layer,
    run_stack,
)
from crossguard_jax.nn.llama import Llama, LlamaConfig, rotations
from tests.small_models import filled

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
)
TARGETS = r"layers\..*\.(q|v|down)_proj"


@pytest.fixture(scope="module")
def layers():
    """Four decoder layers with an adapter."""
    model = jax.eval_shape(lambda: Llama(CONFIG, jax.random.key(0)))
    model = jax.eval_shape(lambda m: lora.attach(m, TARGETS, 2, 4.0, jax.random.key(1)), model)
    return filled(model, 0).layers


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 16)), jnp.float32)


def step(layer, x):
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    return layer(x, None, rotations(positions, CONFIG, x.dtype), 1.0)


def one_by_one(layers, n, x):
    """The output of each of the first ``n`` layers, by a Python loop."""
    outputs = []
    for i in range(n):
        x = jax.jit(step)(pick_layer(layers, i), x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("n", [1, 3, 4])
def test_the_first_n_layers_run_and_every_output_can_be_had(layers, x, n):
    wanted = one_by_one(layers, n, x)
    y, every = run_stack(layers, n, step, x, collect=True)
    np.testing.assert_allclose(y, wanted[-1], atol=1e-5)
    np.testing.assert_allclose(every, jnp.stack(wanted), atol=1e-5)
    alone, nothing = run_stack(layers, n, step, x)
    assert np.array_equal(alone, y) and nothing is None


def test_no_layers_return_the_input(layers, x):
    y, every = run_stack(layers, 0, step, x, collect=True)
    assert np.array_equal(y, x) and every.shape == (0, *x.shape)


def test_layers_behind_the_last_one_asked_for_are_never_looked_at(layers, x):
    spoiled = jax.tree.map(lambda a: a.at[3:].set(jnp.nan), layers)
    assert np.array_equal(run_stack(spoiled, 3, step, x)[0], run_stack(layers, 3, step, x)[0])
    truncated = jax.tree.map(lambda a: a[:3], layers)
    np.testing.assert_allclose(
        run_stack(truncated, 3, step, x)[0], run_stack(layers, 3, step, x)[0], atol=1e-5
    )


def gradient_of(layers, remat, n):
    graphdef, adapters, frozen = lora.split(layers)

    def loss(adapters, x):
        model = lora.merge(graphdef, adapters, frozen)
        return (run_stack(model, n, step, x, remat=remat)[0] ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1))), adapters


@pytest.mark.parametrize("n, policies", [(4, list(REMAT_POLICIES)), (3, ["none", "names"])])
def test_every_remat_policy_gives_the_same_gradients(layers, x, n, policies):
    found = {}
    for remat in policies:
        gradient, adapters = gradient_of(layers, remat, n)
        found[remat] = jax.tree.leaves(gradient(adapters, x))
    for remat, grads in found.items():
        for a, b in zip(found["none"], grads, strict=True):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a), remat
    unused = [g[n:] for g in found["none"][:-1]]
    assert all(not np.asarray(g).any() for g in unused), "a layer that did not run has no gradient"


def saved(layers, x, remat):
    """What the forward pass keeps of each layer for the backward pass, in numbers a token."""
    graphdef, adapters, frozen = lora.split(layers)

    def forward(adapters, x):
        model = lora.merge(graphdef, adapters, frozen)
        return run_stack(model, 4, step, x, remat=remat)[0]

    # The linearized program's constants are the residuals; weights have no token axis.
    _, pull = jax.vjp(forward, adapters, x)
    kept = [r.shape for r in jax.tree.leaves(pull) if r.shape[:1] == (4,) and x.shape[1] in r.shape]
    return sum(int(np.prod(shape)) for shape in kept) / (4 * x.shape[0] * x.shape[1])


def products(layers, x, remat):
    """Matrix products in one layer's forward and backward pass."""
    gradient, adapters = gradient_of(layers, remat, 4)
    return str(jax.make_jaxpr(gradient)(adapters, x)).count("dot_general")


def test_each_policy_keeps_what_it_says_and_repeats_the_rest(layers, x):
    kept = {remat: saved(layers, x, remat) for remat in REMAT_POLICIES}
    repeated = {remat: products(layers, x, remat) for remat in REMAT_POLICIES}
    repeated = {remat: n - repeated["none"] for remat, n in repeated.items()}
    d, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    assert kept["full"] == d, "a layer's input alone"
    # The input, the seven projections and the context, less what no gradient needs.
    assert d < kept["names"] <= d + (5 * d + 2 * inner) + d < kept["none"]
    # The attention scores, and the narrow product of each of the three adapters.
    assert repeated["names"] <= 4 < repeated["full"]


def test_the_backward_pass_keeps_no_second_copy_of_the_weights(layers, x):
    graphdef, adapters, base = lora.split(layers)

    def loss(adapters, x):
        return run_stack(lora.merge(graphdef, adapters, base), 3, step, x)[0].sum()

    kept = jax.eval_shape(lambda a, x: jax.vjp(loss, a, x)[1], adapters, x)
    kernels = {a.shape[1:] for a in jax.tree.leaves(base) if a.ndim == 3}
    shapes = [a.shape for a in jax.tree.leaves(kept)]
    assert len(kernels) == 3 and (3, 2, 5, 16) in shapes
    assert not [shape for shape in shapes if shape[0:1] == (3,) and shape[1:] in kernels]


def test_norms_are_their_formulas_in_float32():
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(2.0, 3.0, (4, 6)), rng.normal(size=6), rng.normal(size=6)
    norm = LayerNorm(6, 1e-3)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    wanted = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted * scale + bias, atol=1e-5)
    root = RMSNorm(6, 1e-3)
    root.scale[...] = jnp.asarray(scale)
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(root(jnp.asarray(x)), wanted, atol=1e-5)
    for layer in (norm, root):
        assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
        # 300 + noise in bfloat16 has no variance left unless it is taken in float32.
        assert np.isfinite(layer(jnp.full((1, 6), 3e4, jnp.bfloat16)).astype(jnp.float32)).all()
