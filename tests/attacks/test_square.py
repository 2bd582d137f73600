"""The square attack against torchattacks' Square, on the same weights and the same pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks

from crossguard_jax.attacks import square as ours
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.square import square
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from tests.attacks.small_classifier import assert_as_strong, robust, robust_against
from tests.draws import few

pytestmark = pytest.mark.usefixtures("compiled_as_users_do")

RADII = {"linf": 12 / 255, "l2": 1.8}  # without gradients it takes more to turn half
SHAPES = [(2, 1, 9, 23), (3, 3, 16, 16), (2, 2, 24, 7), (1, 3, 4, 4)]
norms = pytest.mark.parametrize("norm", RADII)


def theirs(model: object = None, norm: str = "linf", **options: object) -> object:
    name = {"linf": "Linf", "l2": "L2"}[norm]
    return torchattacks.Square(model or torch.nn.Linear(1, 1), name, RADII[norm], **options)


@pytest.mark.parametrize("norm", few(RADII, 1))
@pytest.mark.parametrize("n", few([200, 1000], 1))
def test_square_is_as_strong_as_torchattacks(norm: str, n: int) -> None:
    left = robust(square, "margin", Budget(RADII[norm], norm, steps=200), n)
    left_by_theirs = robust_against(lambda model: theirs(model, norm, n_queries=200), n)
    assert_as_strong(left, left_by_theirs)


@pytest.mark.parametrize("side", [3, 4, 5, 9, 12])
def test_a_bump_is_torchattacks_bump(side: int) -> None:
    their_bump = theirs().eta(side).numpy()  # turned, or not, by chance
    mine = ours.bump(side)
    apart = [np.abs(candidate - their_bump).max() for candidate in (mine, mine.T)]
    assert min(apart) < 1e-6
    assert np.linalg.norm(mine) == pytest.approx(1)


@pytest.mark.parametrize("steps", [1, 37, 1000])
def test_squares_shrink_as_in_torchattacks(steps: int) -> None:
    schedule = theirs(n_queries=steps)
    shares = np.array([schedule.p_selection(i) for i in range(steps)])
    expected = np.maximum(np.round(np.sqrt(shares * 20 * 30)), 1)
    np.testing.assert_array_equal(
        ours.sides(Budget(0.1, steps=steps), 20, 30), expected.clip(1, 20)
    )
    for_l2 = ours.sides(Budget(0.1, "l2", steps=steps), 20, 30)
    assert (for_l2[for_l2 < 20] % 2 == 1).all() and for_l2.min() >= 3


def graded(x: Array, key: PRNGKeyArray) -> Outcome:
    """How far the left half is above the right, in steps: there is no slope to follow."""
    half = x.shape[3] // 2
    contrast = x[..., :half].mean(axis=(1, 2, 3)) - x[..., half:].mean(axis=(1, 2, 3))
    return Outcome(jnp.floor(1000 * contrast), contrast - 1)


@norms
@pytest.mark.parametrize(
    "shape", few([(2, 1, 9, 23), (3, 3, 16, 16), (2, 2, 24, 7), (1, 3, 4, 4)], 1)
)
def test_it_climbs_without_a_gradient_inside_its_ball(shape: tuple[int, ...], norm: str) -> None:
    rng = np.random.default_rng(0)
    x = np.round(255 * rng.uniform(0, 1, shape)).astype(np.float32) / 255
    epsilon = 0.3 if norm == "linf" else 0.15 * np.sqrt(x[0].size)
    budget = Budget(np.full(shape[0], epsilon), norm, steps=150)
    run = jax.jit(square, static_argnums=0)
    result = run(graded, jnp.asarray(x), jax.random.key(0), budget)
    x_adv = np.asarray(result.x_adv)
    assert (x_adv >= 0).all() and (x_adv <= 1).all()
    delta = (x_adv.astype(np.float64) - x).reshape(len(x), -1)
    reached = np.linalg.norm(delta, np.inf if norm == "linf" else 2, axis=1)
    assert (reached <= epsilon * (1 + 1e-6)).all() and (reached > 0.8 * epsilon).all()
    rise = (result.loss - graded(jnp.asarray(x), jax.random.key(0)).loss) / 1000
    assert (rise > (0.12 if norm == "linf" else 0.04)).all()


def test_it_stops_once_every_row_is_a_success() -> None:
    def won(x: Array, key: PRNGKeyArray) -> Outcome:
        return Outcome(x.sum(axis=(1, 2, 3)), jnp.ones(len(x)))

    x, budget = jnp.full((2, 1, 5, 5), 0.5), Budget(0.1, steps=50_000)
    result = square(won, x, jax.random.key(0), budget)
    assert result.success.all()
    # The start's stripes, untouched: no query followed.
    assert (result.x_adv == result.x_adv[:, :, :1]).all()


def test_a_batch_that_holds_no_pictures_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[B, C, X, Y\]"):
        square(graded, jnp.zeros((2, 3)), jax.random.key(0), Budget(0.1))
