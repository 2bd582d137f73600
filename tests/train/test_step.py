"""The optimizer step: what it moves, what it leaves alone, its randomness, its schedule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import make_mesh
from crossguard_jax.train.optim import learning_rate, optimizer
from crossguard_jax.train.step import init_state, make_step

ROWS = {"x": jnp.arange(12.0).reshape(6, 2) / 10, "y": jnp.arange(6.0)}


def loss(w, frozen, rows, key):
    error = rows["x"] @ w + frozen - rows["y"]
    return (error**2).mean(), {"error": jnp.abs(error).mean(), "draw": jax.random.uniform(key)}


SGD = optax.sgd(0.1)


def test_a_step_moves_against_the_gradient_and_counts():
    w, frozen = jnp.array([1.0, -1.0]), jnp.float32(0.5)
    state, metrics = make_step(loss, SGD)(init_state(w, SGD, 0), frozen, ROWS)
    x, y = np.asarray(ROWS["x"], np.float64), np.asarray(ROWS["y"], np.float64)
    error = x @ [1.0, -1.0] + 0.5 - y
    gradient = 2 * x.T @ error / 6
    np.testing.assert_allclose(state.trainable, [1.0, -1.0] - 0.1 * gradient, rtol=1e-5)
    assert float(metrics["loss"]) == pytest.approx((error**2).mean(), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert int(state.step) == 1


def test_the_callers_arrays_outlive_the_donated_state():
    w, frozen = jnp.ones(2), jnp.float32(0.5)
    state = init_state(w, SGD, 0)
    after, _ = make_step(loss, SGD)(state, frozen, ROWS)
    assert state.trainable.is_deleted(), "the state is donated"
    assert not w.is_deleted() and not frozen.is_deleted() and not ROWS["x"].is_deleted()
    assert not np.array_equal(after.trainable, w)


def test_the_frozen_base_is_an_argument_and_no_constant_of_the_program():
    frozen = jnp.full((1000,), 2.0)

    def wide(w, frozen, rows, key):
        return ((rows["x"] @ w) * frozen.sum()).mean(), {}

    step = make_step(wide, SGD)
    state = init_state(jnp.ones(2), SGD, 0)
    jaxpr = jax.make_jaxpr(step)(state, frozen, ROWS)
    assert sum(np.size(c) for c in jaxpr.consts) < 100
    one, _ = step(state, frozen, ROWS)
    other, _ = step(init_state(jnp.ones(2), SGD, 0), 2 * frozen, ROWS)
    moved = [np.asarray(s.trainable) - 1 for s in (one, other)]
    np.testing.assert_allclose(moved[1], 2 * moved[0], rtol=1e-5)


def draws(seed, n, accumulate=1):
    step, state = make_step(loss, SGD, accumulate), init_state(jnp.ones(2), SGD, seed)
    found = []
    for _ in range(n):
        state, metrics = step(state, 0.0, ROWS)
        found.append(float(metrics["draw"]))
    return found


def test_every_step_draws_anew_and_a_seed_repeats_the_draws():
    first = draws(0, 4)
    assert len(set(first)) == 4
    assert first == draws(0, 4)
    assert not set(first) & set(draws(1, 4))
    key = jax.random.fold_in(jax.random.key(0), 2)
    assert first[2] == float(jax.random.uniform(key)), "the draw of a step needs no step before it"


def test_microbatches_draw_apart_and_their_metrics_are_averaged():
    key = jax.random.fold_in(jax.random.key(0), 0)
    apart = [float(jax.random.uniform(k)) for k in jax.random.split(key, 3)]
    assert draws(0, 1, accumulate=3) == pytest.approx([np.mean(apart)])
    values = []
    for n in (1, 3):
        step = make_step(loss, SGD, accumulate=n)
        _, metrics = step(init_state(jnp.ones(2), SGD, 0), 0.0, ROWS)
        values.append([float(metrics[k]) for k in ("loss", "error", "gradient_norm")])
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_is_given_what_its_schedule_says_of_the_step(accumulate):
    def weighted(w, frozen, rows, key, weight):
        return weight * (rows["x"] @ w).mean(), {"weight": weight}

    step = make_step(weighted, SGD, accumulate, schedule=lambda step: 10.0 * step)
    state, seen, moved = init_state(jnp.ones(2), SGD, 0), [], []
    for _ in range(3):
        before = np.asarray(state.trainable)
        state, metrics = step(state, 0.0, ROWS)
        seen.append(float(metrics["weight"]))
        moved.append(np.abs(np.asarray(state.trainable) - before).max())
    assert seen == [0.0, 10.0, 20.0]
    assert moved[0] == 0.0 and moved[2] == pytest.approx(2 * moved[1], rel=1e-4)


def test_a_state_on_a_mesh_of_one_is_the_state():
    adam = optax.adamw(1e-2)
    mesh = make_mesh(devices=jax.devices()[:1])
    placed = init_state(jnp.ones(2), adam, 3, mesh)
    chex.assert_trees_all_equal(init_state(jnp.ones(2), adam, 3), placed)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(placed))


def settings(**changes):
    config = {
        "learning_rate": 0.4,
        "schedule": "cosine",
        "warmup_steps": 4,
        "end_learning_rate": 0.1,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    return ConfigDict(config | changes)


@pytest.mark.parametrize(
    "schedule, middle, end", [("cosine", 0.25, 0.1), ("linear", 0.25, 0.1), ("constant", 0.4, 0.4)]
)
def test_the_rate_warms_up_and_comes_down(schedule, middle, end):
    rate = learning_rate(settings(schedule=schedule), steps=24)
    found = [float(rate(n)) for n in (0, 2, 4, 14, 24)]
    np.testing.assert_allclose(found, [0.0, 0.2, 0.4, middle, end], atol=1e-6)
    assert float(learning_rate(settings(warmup_steps=0), 24)(0)) == pytest.approx(0.4)


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="optim.schedule 'cosin' is none of constant, linear"):
        learning_rate(settings(schedule="cosin"), 24)
    with pytest.raises(UserError, match="optim.warmup_steps 24: must be from 0 to below"):
        learning_rate(settings(warmup_steps=24), 24)
    named = "cmcv.optim.warmup_steps 24: must be from 0 to below cmcv.train.steps 24$"
    with pytest.raises(UserError, match=named):
        optimizer(settings(warmup_steps=24), 24, "cmcv.optim", "cmcv.train.steps")


def test_the_optimizer_clips_by_the_global_norm_and_decays_weights():
    gradient, w = jnp.array([30.0, 40.0]), jnp.array([2.0, 2.0])
    for clip, seen in [(0.0, [30.0, 40.0]), (5.0, [3.0, 4.0]), (100.0, [30.0, 40.0])]:
        chain = optimizer(settings(clip_norm=clip), 24)
        _, state = chain.update(gradient, chain.init(w), w)
        np.testing.assert_allclose(state[1][0].mu, 0.1 * np.array(seen), rtol=1e-5)
    chain = optimizer(settings(weight_decay=0.5, warmup_steps=0, schedule="constant"), 24)
    updates, _ = chain.update(jnp.zeros(2), chain.init(w), w)
    np.testing.assert_allclose(updates, -0.4 * 0.5 * w, rtol=1e-5)
