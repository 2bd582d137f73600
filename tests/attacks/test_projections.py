"""Balls, steps, starts and grey levels on random shapes, checked in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.problem import NORMS, Budget
from crossguard_jax.core.errors import UserError

DRAWS = range(6)
norms = pytest.mark.parametrize("norm", NORMS)
draws = pytest.mark.parametrize("seed", DRAWS)


def lengths(delta: np.ndarray, norm: str) -> np.ndarray:
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, np.inf if norm == "linf" else 2, axis=1)


class Drawn:
    """A random batch of grey pictures, radii (one a row, or one), and points far off."""

    def __init__(self, seed: int, norm: str):
        rng = np.random.default_rng(seed)
        self.rng, self.norm = rng, norm
        self.b = int(rng.integers(1, 5))
        shape = (self.b, *rng.integers(1, 9, rng.integers(1, 4)))
        levels = rng.choice([0, 1, 254, 255, *rng.integers(0, 256, 8)], shape)
        self.x = (levels / 255).astype(np.float32)
        largest = 0.3 if norm == "linf" else 2.0
        radii = rng.uniform(0, largest, self.b if seed % 2 else ())
        self.epsilon = np.asarray(radii, np.float32)
        self.budget = Budget(self.epsilon, norm)
        self.far = self.x + rng.normal(0, rng.choice([0.01, 0.3, 3]), shape).astype(np.float32)

    def assert_in_budget(self, x_adv: object) -> None:
        x_adv = np.asarray(x_adv)
        assert x_adv.shape == self.x.shape and x_adv.dtype == np.float32
        assert (x_adv >= 0).all() and (x_adv <= 1).all()
        delta = x_adv.astype(np.float64) - self.x
        assert (lengths(delta, self.norm) <= self.epsilon * (1 + 1e-6) + 1e-6).all()


@norms
@draws
def test_a_projected_point_is_in_its_ball_and_stays_where_it_is(seed: int, norm: str) -> None:
    drawn = Drawn(seed, norm)
    x = jnp.asarray(drawn.x)
    once = projections.project(jnp.asarray(drawn.far), x, drawn.budget)
    drawn.assert_in_budget(once)
    np.testing.assert_allclose(projections.project(once, x, drawn.budget), once, atol=1e-6)
    assert (projections.project(x, x, drawn.budget) == x).all()


@norms
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm: str) -> None:
    rng = np.random.default_rng(0)
    far = rng.normal(size=(1, 6)).astype(np.float32)
    x, budget = jnp.zeros((1, 6)), Budget(0.4, norm, low=-9.0, high=9.0)
    nearest = np.asarray(projections.project(jnp.asarray(far), x, budget))
    others = rng.uniform(-0.4, 0.4, (5000, 6))
    others = others[lengths(others, norm) <= 0.4]
    assert np.linalg.norm(far - nearest) <= np.linalg.norm(far - others, axis=1).min()


@norms
@draws
def test_a_start_is_in_its_ball(seed: int, norm: str) -> None:
    drawn = Drawn(seed, norm)
    start = projections.random_start(jnp.asarray(drawn.x), jax.random.key(seed), drawn.budget)
    drawn.assert_in_budget(start)
    assert (np.asarray(start) != drawn.x).any()


@norms
def test_starts_are_uniform_in_the_ball(norm: str) -> None:
    d, budget = 5, Budget(0.25, norm)
    x = jnp.full((4000, d), 0.5)
    delta = np.asarray(projections.random_start(x, jax.random.key(1), budget)) - 0.5
    # A ball of radius r holds (r / epsilon)**d of the volume, in any norm.
    assert stats.kstest((lengths(delta, norm) / 0.25) ** d, "uniform").pvalue > 0.01
    assert (np.abs(delta.mean(axis=0)) < 0.01).all()


@norms
def test_a_step_has_length_one_and_no_other_rises_faster(norm: str) -> None:
    rng = np.random.default_rng(2)
    gradient = rng.normal(size=(3, 2, 4)).astype(np.float32)
    step = np.asarray(projections.steepest(jnp.asarray(gradient), norm))
    np.testing.assert_allclose(lengths(step, norm), 1, rtol=1e-5)
    others = rng.uniform(-1, 1, (2000, 2, 4))
    others /= lengths(others, norm)[:, None, None]
    rise = (step * gradient).sum(axis=(1, 2))
    assert (rise[:, None] >= np.einsum("bij,nij->bn", gradient, others) - 1e-5).all()


@norms
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_gradient_of_any_size_gives_a_whole_step_and_none_gives_none(
    scale: float, norm: str
) -> None:
    gradient = np.random.default_rng(3).normal(size=(2, 50)).astype(np.float32)
    step = projections.steepest(jnp.asarray(gradient * np.float32(scale)), norm)
    np.testing.assert_allclose(lengths(np.asarray(step), norm), 1, rtol=1e-5)
    assert (projections.steepest(jnp.zeros((2, 50)), norm) == 0).all()


@norms
@draws
def test_a_saved_picture_is_in_its_ball_and_within_a_level(seed: int, norm: str) -> None:
    drawn = Drawn(seed, norm)
    x = jnp.asarray(drawn.x)
    for far in (drawn.far, 1e3 * (drawn.far - drawn.x) + drawn.x):
        x_adv = projections.project(jnp.asarray(far), x, drawn.budget)
        levels = projections.to_uint8(x, x_adv, drawn.budget)
        assert levels.dtype == jnp.uint8
        drawn.assert_in_budget(np.asarray(levels, np.float32) / 255)
        lost = np.abs(np.asarray(levels) / 255 - np.asarray(x_adv))
        assert (lost < 1.001 / 255).all()
        assert (projections.through_uint8(x, x_adv, drawn.budget) == levels / 255).all()


@norms
def test_a_saved_clean_picture_is_itself(norm: str) -> None:
    x = jnp.arange(256, dtype=jnp.float32)[None] / 255
    budget = Budget(0.1, norm)
    assert (projections.to_uint8(x, x, budget) == jnp.arange(256)).all()
    assert (projections.through_uint8(x, x, budget) == x).all()


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_saving_keeps_every_whole_level_of_a_budget(n: int) -> None:
    x = jnp.arange(256, dtype=jnp.float32)[None] / 255
    budget = Budget(n / 255)
    for sign in (-1, 1):
        x_adv = projections.project(x + sign, x, budget)
        expected = np.clip(np.arange(256) + sign * n, 0, 255)
        assert (projections.to_uint8(x, x_adv, budget) == expected).all()


def test_saving_wants_pixels_from_zero_to_one() -> None:
    x = jnp.zeros((1, 3))
    with pytest.raises(UserError, match="grey levels"):
        projections.to_uint8(x, x, Budget(0.1, low=-1.0))


@pytest.mark.parametrize(
    "x, message",
    [
        (np.full((2, 3), 1.5, np.float32), r"from 1\.5 to 1\.5"),
        (np.full((2, 3), -0.1, np.float32), "before the model's normalization"),
        (np.full((2, 3), np.nan, np.float32), "nan"),
        (np.zeros((2, 3), np.uint8), "uint8"),
        (np.zeros((2, 3), jnp.bfloat16), "leaves the ball"),
        (np.zeros(2, np.float32), "a batch"),
        (np.zeros((3, 3), np.float32), r"\[2\] for 3 inputs"),
    ],
    ids=["above", "below", "nan", "uint8", "bfloat16", "no batch", "radii"],
)
def test_pictures_that_are_none_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        projections.check_input(jnp.asarray(x), Budget(np.array([0.1, 0.2])))


def test_traced_pictures_are_checked_by_shape_and_type_alone() -> None:
    @jax.jit
    def checked(x: jax.Array) -> jax.Array:
        projections.check_input(x, Budget(0.1))
        return x

    assert checked(jnp.full((1, 2), 7.0)).shape == (1, 2)
    with pytest.raises(UserError, match="int32"):
        checked(jnp.zeros((1, 2), jnp.int32))
