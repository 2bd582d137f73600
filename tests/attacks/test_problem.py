"""Budgets and outcomes: what is refused, and what jit sees."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.core.errors import UserError


@pytest.mark.parametrize("kind", [float, np.float32, np.array, jnp.float32])
@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf, 1.5])
def test_a_radius_that_is_none_is_refused_whatever_its_type(epsilon: float, kind: type) -> None:
    with pytest.raises(UserError, match="budget.epsilon"):
        Budget(kind(epsilon))


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": "l1"},
        {"steps": 0},
        {"steps": -3},
        {"steps": True},
        {"restarts": 0},
        {"relative_step": -1.0},
        {"relative_step": math.nan},
        {"low": 1.0, "high": 0.0},
        {"low": math.nan},
    ],
    ids=str,
)
def test_a_budget_that_is_none_is_refused_by_its_field(wrong: dict) -> None:
    with pytest.raises(UserError, match="budget"):
        Budget(0.1, **wrong)


def test_one_wrong_radius_among_many_is_refused() -> None:
    with pytest.raises(UserError, match="budget.epsilon"):
        Budget(np.array([0.1, -0.1]))


def test_an_l2_ball_may_be_wider_than_a_pixel() -> None:
    assert Budget(3.0, "l2").step_size == pytest.approx(0.75)


def test_another_radius_compiles_nothing_and_another_norm_does() -> None:
    chex.clear_trace_counter()  # it counts by the function's name
    compiled = jax.jit(chex.assert_max_traces(lambda budget: budget.step_size, n=1))
    for epsilon in (0.0, 0.1, 0.2):
        assert compiled(Budget(epsilon, steps=5)) == pytest.approx(epsilon / 2)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        compiled(Budget(0.1, "l2", steps=5))


def test_only_what_is_fooled_and_not_caught_is_a_success() -> None:
    margin, detector = jnp.array([-1.0, 1, 1, 0]), jnp.array([-1.0, -1, 1, -1])
    outcome = Outcome(margin, margin, detector)
    assert outcome.success.tolist() == [False, True, False, False]
    assert outcome.rejected.tolist() == [False, False, True, False]
    assert Outcome(margin, margin).success.tolist() == [False, True, True, False]
    assert not Outcome(margin, margin).rejected.any()
