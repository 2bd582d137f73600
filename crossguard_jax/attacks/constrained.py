"""Attacks that step by two gradients, the loss's and the detector's.

`orthogonal_pgd` keeps the one still while it moves the other (Bryniarski et al., arXiv
2106.15023); `lagrangian_pgd` raises the loss under the constraint that nothing is caught
(augmented Lagrangian, as in Rony et al., arXiv 2011.11857).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.adaptive import candidate, with_detector
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

PENALTY = 3.0  # of the augmented Lagrangian; the constraint is counted in radii of the ball
LAST_STEP = 0.01  # the Lagrangian's last step, as a share of its first
_HALVINGS = 24  # of an angle: float32 has no more


def orthogonal_pgd(
    objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray, budget: Budget
) -> AttackResult:
    """PGD whose steps do not, to first order, change what they are not to change.

    A row that is not fooled raises its loss and leaves its detector where it is; one that is
    fooled lowers the detector and leaves the loss. Steps are the steepest of those: in linf that
    is a linear program, which also knows the ball and the valid range, and not the sign of the
    orthogonal gradient, which is not orthogonal. (In l2 the valid range may bend a step.)

    Args:
        objective: with a detector; both are differentiated.
        x: clean inputs, float32 in the budget's range.
        key: for starts and for whatever is random in the objective.
        budget: ``relative_step`` 0 takes steps of 2.5 epsilon / ``steps``.

    Raises:
        UserError: ``x`` cannot be used, or nothing detects.
    """

    def step(state: tuple, x_adv: Array, outcome: Outcome, gradients: tuple) -> tuple[tuple, Array]:
        up, down = gradients[0], -gradients[1]
        followed, kept = search.select(outcome.margin > 0, (down, up), (up, down))
        size = projections.per_row(budget.step_size, x)
        if budget.norm == "l2":
            return state, x_adv + size * _orthogonal(followed, kept)
        epsilon = projections.per_row(budget.epsilon, x)
        low = jnp.maximum(jnp.maximum(x - epsilon, budget.low), x_adv - size) - x_adv
        high = jnp.minimum(jnp.minimum(x + epsilon, budget.high), x_adv + size) - x_adv
        return state, x_adv + best_in_box(followed, kept, low, high)

    return _search(objective, x, key, budget, (), step)


def lagrangian_pgd(
    objective: Objective,
    x: Float[Array, "B ..."],
    key: PRNGKeyArray,
    budget: Budget,
    penalty: float = PENALTY,
) -> AttackResult:
    """The greatest loss among inputs that are not caught, by an augmented Lagrangian.

    Each row has its multiplier, updated at each step. Both gradients are taken at unit (dual)
    norm, and the detector's value in radii of the ball, so that multiplier and penalty mean the
    same whatever the scales of loss and detector.

    Args:
        objective: with a detector; both are differentiated.
        x: clean inputs, float32 in the budget's range.
        key: for starts and for whatever is random in the objective.
        budget: ``relative_step`` is the first step's; 0 takes epsilon. The last is 0.01 of it.
        penalty: weight of the detector's value beside its multiplier.

    Raises:
        UserError: ``x`` cannot be used, or nothing detects.
    """
    epsilon = jnp.broadcast_to(jnp.asarray(budget.epsilon, x.dtype), x.shape[:1])
    first = epsilon * (budget.relative_step or 1.0)
    shrink = LAST_STEP ** (1 / budget.steps)

    def step(state: tuple, x_adv: Array, outcome: Outcome, gradients: tuple) -> tuple[tuple, Array]:
        size, multiplier = state
        rise, alarm = (_unit(gradient, budget.norm) for gradient in gradients)
        radii = jnp.maximum(
            epsilon * _dual_norm(gradients[1], budget.norm), jnp.finfo(x.dtype).tiny
        )
        excess = jnp.clip(outcome.detector / radii, -1, 1)
        weight = jnp.maximum(multiplier + penalty * excess, 0)
        multiplier = jnp.maximum(multiplier + excess, 0)
        direction = projections.steepest(rise - projections.per_row(weight, x) * alarm, budget.norm)
        moved = x_adv + projections.per_row(size, x) * direction
        return (size * shrink, multiplier), moved

    return _search(objective, x, key, budget, (first, jnp.zeros_like(epsilon)), step)


Step = Callable[[tuple, Array, Outcome, tuple[Array, Array]], tuple[tuple, Array]]


def _search(
    objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget, state: tuple, step: Step
) -> AttackResult:
    """Steps from a start, each projected; each row's best over all of them, judged afresh."""
    projections.check_input(x, budget)
    restarts_key, judge_key = jax.random.split(key)

    def one(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
        state, x_adv, best = carry
        outcome, gradients = both_gradients(objective, x_adv, key)
        best = search.better(candidate(x_adv, outcome), best)
        state, x_adv = step(state, x_adv, outcome, gradients)
        return (state, projections.project(x_adv, x, budget), best), None

    def attempt(key: PRNGKeyArray, best: AttackResult) -> AttackResult:
        start_key, last_key, steps_key = jax.random.split(key, 3)
        x_adv = projections.random_start(x, start_key, budget) if budget.random_start else x
        keys = jax.random.split(steps_key, budget.steps)
        (_, x_adv, best), _ = jax.lax.scan(one, (state, x_adv, best), keys)
        return search.better(candidate(x_adv, objective(x_adv, last_key)), best)

    start = search.no_result(objective, x, key)
    best = search.best_of_restarts(attempt, start, restarts_key, budget.restarts)
    return search.judge(objective, best.x_adv, judge_key)


def both_gradients(
    objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray
) -> tuple[Outcome, tuple[Array, Array]]:
    """The outcome at ``x``, and the gradients of each row's loss and detector: one pass forward,
    two back."""

    def pair(x: Array) -> tuple[tuple[Array, Array], Outcome]:
        outcome = with_detector(objective(x, key))
        return (outcome.loss, outcome.detector), outcome

    (loss, detector), back, outcome = jax.vjp(pair, x, has_aux=True)
    (rise,) = back((jnp.ones_like(loss), jnp.zeros_like(detector)))
    (alarm,) = back((jnp.zeros_like(loss), jnp.ones_like(detector)))
    return outcome, (rise, alarm)


def best_in_box(
    gradient: Float[Array, "B ..."],
    kept: Float[Array, "B ..."],
    low: Float[Array, "B ..."],
    high: Float[Array, "B ..."],
) -> Float[Array, "B ..."]:
    """Each row's step that rises most along ``gradient`` and not at all along ``kept``.

    The linear program ``max gradient . d`` over ``low <= d <= high`` with ``kept . d = 0`` (``low``
    <= 0 <= ``high``). Its solution lies at the bounds by the signs of ``gradient - m * kept`` for
    one m, along which ``kept . d`` falls; m is found as a tangent, and the step mixed of those on
    its two sides.
    """
    gradient, kept = _unit(gradient, "l2"), _unit(kept, "l2")

    def at(angle: Array) -> tuple[Array, Array]:
        cosine, sine = jnp.maximum(jnp.cos(angle), 0), jnp.sin(angle)
        slope = (
            projections.per_row(cosine, kept) * gradient - projections.per_row(sine, kept) * kept
        )
        step = jnp.where(slope > 0, high, jnp.where(slope < 0, low, 0))
        return step, (kept * step).reshape(len(kept), -1).sum(axis=1)

    def halve(_: Array, ends: tuple) -> tuple:
        left, right = ends
        middle = (left[0] + right[0]) / 2
        here = (middle, *at(middle))
        above = here[2] >= 0
        return search.select(above, here, left), search.select(above, right, here)

    quarter = jnp.full(kept.shape[:1], jnp.pi / 2, kept.dtype)
    # The steps are carried along: worked out anew, they may differ in the last bit of an angle.
    ends = tuple((angle, *at(angle)) for angle in (-quarter, quarter))
    (_, before, more), (_, after, less) = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    share = jnp.where(more > 0, more / jnp.maximum(more - less, jnp.finfo(kept.dtype).tiny), 0)
    return before + projections.per_row(share, kept) * (after - before)


def _orthogonal(gradient: Array, kept: Array) -> Array:
    """The unit step (l2) that rises most along ``gradient`` and not at all along ``kept``."""
    gradient, kept = _unit(gradient, "l2"), _unit(kept, "l2")
    along = (gradient * kept).reshape(len(kept), -1).sum(axis=1)
    rest = gradient - projections.per_row(along, kept) * kept
    # Of two parallel gradients only rounding is left.
    real = projections.l2_norm(rest) > 1e-5
    return projections.steepest(jnp.where(projections.per_row(real, rest), rest, 0), "l2")


def _dual_norm(gradient: Array, norm: str) -> Array:
    """How much a step of unit ``norm`` can raise, [B]."""
    if norm == "l2":
        return projections.l2_norm(gradient)
    return jnp.abs(gradient).reshape(len(gradient), -1).sum(axis=1)


def _unit(gradient: Array, norm: str) -> Array:
    length = _dual_norm(gradient, norm)
    return gradient / projections.per_row(jnp.where(length > 0, length, 1), gradient)
