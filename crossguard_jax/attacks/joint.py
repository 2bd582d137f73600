"""PGD over several inputs at once, such as a picture and the embeddings of a text.

One gradient of one loss; each part steps, and is projected, in its own ball.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

Inputs = tuple[Array, ...]
"""The parts, [B, ...] each."""

JointObjective = Callable[[Inputs, PRNGKeyArray], Outcome]
"""``objective(inputs, key) -> Outcome``; a row's outcome depends on that row alone."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """What may be done to one of the inputs.

    Attributes:
        budget: its ball, steps and range; all parts take as many steps and restarts.
        mask: what may change, bool, of the input's leading axes ([B, L] of [B, L, D]); None: all.
        per_token: a ball for each entry of the second axis, not one for the whole example.
    """

    budget: Budget
    mask: Any = None
    per_token: bool = field(default=False, metadata={"static": True})

    def spread(self, x: Array) -> tuple[Array, Budget]:
        """The input with a row for each ball, and the budget with a radius for each row."""
        if not self.per_token:
            return x, self.budget
        epsilon = jnp.asarray(self.budget.epsilon)
        epsilon = jnp.repeat(epsilon, x.shape[1]) if epsilon.ndim else epsilon
        return x.reshape(-1, *x.shape[2:]), replace(self.budget, epsilon=epsilon)

    def free(self, x: Array) -> Array:
        """What may change, of ``x``'s shape."""
        if self.mask is None:
            return jnp.ones(x.shape, bool)
        mask = jnp.asarray(self.mask)
        return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)


def joint_pgd(
    objective: JointObjective,
    inputs: Inputs,
    key: PRNGKeyArray,
    parts: tuple[Part, ...],
    *,
    alternate: bool = False,
    keep_best: bool = True,
    start: Inputs | None = None,
) -> AttackResult:
    """Steps of steepest ascent in all parts, or in one part after the other.

    What it returns is judged under a key that the search has not seen.

    Args:
        objective: what to raise; it is differentiated.
        inputs: the clean inputs.
        key: for starts and for whatever is random in the objective.
        parts: as many as inputs.
        alternate: step ``t`` moves part ``t mod n`` alone.
        keep_best: each row's best iterate over all steps and restarts; else the last iterate (of
            the best restart).
        start: where a try begins (see `draw_start`), in place of a point that is drawn.

    Returns:
        The result; its ``x_adv`` is a tuple like ``inputs``.

    Raises:
        UserError: inputs and parts do not fit.
    """
    _check(inputs, parts)
    budget = parts[0].budget
    restarts_key, judge_key = jax.random.split(key)
    no = jnp.zeros(inputs[0].shape[0], bool)
    loss = jax.eval_shape(objective, inputs, key).loss
    nothing = AttackResult(inputs, jnp.full(loss.shape, -jnp.inf, loss.dtype), no, no)

    def attempt(key: PRNGKeyArray, best: AttackResult) -> AttackResult:
        climb_key, last_key = jax.random.split(key)
        *start_keys, steps_key = jax.random.split(climb_key, len(parts) + 1)
        first = tuple(map(_start, inputs, start_keys, parts)) if start is None else start
        x_adv, best = _climb(objective, inputs, first, steps_key, parts, best, alternate, keep_best)
        if not keep_best and budget.restarts == 1:  # nothing to choose from, nothing to compare
            return replace(best, x_adv=x_adv)
        return search.better(_judge(objective, x_adv, last_key), best)

    best = search.best_of_restarts(attempt, nothing, restarts_key, budget.restarts)
    return _judge(objective, best.x_adv, judge_key)


def draw_start(inputs: Inputs, key: PRNGKeyArray, parts: tuple[Part, ...]) -> Inputs:
    """Where the first try of `joint_pgd` begins with this key: the rows of a batch that is taken
    in pieces begin where they would have."""
    restarts_key, _ = jax.random.split(key)
    climb_key, _ = jax.random.split(jax.random.split(restarts_key, parts[0].budget.restarts)[0])
    return tuple(map(_start, inputs, jax.random.split(climb_key, len(parts) + 1)[:-1], parts))


def _climb(
    objective: JointObjective,
    inputs: Inputs,
    x_adv: Inputs,
    key: PRNGKeyArray,
    parts: tuple[Part, ...],
    best: AttackResult,
    alternate: bool,
    track: bool,
) -> tuple[Inputs, AttackResult]:
    """One try: its last iterate (not evaluated), and the best one that ``track`` saw."""
    steps = parts[0].budget.steps

    def total(x_adv: Inputs, key: PRNGKeyArray) -> tuple[Array, Outcome]:
        outcome = objective(x_adv, key)
        return jnp.sum(outcome.loss), outcome

    def step(carry: tuple, at: tuple[Array, Array]) -> tuple[tuple, None]:
        (x_adv, best), (t, key) = carry, at
        gradients, outcome = jax.grad(total, has_aux=True)(x_adv, key)
        if track:
            result = AttackResult(x_adv, outcome.loss, outcome.success, outcome.rejected)
            best = search.better(result, best)
        moved = tuple(map(_moved, x_adv, inputs, gradients, parts))
        if alternate:
            mine = t % len(parts) == jnp.arange(len(parts))
            moved = tuple(map(jnp.where, mine, moved, x_adv))
        return (moved, best), None

    each = jnp.arange(steps), jax.random.split(key, steps)
    (x_adv, best), _ = jax.lax.scan(step, (x_adv, best), each)
    return x_adv, best


def _moved(x_adv: Array, x: Array, gradient: Array, part: Part) -> Array:
    """A step in the part's ball; what may not change has no say in the step's direction."""
    rows, budget = part.spread(x_adv)
    clean, _ = part.spread(x)
    gradient, _ = part.spread(jnp.where(part.free(x), gradient, 0))
    step = projections.per_row(budget.step_size, rows)
    rows = rows + step * projections.steepest(gradient, budget.norm)
    return projections.project(rows, clean, budget).reshape(x.shape)


def _start(x: Array, key: PRNGKeyArray, part: Part) -> Array:
    """A point drawn uniformly from the ball of what may change."""
    if not part.budget.random_start:
        return x
    rows, budget = part.spread(x)
    free = part.spread(part.free(x))[0]
    directions, radii = jax.random.split(key)
    if budget.norm == "linf":
        delta = jax.random.uniform(directions, rows.shape, rows.dtype, minval=-1.0) * free
    else:
        delta = jax.random.normal(directions, rows.shape, rows.dtype) * free
        dimensions = jnp.maximum(free.reshape(len(free), -1).sum(axis=1), 1)
        share = jax.random.uniform(radii, dimensions.shape, rows.dtype) ** (1 / dimensions)
        delta = projections.steepest(delta, "l2") * projections.per_row(share, rows)
    delta = projections.per_row(budget.epsilon, rows) * delta
    return projections.project(rows + delta, rows, budget).reshape(x.shape)


def _judge(objective: JointObjective, x_adv: Inputs, key: PRNGKeyArray) -> AttackResult:
    outcome = objective(x_adv, key)
    return AttackResult(x_adv, outcome.loss, outcome.success, outcome.rejected)


def _check(inputs: Inputs, parts: tuple[Part, ...]) -> None:
    if not inputs or len(inputs) != len(parts):
        raise UserError(f"joint: {len(parts)} parts for {len(inputs)} inputs; give one each")
    for name in ("steps", "restarts"):
        values = [getattr(part.budget, name) for part in parts]
        if len(set(values)) > 1:
            raise UserError(f"joint: the parts' budget.{name} are {values}; give all the same")
    for i, (x, part) in enumerate(zip(inputs, parts, strict=True)):
        if x.shape[0] != inputs[0].shape[0]:
            raise UserError(
                f"joint: input {i} has {x.shape[0]} rows and input 0 {inputs[0].shape[0]}"
            )
        if part.per_token and x.ndim < 3:
            raise UserError(f"joint: input {i} is {list(x.shape)}; per_token needs [B, L, D]")
        projections.check_input(x, part.budget)
        shape = jnp.shape(part.mask) if part.mask is not None else ()
        if shape != x.shape[: len(shape)]:
            raise UserError(
                f"joint: mask {i} is {list(shape)} for an input of {list(x.shape)}; give its "
                "leading axes"
            )
