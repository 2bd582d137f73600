"""Attacks under a detector, against linear programs that SciPy solves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from crossguard_jax.attacks.constrained import (
    best_in_box,
    both_gradients,
    lagrangian_pgd,
    orthogonal_pgd,
)
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from tests.attacks.linear_models import EPSILON, Linear, linear

KEY = jax.random.key(0)
attacks = pytest.mark.parametrize("attack", [orthogonal_pgd, lagrangian_pgd])


def run(attack: object, problem: Linear, budget: Budget) -> AttackResult:
    x = jnp.asarray(problem.x, jnp.float32)
    return jax.jit(lambda x, budget: attack(problem.objective, x, KEY, budget))(x, budget)


def test_plain_pgd_is_caught_where_the_lagrangian_reaches_the_most_that_is_not() -> None:
    problem, budget = linear(), Budget(EPSILON, steps=60)
    assert run(pgd, problem, budget).rejected.all()
    found = run(lagrangian_pgd, problem, budget)
    assert found.success.all() and not found.rejected.any()
    short = (problem.most() - found.loss) / problem.reach
    assert short.max() < 0.02 and short.min() > -1e-4


def test_in_l2_the_lagrangian_reaches_the_most_that_is_not_caught() -> None:
    problem = linear(seed=1)
    x = np.full_like(problem.x, 0.5)  # far from the range's ends
    alarm = problem.alarm / np.linalg.norm(problem.alarm, axis=1, keepdims=True)
    allowed = 0.3 * np.cos(np.arange(len(x)))  # of the ball: what the detector may rise
    along = (problem.rise * alarm).sum(axis=1)
    across = np.linalg.norm(problem.rise - along[:, None] * alarm, axis=1)
    # On the ball's cap: down the plane where it is reached, else straight up.
    capped = allowed * along + np.sqrt(1 - allowed**2) * across
    straight = np.linalg.norm(problem.rise, axis=1)
    most = 0.1 * np.where(along / straight > allowed, capped, straight)
    detector = -0.1 * allowed * np.linalg.norm(problem.alarm, axis=1)
    solvable = Linear(x, problem.rise, problem.alarm, 0.02 - most, detector)
    found = run(lagrangian_pgd, solvable, Budget(0.1, "l2", steps=60))
    assert found.success.all()
    assert np.abs((0.02 - np.asarray(found.loss)) / most).max() < 0.02


def test_orthogonal_steps_leave_a_linear_detector_where_it_was() -> None:
    problem = linear(seed=2, headroom=-0.2, low=-0.1)  # out of reach, so it climbs to the end
    scale = EPSILON * np.abs(problem.alarm).sum(axis=1)
    budget = Budget(EPSILON, random_start=False)
    found = run(orthogonal_pgd, problem, budget)
    after = problem.objective(found.x_adv, KEY)
    assert np.abs((after.detector - problem.detector) / scale).max() < 1e-5
    plain = problem.objective(run(pgd, problem, budget).x_adv, KEY)
    assert ((plain.detector - problem.detector) / scale).min() > 0.1
    # And nothing is given away: no input of the same detector has a greater margin.
    bounds = [np.maximum(-EPSILON, -problem.x), np.minimum(EPSILON, 1 - problem.x)]
    for i in range(4):
        best = linprog(
            -problem.rise[i],
            A_eq=problem.alarm[i : i + 1],
            b_eq=[0],
            bounds=np.stack([b[i] for b in bounds], axis=1),
        )
        assert problem.margin[i] - best.fun - found.loss[i] < 1e-3 * problem.reach[i]


def test_orthogonal_steps_in_l2_leave_a_linear_detector_where_it_was() -> None:
    problem = linear(seed=3, low=-0.1)
    problem = Linear(
        0 * problem.x + 0.5, problem.rise, problem.alarm, 0 * problem.margin - 9, problem.detector
    )
    found = run(orthogonal_pgd, problem, Budget(0.2, "l2", random_start=False))
    delta = np.asarray(found.x_adv) - problem.x
    lengths = np.linalg.norm(delta, axis=1) * np.linalg.norm(problem.alarm, axis=1)
    assert np.abs((delta * problem.alarm).sum(axis=1) / lengths).max() < 1e-4
    rest = problem.rise - problem.alarm * (
        (problem.rise * problem.alarm).sum(1) / (problem.alarm**2).sum(1)
    ).reshape(-1, 1)
    np.testing.assert_allclose(
        (delta * problem.rise).sum(axis=1), 0.2 * np.linalg.norm(rest, axis=1), rtol=1e-3
    )


def test_orthogonal_lowers_the_detector_of_what_is_fooled() -> None:
    problem = linear(seed=4, headroom=0.3)
    found = run(orthogonal_pgd, problem, Budget(EPSILON, steps=60))
    assert found.success.mean() > 0.8


@pytest.mark.parametrize("empty", ["none", "wanted", "kept", "box"])
def test_a_step_in_a_box_solves_its_linear_program(empty: str) -> None:
    rng = np.random.default_rng(5)
    wanted, kept = rng.normal(size=(2, 12, 30)) * 10 ** rng.uniform(-12, 3, (2, 12, 1))
    low, high = -rng.uniform(size=(12, 30)), rng.uniform(size=(12, 30))
    low[:, ::3], high[:, 1::3], kept[:, ::5] = 0, 0, 0
    for name, values in (("wanted", wanted), ("kept", kept), ("box", low), ("box", high)):
        if name == empty:
            values[:] = 0
    arrays = (jnp.asarray(v, jnp.float32) for v in (wanted, kept, low, high))
    step = np.asarray(best_in_box(*arrays))
    assert (step >= low - 1e-6).all() and (step <= high + 1e-6).all()
    for g in (wanted, kept):  # SciPy has absolute tolerances
        g /= np.maximum(np.abs(g).max(axis=1, keepdims=True), 1e-30)
    assert np.abs((kept * step).sum(axis=1)).max() < 1e-5
    for i in range(12):
        bounds = np.stack([low[i], high[i]], axis=1)
        best = linprog(-wanted[i], A_eq=kept[i : i + 1], b_eq=[0], bounds=bounds)
        assert (wanted[i] * step[i]).sum() > -best.fun - 1e-3


def bent(x: Array, key: PRNGKeyArray) -> Outcome:
    loss = jnp.tanh(x).sum(axis=(1, 2)) ** 2
    return Outcome(loss, loss - 1, jnp.sin(3 * x).sum(axis=(1, 2)))


def test_both_gradients_are_those_that_jax_takes_one_by_one() -> None:
    x = jax.random.uniform(KEY, (5, 2, 3))
    outcome, slopes = both_gradients(bent, x, KEY)
    for name, slope in zip(("loss", "detector"), slopes, strict=True):
        alone = jax.grad(lambda x, name=name: getattr(bent(x, KEY), name).sum())(x)
        np.testing.assert_allclose(slope, alone, rtol=1e-5)
        np.testing.assert_allclose(getattr(outcome, name), getattr(bent(x, KEY), name), rtol=1e-6)


@attacks
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_it_finds_stays_in_its_ball_and_range_and_a_radius_of_0_moves_nothing(
    attack: object, norm: str
) -> None:
    x = jnp.round(3 * jax.random.uniform(KEY, (6, 4, 4))) / 3
    radii = jnp.array([0, 0.01, 0.05, 0.1, 0.2, 0.4])
    objective = lambda x, key: Outcome(*(f[:6] for f in jax.tree.leaves(bent(x, key))))  # noqa: E731
    found = jax.jit(lambda b: attack(objective, x, KEY, b))(Budget(radii, norm, restarts=2))
    delta = np.asarray(found.x_adv - x).reshape(6, -1)
    size = np.abs(delta).max(axis=1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    assert (size <= np.asarray(radii) * (1 + 1e-5) + 1e-6).all() and (size[1:] > 0).all()
    assert (found.x_adv[0] == x[0]).all()
    assert (found.x_adv >= 0).all() and (found.x_adv <= 1).all()


@attacks
def test_another_radius_compiles_nothing(attack: object) -> None:
    chex.clear_trace_counter()  # it counts by the function's name
    x = jnp.full((2, 3, 3), 0.5)
    run = lambda budget: attack(bent, x, KEY, budget).loss  # noqa: E731
    compiled = jax.jit(chex.assert_max_traces(run, n=1))
    for epsilon in (0.0, 0.1, 0.2):
        assert jnp.isfinite(compiled(Budget(epsilon, steps=2))).all()


@attacks
def test_a_gradient_of_zeros_is_no_number_nowhere(attack: object) -> None:
    def flat(x: Array, key: PRNGKeyArray) -> Outcome:
        return Outcome(0 * x.sum(axis=1), x.sum(axis=1) - 1, 0 * x.sum(axis=1) - 1)

    found = attack(flat, jnp.full((2, 3), 0.5), KEY, Budget(0.1, steps=2))
    assert jnp.isfinite(found.x_adv).all() and found.success.all()


@attacks
def test_without_a_detector_they_are_refused(attack: object) -> None:
    def blind(x: Array, key: PRNGKeyArray) -> Outcome:
        return Outcome(x.sum(axis=1), x.sum(axis=1))

    with pytest.raises(UserError, match="no detector"):
        attack(blind, jnp.zeros((2, 3)), KEY, Budget(0.1))
