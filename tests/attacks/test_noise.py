"""Perturbations made on no model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.noise import noise
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Objective, Outcome
from crossguard_jax.core.typing import Array, PRNGKeyArray

KEY = jax.random.key(0)
B, D, EPSILON = 64, 20, 0.1


def plane(weights: np.ndarray, headroom: float = 0.5) -> Objective:
    """A linear model that is fooled by ``headroom`` of what the ball can do."""
    most = EPSILON * np.abs(weights).sum()

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        loss = (x - 0.5) @ jnp.asarray(weights, jnp.float32)
        return Outcome(loss, loss - headroom * most, jnp.full_like(loss, -1))

    return objective


X = jnp.full((B, D), 0.5)
RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=D)


def test_white_box_beats_noise() -> None:
    budget = Budget(EPSILON, steps=10)
    white, random = jax.jit(
        lambda b: (pgd(plane(TARGET), X, KEY, b).loss, noise(plane(TARGET), X, KEY, b).loss)
    )(budget)
    np.testing.assert_allclose(white, EPSILON * np.abs(TARGET).sum(), rtol=1e-4)
    assert (random < white).all() and abs(random.mean()) < 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_keeps_the_best_of_its_points_in_the_ball(norm: str) -> None:
    x = jnp.round(jax.random.uniform(KEY, (B, D)))
    run = jax.jit(lambda b: noise(plane(TARGET), x, KEY, b))
    one, many = run(Budget(EPSILON, norm)), run(Budget(EPSILON, norm, restarts=30))
    assert many.loss.mean() > one.loss.mean() + 0.02
    for found in (one, many):
        delta = np.asarray(found.x_adv - x)
        size = np.abs(delta).max(axis=1) if norm == "linf" else np.linalg.norm(delta, axis=1)
        assert (size <= EPSILON * (1 + 1e-5)).all() and (size > 0).all()
        assert (found.x_adv >= 0).all() and (found.x_adv <= 1).all()


def test_luck_among_many_points_is_no_success() -> None:
    def chance(x: Array, key: PRNGKeyArray) -> Outcome:
        margin = jax.random.uniform(key, (len(x),), minval=-0.8, maxval=0.2)
        return Outcome(margin, margin)

    x, budget = jnp.full((400, 2), 0.5), Budget(0.1, steps=1, restarts=10)
    found = jax.jit(lambda b: noise(chance, x, KEY, b))(budget)
    assert 0.12 < found.success.mean() < 0.28
