"""Feature attacks, on features whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.embedding import distance, match_donors, pull, push
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

KEY = jax.random.key(0)
B, PIXELS, P, D = 8, 24, 3, 5
W = np.random.default_rng(0).normal(size=(PIXELS, P * D)) / PIXELS**0.5
X = jax.random.uniform(jax.random.key(1), (B, PIXELS))
metrics = pytest.mark.parametrize("metric", ["cosine", "l2"])


def features_of(x: Array, key: PRNGKeyArray) -> Array:
    return jnp.tanh((x - 0.5) @ jnp.asarray(W, x.dtype)).reshape(len(x), P, D)


def judged(x: Array, key: PRNGKeyArray) -> Outcome:
    """Fooled by what is bright, caught by what is brighter."""
    return Outcome(x.sum(axis=1), x.mean(axis=1) - 0.52, x.mean(axis=1) - 0.55)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
def test_distances_are_torchs(shape: tuple[int, ...]) -> None:
    a, b = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    cosine = 1 - torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=-1)
    expected = cosine.reshape(4, -1).mean(dim=1)
    np.testing.assert_allclose(distance(jnp.array(a), jnp.array(b)), expected, rtol=1e-5)
    apart = np.array([((a - b)[i] ** 2).sum() / (b[i] ** 2).sum() for i in range(4)])
    np.testing.assert_allclose(distance(jnp.array(a), jnp.array(b), "l2"), apart, rtol=1e-5)


@metrics
def test_features_of_zeros_have_finite_gradients(metric: str) -> None:
    slope = jax.grad(lambda a: distance(a, jnp.zeros((2, 3)), metric).sum())
    assert jnp.isfinite(slope(jnp.zeros((2, 3)))).all()
    assert jnp.isfinite(
        jax.grad(lambda a: distance(a, a[::-1], metric).sum())(jnp.ones((2, 3)))
    ).all()


@metrics
@pytest.mark.parametrize("attack", [pgd, apgd])
def test_push_leaves_the_clean_features_and_pull_reaches_the_donors(
    attack: object, metric: str
) -> None:
    clean = features_of(X, KEY)
    hidden = jnp.clip(X + 0.1 * jax.random.rademacher(KEY, X.shape, jnp.float32), 0, 1)
    donors = features_of(hidden, KEY)  # within reach
    run = jax.jit(lambda goal, b: attack(goal, X, KEY, b), static_argnums=0)
    budget = Budget(0.1, steps=40)
    far = features_of(run(push(features_of, clean, metric=metric), budget).x_adv, KEY)
    near = features_of(run(pull(features_of, donors, metric=metric), budget).x_adv, KEY)
    start = distance(clean, donors, metric)
    assert (distance(far, clean, metric) > 1.5 * start).all()
    assert (distance(near, donors, metric) < 0.1 * start).all()


def test_a_sign_step_moves_linear_features_as_far_as_the_ball_allows() -> None:
    one = lambda x, key: x @ jnp.asarray(W[:, :1], jnp.float32)  # noqa: E731
    x = jnp.full((B, PIXELS), 0.5)
    found = jax.jit(lambda b: pgd(push(one, one(x, KEY), metric="l2"), x, KEY, b))(Budget(0.1))
    moved = jnp.abs(one(found.x_adv, KEY) - one(x, KEY))[:, 0]
    np.testing.assert_allclose(moved, 0.1 * np.abs(W[:, 0]).sum(), rtol=1e-4)


@pytest.mark.parametrize("make", [push, pull])
def test_margin_and_detector_are_the_judged_objectives(make: object) -> None:
    aim = features_of(1 - X, KEY)
    outcome = make(features_of, aim, judged)(X, KEY)
    expected = judged(X, KEY)
    assert (outcome.margin == expected.margin).all()
    assert (outcome.detector == expected.detector).all()
    sign = 1 if make is push else -1
    np.testing.assert_allclose(outcome.loss, sign * distance(features_of(X, KEY), aim), rtol=1e-6)
    alone = make(features_of, aim)(X, KEY)
    assert (alone.loss == outcome.loss).all() and not alone.success.any()


def test_each_row_keeps_the_donor_that_fools_and_is_not_caught() -> None:
    # Matched, the first donor fools nothing, the second is caught, the third does it.
    means = jnp.array([0.5, 0.6, 0.535])
    order = jax.vmap(lambda key: jax.random.permutation(key, 3))(jax.random.split(KEY, B))
    donors = jnp.broadcast_to(means[order][..., None], (B, 3, PIXELS))
    pixels = lambda x, key: x  # noqa: E731
    x, budget = jnp.full((B, PIXELS), 0.5), Budget(0.12, steps=20)

    @jax.jit
    def run(budget: Budget, donors: Array) -> object:
        return match_donors(pgd, pixels, donors, judged, x, KEY, budget, "l2")

    found = run(budget, donors)
    assert found.success.all() and (jnp.abs(found.x_adv.mean(axis=1) - 0.535) < 0.01).all()
    assert (jnp.abs(found.x_adv - x) <= 0.12 * (1 + 1e-6)).all()
    alone = run(budget, donors[:, :1])
    assert (alone.success == (order[:, 0] == 2)).all()
    np.testing.assert_allclose(found.loss, judged(found.x_adv, KEY).loss, rtol=1e-6)


def test_what_cannot_be_compared_is_refused() -> None:
    aim = features_of(X, KEY)
    with pytest.raises(UserError, match="metric 'l1'"):
        push(features_of, aim, metric="l1")
    with pytest.raises(UserError, match="same layer"):
        pull(features_of, aim[:, :2])(X, KEY)
    with pytest.raises(UserError, match="same layer"):
        pull(features_of, aim[:2])(X, KEY)
    with pytest.raises(UserError, match="one or more a row"):
        match_donors(pgd, features_of, aim[:, None][:, :0], judged, X, KEY, Budget(0.1))
