"""Perturbations made on other models, and on none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Objective, Outcome
from crossguard_jax.attacks.transfer import noise, transfer
from crossguard_jax.core.errors import UserError
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
LIKE, UNLIKE = TARGET + 0.5 * RNG.normal(size=D), -TARGET


def test_white_box_beats_transfer_beats_noise() -> None:
    budget = Budget(EPSILON, steps=10)
    target = plane(TARGET)

    @jax.jit
    def losses(budget: Budget) -> tuple:
        return (
            pgd(target, X, KEY, budget).loss,
            transfer(pgd, [plane(LIKE)], target, X, KEY, budget).loss,
            noise(target, X, KEY, budget).loss,
        )

    white, transferred, random = (np.asarray(loss) for loss in losses(budget))
    # A sign step along weights w' raises w by epsilon * sign(w') . w.
    np.testing.assert_allclose(white, EPSILON * np.abs(TARGET).sum(), rtol=1e-4)
    np.testing.assert_allclose(transferred, EPSILON * (np.sign(LIKE) @ TARGET), rtol=1e-4)
    assert (transferred < white).all() and (random < transferred).all() and abs(random.mean()) < 0.1


def test_each_row_keeps_the_source_that_does_most_to_the_target() -> None:
    half = jnp.arange(B) < B // 2

    def only(rows: Array) -> Objective:
        """Like the target in these rows and its opposite in the others; always sure of itself."""

        def objective(x: Array, key: PRNGKeyArray) -> Outcome:
            loss = jnp.where(rows, 1, -1) * ((x - 0.5) @ jnp.asarray(TARGET, jnp.float32))
            return Outcome(loss, jnp.ones(B))

        return objective

    sources = [only(half), only(~half)]
    budget = Budget(EPSILON, steps=5)
    run = jax.jit(
        lambda b, n: transfer(pgd, sources[:n], plane(TARGET), X, KEY, b), static_argnums=1
    )
    one, both = run(budget, 1), run(budget, 2)
    assert (one.success == half).all() and both.success.all()
    assert (one.loss[~half] < 0).all()
    assert (jnp.abs(both.x_adv - 0.5) <= EPSILON * (1 + 1e-6)).all()


def test_what_fools_the_source_alone_is_no_success() -> None:
    found = transfer(pgd, [plane(UNLIKE)], plane(TARGET), X, KEY, Budget(EPSILON, steps=5))
    assert not found.success.any() and (found.loss < 0).all()
    caught = lambda x, key: Outcome(x.sum(1), x.sum(1), jnp.ones(B))  # noqa: E731
    found = transfer(pgd, [plane(LIKE)], caught, X, KEY, Budget(EPSILON, steps=5))
    assert found.rejected.all() and not found.success.any()


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
    found = transfer(
        noise, [lambda x, key: Outcome(x.sum(1), x.sum(1))] * 10, chance, x, KEY, budget
    )
    assert 0.12 < found.success.mean() < 0.28


def test_no_source_is_refused() -> None:
    with pytest.raises(UserError, match="no source"):
        transfer(pgd, [], plane(TARGET), X, KEY, Budget(0.1))
