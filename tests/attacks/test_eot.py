"""Random objectives: averages over draws, judged on draws that the search has not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.eot import eot
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.square import square
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray


def noise(x: Array, key: PRNGKeyArray) -> Outcome:
    """Fooled by chance alone, one time in five, whatever the input."""
    margin = jax.random.uniform(key, x.shape[:1], minval=-0.8, maxval=0.2)
    return Outcome(margin + 0 * x.sum(axis=tuple(range(1, x.ndim))), margin, -margin)


def test_every_field_is_the_mean_of_its_draws() -> None:
    x, key = jnp.zeros((4, 2)), jax.random.key(0)
    averaged = eot(noise, 7)(x, key)
    draws = [noise(x, k) for k in jax.random.split(key, 7)]
    for name in ("loss", "margin", "detector"):
        expected = np.mean([np.asarray(getattr(draw, name)) for draw in draws], axis=0)
        np.testing.assert_allclose(getattr(averaged, name), expected, rtol=1e-6)


def test_a_detector_that_is_none_stays_none() -> None:
    averaged = eot(lambda x, key: Outcome(x.sum(1), x.sum(1)), 2)(
        jnp.ones((3, 2)), jax.random.key(0)
    )
    assert averaged.detector is None and averaged.success.all()


@pytest.mark.parametrize("attack", [pgd, apgd, square], ids=lambda a: a.__name__)
def test_luck_in_the_search_is_no_success(attack: object) -> None:
    x = jnp.full((400, 1, 4, 4), 0.5)
    budget = Budget(0.1, steps=10)
    result = jax.jit(attack, static_argnums=0)(noise, x, jax.random.key(1), budget)
    # The best of ten draws succeeds nine times in ten; a fresh one, one time in five.
    assert 0.12 < float(result.success.mean()) < 0.28


def test_averaging_finds_the_slope_that_noise_hides() -> None:
    def hidden(x: Array, key: PRNGKeyArray) -> Outcome:
        slopes = 1 + 6 * jax.random.normal(key, x.shape)
        loss = jnp.sum(slopes * x, axis=1)
        return Outcome(loss, jnp.sum(x - 0.5, axis=1))

    x, budget = jnp.full((64, 32), 0.5), Budget(0.1, "l2", steps=8, random_start=False)
    run = jax.jit(pgd, static_argnums=(0, 4))
    gains = [
        float((run(objective, x, jax.random.key(2), budget, "last").x_adv - x).sum(1).mean())
        for objective in (hidden, eot(hidden, 32))
    ]
    most = 0.1 * 32**0.5
    assert gains[1] > 0.85 * most > 1.2 * gains[0] > 0


@pytest.mark.parametrize("samples", [0, -1, True])
def test_no_draws_are_refused(samples: object) -> None:
    with pytest.raises(UserError, match="samples"):
        eot(noise, samples)
