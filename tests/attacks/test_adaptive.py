"""Objectives that know the detector, on problems whose answers are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.adaptive import (
    candidate,
    check_differentiable,
    denial,
    pinned,
    selective,
    weighted,
    weighted_search,
)
from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Outcome
from crossguard_jax.attacks.search import better
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from tests.attacks.linear_models import EPSILON, linear

KEY = jax.random.key(0)
either = pytest.mark.parametrize("attack", [pgd, apgd])


def bent(x: Array, key: PRNGKeyArray) -> Outcome:
    """Fooled by what is bright, caught by what is uneven."""
    loss = jnp.tanh(x).sum(axis=1)
    return Outcome(loss, loss - 1, (x**3).sum(axis=1) - 1)


def slope(objective: object, field: str, x: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(getattr(objective(x, KEY), field)))(x)


def blind(x: Array, key: PRNGKeyArray) -> Outcome:
    return Outcome(x.sum(axis=1), x.sum(axis=1))


def test_each_row_weighs_its_detector_by_its_own_weight() -> None:
    x = jax.random.uniform(KEY, (3, 4))
    weights = jnp.array([0.0, 1.0, 10.0])
    wrapped = weighted(bent, weights)
    plain, got = bent(x, KEY), wrapped(x, KEY)
    np.testing.assert_allclose(got.loss, plain.loss - weights * plain.detector, rtol=1e-6)
    assert (got.margin == plain.margin).all() and (got.detector == plain.detector).all()
    expected = slope(bent, "loss", x) - weights[:, None] * slope(bent, "detector", x)
    np.testing.assert_allclose(slope(wrapped, "loss", x), expected, rtol=1e-5)


@either
def test_selective_succeeds_where_the_plain_attack_is_always_caught(attack: object) -> None:
    problem = linear(seed=7, headroom=0.5)
    budget = Budget(EPSILON, steps=60, random_start=False)
    x = jnp.asarray(problem.x, jnp.float32)
    run = jax.jit(lambda objective, x, b: attack(objective, x, KEY, b), static_argnums=0)
    plain = run(problem.objective, x, budget)
    assert plain.rejected.all() and not plain.success.any()
    assert run(selective(problem.objective), x, budget).success.mean() > 0.8


def test_selective_climbs_the_loss_and_then_down_the_detector() -> None:
    x = jnp.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]])
    wrapped = selective(bent)
    assert ((bent(x, KEY).margin > 0) == jnp.array([False, True])).all()
    got = slope(wrapped, "loss", x)
    up, down = slope(bent, "loss", x), -slope(bent, "detector", x)
    for row, along in ((0, up), (1, down)):
        cosine = got[row] @ along[row] / jnp.linalg.norm(got[row]) / jnp.linalg.norm(along[row])
        assert cosine > 1 - 1e-6
    assert wrapped(x, KEY).loss[1] > wrapped(x, KEY).loss[0]
    # With slack the second row is not fooled enough yet.
    assert (slope(selective(bent, slack=1.0), "loss", x)[1] > 0).all()


def test_selective_never_prefers_what_is_not_fooled() -> None:
    margin, detector = jnp.array([-1e-3, 1e-3]), jnp.array([-1e6, 1e6])
    outcome = selective(lambda x, key: Outcome(1e6 * jnp.ones(2), margin, detector))
    loss = outcome(jnp.zeros((2, 1)), KEY).loss
    assert loss[1] > loss[0] and jnp.isfinite(loss).all()


def test_a_search_over_weights_finds_one_for_each_row_whatever_the_scales() -> None:
    problem = linear(seed=8, headroom=0.2)
    x, budget = jnp.asarray(problem.x, jnp.float32), Budget(EPSILON, steps=30)
    run = jax.jit(
        lambda rounds, b: weighted_search(pgd, problem.objective, x, KEY, b, rounds),
        static_argnums=0,
    )
    one, many = run(1, budget), run(10, budget)
    assert one.success.mean() < 0.5 and many.success.mean() > 0.9
    assert (many.success >= one.success).all()
    judged = problem.objective(many.x_adv, KEY)
    np.testing.assert_allclose(judged.loss, many.loss, rtol=1e-5)
    assert (judged.success == many.success).all()


def test_the_search_over_weights_steps_tenfold_and_then_halves_between() -> None:
    # The weight is written in x: rows are fooled below 300 (0.03), and not caught above 200 (0.02).
    high, low = jnp.array([300.0, 0.03]), jnp.array([200.0, 0.02])

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        return Outcome(0 * x[:, 0], high - x[:, 0], low - x[:, 0])

    def attack(objective: object, x: Array, key: PRNGKeyArray, budget: Budget) -> AttackResult:
        outcome = objective(x, key)  # its loss is -weight * detector
        weight = -outcome.loss / outcome.detector
        return candidate(weight[:, None], outcome)

    x = jnp.zeros((2, 1))
    # Asked: 1, 10, 100, 1000, 10**2.5, 10**2.25, 10**2.375, and 1, 0.1, 0.01, 10**-1.5, ...
    for rounds, success in ((5, [0, 0]), (6, [0, 1]), (7, [1, 1]), (9, [1, 1])):
        found = weighted_search(attack, objective, x, KEY, Budget(1.0), rounds)
        assert found.success.tolist() == success
    np.testing.assert_allclose(found.x_adv[:, 0], [10**2.375, 10**-1.625], rtol=1e-3)


def score(x: Array, key: PRNGKeyArray) -> Array:
    return x.mean(axis=1)


@pytest.mark.parametrize("low, high", [(0.2, 0.3), (-math.inf, 0.3), (0.2, math.inf)])
@pytest.mark.parametrize("avoid", [False, True])
def test_what_takes_another_branch_counts_as_caught(low: float, high: float, avoid: bool) -> None:
    values = np.array([0.0, 0.19, 0.2, 0.25, 0.29, 0.3, 0.31, 1.0], np.float32)
    low, high = float(np.float32(low)), float(np.float32(high))
    objective = pinned(lambda x, key: blind(x + 1, key), score, low, high, avoid)
    inside = (values >= np.float32(low)) & (values < np.float32(high))
    got = objective(jnp.asarray(values)[:, None], KEY)
    assert (np.asarray(got.rejected) == (inside if avoid else ~inside)).all()
    assert (got.success == ~got.rejected).all()


def test_a_score_that_is_no_number_is_in_no_branch_that_was_chosen() -> None:
    nan = lambda x, key: jnp.full(len(x), jnp.nan)  # noqa: E731
    assert pinned(blind, nan, 0.0, 1.0)(jnp.ones((2, 3)), KEY).rejected.all()
    assert not pinned(blind, nan, 0.0, 1.0, avoid=True)(jnp.ones((2, 3)), KEY).rejected.any()


def test_pinning_keeps_the_objectives_own_detector() -> None:
    x = jnp.array([[0.9, 0.9], [0.5, 0.5]])  # bent catches the first; both are inside
    assert pinned(bent, score, 0.0, 1.0)(x, KEY).rejected.tolist() == [True, False]


@pytest.mark.parametrize("avoid", [False, True])
def test_an_attack_fools_the_branch_that_was_chosen(avoid: bool) -> None:
    low, high = (0.45, 0.55) if avoid else (0.5, 0.55)

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        margin = x[:, :4].sum(axis=1) - 2.4
        return Outcome(margin, margin)

    x = jnp.full((3, 8), 0.5)
    goal = selective(pinned(objective, score, low, high, avoid))
    found = jax.jit(lambda b: pgd(goal, x, KEY, b))(Budget(0.3, steps=40))
    mean = np.asarray(score(found.x_adv, KEY))
    assert found.success.all() and (objective(found.x_adv, KEY).margin > 0).all()
    assert (((mean >= low) & (mean < high)) != avoid).all()


def test_denial_has_clean_inputs_caught_and_the_answer_does_not_matter() -> None:
    x = jnp.full((4, 3), 0.5)
    assert not bent(x, KEY).rejected.any()
    found = pgd(denial(bent), x, KEY, Budget(0.4, steps=5))
    assert found.success.all() and bent(found.x_adv, KEY).rejected.all()
    np.testing.assert_allclose(found.loss, bent(found.x_adv, KEY).detector, rtol=1e-6)
    assert not pgd(denial(bent), x, KEY, Budget(0.01, steps=5)).success.any()


@pytest.mark.parametrize(
    "detector, says",
    [
        (lambda x: jnp.round(x).sum(axis=1), "is 0 at all 2 inputs"),
        (lambda x: jnp.argmax(x, axis=1) - 0.5, "is 0 at all 2 inputs"),
        (lambda x: jnp.argmax(x, axis=1), "has no gradient"),
        (lambda x: jnp.sqrt(x - x).sum(axis=1), "not finite at input 0"),
        (
            lambda x: jax.pure_callback(
                lambda x: np.asarray(x).sum(axis=1), jax.ShapeDtypeStruct((2,), jnp.float32), x
            ),
            "has no gradient",
        ),
    ],
    ids=["rounding", "argmax", "integers", "nan", "callback"],
)
def test_a_detector_without_gradients_is_found_before_the_attack(
    detector: object, says: str
) -> None:
    x = jnp.array([[0.1, 0.6, 0.2], [0.3, 0.3, 0.9]])
    objective = lambda x, key: Outcome(x.sum(axis=1), x.sum(axis=1), detector(x))  # noqa: E731
    with pytest.raises(UserError, match=says):
        check_differentiable(objective, x, KEY)


def test_a_detector_with_gradients_passes_if_some_row_has_one() -> None:
    x = jnp.array([[0.1, 0.6], [0.9, 0.9]])
    check_differentiable(bent, x, KEY)
    hinge = lambda x, key: Outcome(x.sum(1), x.sum(1), jnp.maximum(x.sum(1) - 1, 0))  # noqa: E731
    check_differentiable(hinge, x, KEY)
    with pytest.raises(UserError, match="is 0"):
        check_differentiable(hinge, x[:1], KEY)


def test_candidates_rank_by_success_then_as_constrained_search_does() -> None:
    def one(loss: float, margin: float, detector: float) -> AttackResult:
        outcome = Outcome(*(jnp.array([v], jnp.float32) for v in (loss, margin, detector)))
        return candidate(jnp.array([[loss]], jnp.float32), outcome)

    caught, less, free, near = one(99, 5, 3), one(98, 5, 0.1), one(0, -5, -1), one(1, -4, -1)
    won, won_more = one(0.5, 1, -1), one(2, 1, -1)
    ranked = [caught, less, free, near, won, won_more]
    for worse, good in zip(ranked, ranked[1:], strict=False):
        assert (better(good, worse).x_adv == good.x_adv).all()
        assert (better(worse, good).x_adv == good.x_adv).all()


def test_what_cannot_be_used_is_refused() -> None:
    x = jnp.zeros((2, 3))
    for wrapped in (weighted(blind, 1.0), selective(blind), denial(blind)):
        with pytest.raises(UserError, match="no detector"):
            wrapped(x, KEY)
    with pytest.raises(UserError, match="no detector"):
        check_differentiable(blind, x, KEY)
    with pytest.raises(UserError, match="not below"):
        pinned(bent, score, 1.0, 1.0)
    for wrong in ({"rounds": 0}, {"first": 0.0}, {"first": math.nan}):
        with pytest.raises(UserError, match="weighted"):
            weighted_search(pgd, bent, x, KEY, Budget(0.1), **wrong)
