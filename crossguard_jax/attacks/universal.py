"""One perturbation for many inputs (Moosavi-Dezfooli et al., arXiv 1610.08401).

Either one picture that goes with many prompts, or one perturbation that is added to many pictures.
A step sees a minibatch of the rows and raises the sum of their losses; what is found is judged on
every row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, Int, PRNGKeyArray

RowsObjective = Callable[[Array, Array, PRNGKeyArray], Outcome]
"""``objective(x, rows [B], key) -> Outcome`` of the rows with these indices, [B] each.

For `shared_picture` ``x`` is all pictures, [M, ...], each to be read once for all its prompts; for
`shared_perturbation` it is the rows' own, [B, ...]."""

RULES = ("momentum", "adam")
MOMENTUM = 0.9  # share of the last steps' sum that stays
_View = Callable[[Array, Array], Array]  # what the objective sees of a point, for some rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Universal:
    """What was found.

    Attributes:
        delta: the perturbations, [M, ...], one a picture, or [1, ...].
        result: ``x_adv`` as the objective saw it, [M, ...] or [N, ...]; what came of it by rows,
            [N] each.
    """

    delta: Any
    result: Any


def shared_picture(
    objective: RowsObjective,
    x: Float[Array, "M ..."],
    key: PRNGKeyArray,
    budget: Budget,
    n: int,
    *,
    batch: int = 0,
    chunk: int = 0,
    owners: Int[Array, " N"] | None = None,
    rule: str = "momentum",
) -> Universal:
    """Perturbs each picture so that it works with all of its prompts.

    The objective is handed the pictures themselves, so that the vision pass is one a picture and
    step, whatever the number of prompts.

    Args:
        objective: of N rows, each a prompt with its picture.
        x: clean pictures, float32 in the budget's range; most often one.
        key: for starts, minibatches, and whatever is random in the objective.
        budget: of each picture; ``relative_step`` 0 takes steps of 2.5 epsilon / ``steps``.
        n: N.
        batch: rows a step, drawn anew each time; 0: all.
        chunk: rows at a time, of those; 0: all at once.
        owners: which picture each row is of; may be None where there is one.
        rule: ``momentum`` sums the unit gradients of minibatches, older ones fading (as arXiv
            1710.06081), and steps by the sum's sign (in l2, its direction); where a step sees all
            rows, by its own gradient's, which is stronger there; ``adam`` steps by Adam's update,
            in linf only: it weighs each pixel by itself, which turns it off the steepest way.

    Raises:
        UserError: an argument that cannot be used.
    """
    _check(x, budget, n, batch, rule)
    if owners is None and len(x) != 1:
        raise UserError(f"universal: {len(x)} pictures; say by owners, [N], whose each row is")
    if owners is not None and owners.shape != (n,):
        raise UserError(f"universal: owners {list(owners.shape)} for {n} rows; give one each")
    owners = jnp.zeros(n, jnp.int32) if owners is None else owners

    def view(point: Array, rows: Array) -> Array:
        return point

    point, outcome = _attack(objective, view, x, key, budget, owners, _sizes(batch, chunk, n), rule)
    return Universal(point - x, search.as_result(point, outcome))


def shared_perturbation(
    objective: RowsObjective,
    x: Float[Array, "N ..."],
    key: PRNGKeyArray,
    budget: Budget,
    *,
    batch: int = 0,
    chunk: int = 0,
    rule: str = "momentum",
) -> Universal:
    """Finds one perturbation that, added to any of the pictures and clipped, works.

    Args:
        objective: of N rows, each a picture.
        x: clean pictures, float32 in the budget's range.
        key: as of `shared_picture`, and so are ``batch``, ``chunk`` and ``rule``.
        budget: of the perturbation: one radius.
        batch: rows a step; 0: all.
        chunk: rows at a time.
        rule: a name in `RULES`.

    Raises:
        UserError: an argument that cannot be used.
    """
    _check(x, budget, len(x), batch, rule)
    if jnp.ndim(budget.epsilon):
        raise UserError("budget.epsilon: one perturbation has one radius; give a number")

    def view(point: Array, rows: Array) -> Array:
        return jnp.clip(x[rows] + point, budget.low, budget.high)

    # The perturbation itself has no range.
    free = replace(budget, low=-jnp.inf, high=jnp.inf)
    owners = jnp.zeros(len(x), jnp.int32)
    zero = jnp.zeros_like(x[:1])
    sizes = _sizes(batch, chunk, len(x))
    delta, outcome = _attack(objective, view, zero, key, free, owners, sizes, rule)
    return Universal(delta, search.as_result(view(delta, jnp.arange(len(x))), outcome))


def _attack(
    objective: RowsObjective,
    view: _View,
    centre: Array,
    key: PRNGKeyArray,
    budget: Budget,
    owners: Array,
    sizes: tuple[int, int],
    rule: str,
) -> tuple[Array, Outcome]:
    """The best last point of all restarts, for each owner, and every row's outcome there."""
    restarts_key, judge_key = jax.random.split(key)
    rows, chunk = jnp.arange(len(owners)), sizes[1]

    def sums(values: Array) -> Array:
        return jax.ops.segment_sum(values.astype(jnp.float32), owners, len(centre))

    def attempt(best: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
        climb_key, last_key = jax.random.split(key)
        point = _climb(objective, view, centre, climb_key, budget, len(rows), sizes, rule)
        outcome = _in_batches(objective, view, point, rows, chunk, last_key)
        _, most, greatest = best
        hits, loss = sums(outcome.success), sums(outcome.loss)
        wins = (hits > most) | ((hits == most) & (loss > greatest))
        return search.select(wins, (point, hits, loss), best), None

    some = rows[:chunk]
    shape = jax.eval_shape(lambda: objective(view(centre, some), some, key).loss).shape
    if shape != (chunk,):
        raise UserError(
            f"universal: the objective's loss is {list(shape)} for {chunk} rows; return one number "
            "a row"
        )
    none = jnp.full(len(centre), -jnp.inf, jnp.float32)
    keys = jax.random.split(restarts_key, budget.restarts)
    (point, *_), _ = jax.lax.scan(attempt, (centre, none, none), keys)
    return point, _in_batches(objective, view, point, rows, chunk, judge_key)


def _climb(
    objective: RowsObjective,
    view: _View,
    centre: Array,
    key: PRNGKeyArray,
    budget: Budget,
    n: int,
    sizes: tuple[int, int],
    rule: str,
) -> Array:
    """One try: its last point."""
    start_key, steps_key = jax.random.split(key)
    size = projections.per_row(budget.step_size, centre)
    batch, chunk = sizes
    fading = MOMENTUM if batch < n else 0.0
    updates = optax.trace(fading) if rule == "momentum" else optax.scale_by_adam()

    def step(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
        point, state = carry
        draw_key, outcome_key = jax.random.split(key)
        every = batch == n
        rows = jnp.arange(n) if every else jax.random.choice(draw_key, n, (batch,), replace=False)

        # Of unit length: neither the loss's scale nor a minibatch of steep rows has a say.
        gradient = _gradient(objective, view, point, rows, chunk, outcome_key)
        gradient = projections.steepest(gradient, "l2")
        update, state = updates.update(gradient, state)
        if rule == "momentum":
            update = projections.steepest(update, budget.norm)
        return (projections.project(point + size * update, centre, budget), state), None

    start = projections.random_start(centre, start_key, budget) if budget.random_start else centre
    keys = jax.random.split(steps_key, budget.steps)
    (point, _), _ = jax.lax.scan(step, (start, updates.init(centre)), keys)
    return point


def _gradient(
    objective: RowsObjective, view: _View, point: Array, rows: Array, chunk: int, key: PRNGKeyArray
) -> Array:
    """Of the sum of the rows' losses by the point, ``chunk`` rows at a time."""

    def total(point: Array, some: Array, counts: Array, key: PRNGKeyArray) -> Array:
        return jnp.sum(jnp.where(counts, objective(view(point, some), some, key).loss, 0))

    n = len(rows)
    if n == chunk:
        return jax.grad(total)(point, rows, jnp.ones(n, bool), key)
    chunks = -(-n // chunk)

    def one(gradient: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return gradient + jax.grad(total)(point, *now), None

    filled = jnp.resize(rows, (chunks, chunk))
    counts = jnp.arange(chunks * chunk).reshape(chunks, chunk) < n
    each = filled, counts, jax.random.split(key, chunks)
    return jax.lax.scan(one, jnp.zeros_like(point), each)[0]


def _sizes(batch: int, chunk: int, n: int) -> tuple[int, int]:
    """Rows of a step, and at a time."""
    batch = batch or n
    return batch, min(chunk or batch, batch)


def _in_batches(
    objective: RowsObjective, view: _View, point: Array, rows: Array, batch: int, key: PRNGKeyArray
) -> Outcome:
    """Every row's outcome, computed ``batch`` rows at a time; the last ones that fill up the last
    batch are thrown away."""
    n = len(rows)
    chunks = -(-n // batch)
    filled = jnp.resize(rows, (chunks, batch))  # repeats from the beginning

    def one(now: tuple[Array, Array]) -> Outcome:
        some, key = now
        return objective(view(point, some), some, key)

    outcome = jax.lax.map(one, (filled, jax.random.split(key, chunks)))
    return jax.tree.map(lambda values: values.reshape(-1)[:n], outcome)


def _check(x: Array, budget: Budget, n: int, batch: int, rule: str) -> None:
    projections.check_input(x, budget)
    if rule not in RULES:
        raise UserError(f"universal: rule {rule!r} is none of {', '.join(RULES)}")
    if rule == "adam" and budget.norm != "linf":
        raise UserError(f"universal: rule adam is for linf, not {budget.norm}; take momentum")
    if n < 1 or not 0 <= batch <= n:
        raise UserError(f"universal: batch {batch} of {n} rows; give 1 to {n}, or 0 for all")
