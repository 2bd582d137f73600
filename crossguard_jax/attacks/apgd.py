"""Auto-PGD (Croce and Hein, arXiv 2003.01690, algorithm 1): gradient ascent that sets its steps."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

RHO = 0.75  # share of rising steps below which a step size is halved
MOMENTUM = 0.75  # weight of the new step; the rest is the last step's


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    """One try; arrays of a row an example.

    Attributes:
        x, gradient: where it is, and the loss's gradient there.
        previous, loss: where it was before its last step, and the loss that the step led to.
        step: step size, [B].
        peak, peak_gradient, peak_loss: the greatest loss of this try.
        rises: steps since the last checkpoint that raised the loss, [B].
        checked_loss: ``peak_loss`` at the last checkpoint; ``halved``: whether it halved the step.
    """

    x: Any
    previous: Any
    gradient: Any
    loss: Any
    step: Any
    peak: Any
    peak_gradient: Any
    peak_loss: Any
    rises: Any
    checked_loss: Any
    halved: Any


def apgd(
    objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray, budget: Budget
) -> AttackResult:
    """Steps with momentum; a row that stops rising halves its step and returns to its peak.

    The best is kept over all steps and restarts. A try costs ``budget.steps`` + 1 gradients; what
    the attack returns is judged once more, under a fresh key.

    Args:
        objective: what to raise; it is differentiated.
        x: clean inputs, float32 in the budget's range.
        key: for starts and for whatever is random in the objective.
        budget: ``relative_step`` is the first step's; 0 takes the paper's, 2 epsilon.

    Raises:
        UserError: ``x`` cannot be used.
    """
    projections.check_input(x, budget)
    restarts_key, judge_key = jax.random.split(key)

    def attempt(key: PRNGKeyArray, best: AttackResult) -> AttackResult:
        return _attempt(objective, x, key, budget, best)

    start = search.no_result(objective, x, key)
    best = search.best_of_restarts(attempt, start, restarts_key, budget.restarts)
    return search.judge(objective, best.x_adv, judge_key)


def checkpoints(steps: int) -> np.ndarray:
    """How many steps each step's window has when it closes there, 0 where none does; [steps].

    The first window has 0.22 of the steps; each next one 0.03 of them less, down to 0.06.
    """
    closes = np.zeros(steps, np.int32)
    length, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    end = length
    while end <= steps:
        closes[end - 1] = length
        length = max(length - shrink, shortest)
        end += length
    return closes


def _attempt(
    objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget, best: AttackResult
) -> AttackResult:
    start_key, first_key, steps_key = jax.random.split(key, 3)
    start = projections.random_start(x, start_key, budget) if budget.random_start else x
    first_step = jnp.asarray(budget.epsilon, x.dtype) * (budget.relative_step or 2.0)

    def begin(gradient: Array, loss: Array) -> _State:
        rows = loss.shape
        return _State(
            x=start,
            previous=start,
            gradient=gradient,
            loss=loss,
            step=jnp.broadcast_to(first_step, rows),
            peak=start,
            peak_gradient=gradient,
            peak_loss=loss,
            rises=jnp.zeros(rows, jnp.int32),
            checked_loss=loss,
            halved=jnp.ones(rows, bool),
        )

    # Its evaluation of the start is the loop's too: the gradient is most of what compiles.
    def step(carry: tuple, now: tuple) -> tuple[tuple, None]:
        state, best = carry
        key, index, window = now
        moved = _move(state, x, budget, jnp.where(index == 0, 1.0, MOMENTUM))
        here = jnp.where(index < 0, start, moved)
        outcome, gradient = search.evaluate(objective, here, key)
        best = search.better(search.as_result(here, outcome), best)
        arrived = _check(_arrive(state, here, gradient, outcome.loss), window)
        begun = begin(gradient, outcome.loss)
        state = jax.tree.map(functools.partial(jnp.where, index < 0), begun, arrived)
        return (state, best), None

    schedule = (
        jnp.concatenate([first_key[None], jax.random.split(steps_key, budget.steps)]),
        jnp.arange(-1, budget.steps),
        jnp.concatenate([np.zeros(1, np.int32), checkpoints(budget.steps)]),
    )
    nowhere = begin(jnp.zeros_like(x), jnp.zeros_like(best.loss))
    (_, best), _ = jax.lax.scan(step, (nowhere, best), schedule)
    return best


def _move(state: _State, x: Array, budget: Budget, weight: Array) -> Array:
    """The next iterate: a projected step, mixed with the last one, projected."""
    direction = projections.steepest(state.gradient, budget.norm)
    target = projections.project(
        state.x + projections.per_row(state.step, x) * direction, x, budget
    )
    weight = weight.astype(x.dtype)
    moved = state.x + weight * (target - state.x) + (1 - weight) * (state.x - state.previous)
    return projections.project(moved, x, budget)


def _arrive(state: _State, here: Array, gradient: Array, loss: Array) -> _State:
    """The state after a step to ``here``."""
    peak, peak_gradient, peak_loss = search.select(
        loss > state.peak_loss,
        (here, gradient, loss),
        (state.peak, state.peak_gradient, state.peak_loss),
    )
    return replace(
        state,
        x=here,
        previous=state.x,
        gradient=gradient,
        loss=loss,
        peak=peak,
        peak_gradient=peak_gradient,
        peak_loss=peak_loss,
        rises=state.rises + (loss > state.loss),
    )


def _check(state: _State, window: Array) -> _State:
    """Where a window closes: rows that rose too seldom, or gained nothing on their peak since a
    checkpoint that did not halve, halve their step and go back to their peak."""
    stalls = state.rises <= RHO * window
    gained_nothing = ~state.halved & (state.peak_loss <= state.checked_loss)
    closes = window > 0
    halves = closes & (stalls | gained_nothing)
    x, gradient = search.select(
        halves, (state.peak, state.peak_gradient), (state.x, state.gradient)
    )
    return replace(
        state,
        x=x,
        gradient=gradient,
        step=jnp.where(halves, state.step / 2, state.step),
        rises=jnp.where(closes, 0, state.rises),
        checked_loss=jnp.where(closes, state.peak_loss, state.checked_loss),
        halved=jnp.where(closes, halves, state.halved),
    )
