"""Square attack (Andriushchenko et al., arXiv 1912.00049): random search, no gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

FIRST_SHARE = 0.8  # of the picture's pixels, in the first squares
# Queries of 10,000 after which the share halves, stretched to the budget's own number.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray, budget: Budget
) -> AttackResult:
    """Repaints a random square (linf) or moves perturbation into one (l2), if that is better.

    It sees outcomes only. The margin makes the best loss. It stops once all rows are successes;
    what it returns is judged once more, under a fresh key. A random objective should be averaged
    (`eot`), since each row's best so far is not asked again.

    Args:
        objective: what to raise.
        x: clean pictures, [B, C, X, Y], float32 in the budget's range.
        key: for squares, and for whatever is random in the objective.
        budget: ``steps`` are queries a restart, after the start's; ``random_start`` and
            ``relative_step`` do not apply.

    Raises:
        UserError: ``x`` cannot be used.
    """
    projections.check_input(x, budget)
    if x.ndim != 4:
        raise UserError(f"square: x is {list(x.shape)}; give pictures, [B, C, X, Y]")
    restarts_key, judge_key = jax.random.split(key)

    def attempt(key: PRNGKeyArray, best: AttackResult) -> AttackResult:
        return search.better(_attempt(objective, x, key, budget), best)

    start = search.no_result(objective, x, key)
    best = search.best_of_restarts(attempt, start, restarts_key, budget.restarts)
    return search.judge(objective, best.x_adv, judge_key)


def sides(budget: Budget, height: int, width: int) -> np.ndarray:
    """The side of each query's square, in pixels, [steps]: the paper's schedule."""
    queries = np.arange(budget.steps) * 10_000 // budget.steps
    share = FIRST_SHARE / 2.0 ** np.searchsorted(_HALVINGS, queries)
    side = np.round(np.sqrt(share * height * width)).astype(np.int32)
    if budget.norm == "l2":  # a centre, and something around it
        side = np.maximum(side, 3) // 2 * 2 + 1
    return np.clip(side, 1, min(height, width))


def _attempt(objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget) -> AttackResult:
    start_key, first_key, steps_key = jax.random.split(key, 3)
    side = sides(budget, *x.shape[2:])
    if budget.norm == "linf":
        x_adv, propose = _stripes(x, start_key, budget), _repaint
    else:
        sizes = np.unique(side)
        x_adv = _tiles(x, start_key, budget)
        propose = functools.partial(
            _move_mass, bumps=jnp.asarray(_bumps(sizes)), sizes=jnp.asarray(sizes)
        )
    all_sides = jnp.asarray(side)

    def go_on(carry: tuple[Array, AttackResult]) -> Array:
        index, best = carry
        return (index < budget.steps) & ~jnp.all(best.success)

    # Its judgement of the start is the loop's too, so that the model compiles once.
    def query(carry: tuple[Array, AttackResult]) -> tuple[Array, AttackResult]:
        index, best = carry
        starts = index < 0
        square_key, objective_key = jax.random.split(jax.random.fold_in(steps_key, index))
        proposed = propose(best.x_adv, x, square_key, budget, all_sides[index])
        candidate = jnp.where(starts, x_adv, proposed)
        new = search.judge(objective, candidate, jnp.where(starts, first_key, objective_key))
        return index + 1, search.better(new, best)

    nothing = search.no_result(objective, x, first_key)
    return jax.lax.while_loop(go_on, query, (-jnp.ones((), jnp.int32), nothing))[1]


def _signs(key: PRNGKeyArray, shape: tuple[int, ...], x: Array) -> Array:
    return jax.random.rademacher(key, shape, x.dtype)


def _stripes(x: Array, key: PRNGKeyArray, budget: Budget) -> Array:
    """The linf start: each column of pixels at an end of the ball."""
    signs = _signs(key, (*x.shape[:2], 1, x.shape[3]), x)
    return projections.project(x + projections.per_row(budget.epsilon, x) * signs, x, budget)


def _place(key: PRNGKeyArray, x: Array, side: Array) -> tuple[Array, Array, Array]:
    """A square at random in each row: which pixels are inside, [B, 1, X, Y], and each pixel's
    row [B, 1, X, 1] and column [B, 1, 1, Y] counted from its corner."""
    b, _, height, width = x.shape
    keys = jax.random.split(key)
    top = jax.random.randint(keys[0], (b, 1, 1, 1), 0, height - side + 1)
    left = jax.random.randint(keys[1], (b, 1, 1, 1), 0, width - side + 1)
    row = jnp.arange(height)[:, None] - top
    column = jnp.arange(width) - left
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return inside, row, column


def _repaint(x_adv: Array, x: Array, key: PRNGKeyArray, budget: Budget, side: Array) -> Array:
    """The linf proposal: a square at an end of the ball, each channel at its own."""
    place_key, sign_key = jax.random.split(key)
    inside, _, _ = _place(place_key, x, side)
    signs = _signs(sign_key, (*x.shape[:2], 1, 1), x)
    painted = x + projections.per_row(budget.epsilon, x) * signs
    return projections.project(jnp.where(inside, painted, x_adv), x, budget)


def bump(side: int) -> np.ndarray:
    """The l2 attack's pattern, [side, side], of norm 1: a hill and a hollow, half a square each.

    Equation 4 of the paper, for even and odd sides; a pixel's height depends on its distance to
    the half's centre, along the axis on which it is further.
    """

    def hill(height: int, width: int) -> np.ndarray:
        # The sum of 1 / k**2 for k from a pixel's distance + 1 to the last ring's.
        top = max(height, width) // 2 + 1
        sums = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, top + 1) ** 2)])
        rows = np.abs(np.arange(height) - height // 2)
        columns = np.abs(np.arange(width) - width // 2)
        heights = sums[top] - sums[np.maximum(rows[:, None], columns)]
        return heights / np.linalg.norm(heights)

    pattern = np.concatenate([hill(side // 2, side), -hill(side - side // 2, side)])
    return pattern / np.linalg.norm(pattern)


def _bumps(sizes: np.ndarray) -> np.ndarray:
    """Each size's `bump` in the corner of a table, [sizes, largest, largest]."""
    table = np.zeros((len(sizes), sizes.max(), sizes.max()), np.float32)
    for place, side in zip(table, sizes, strict=True):
        place[:side, :side] = bump(int(side))
    return table


def _tiles(x: Array, key: PRNGKeyArray, budget: Budget) -> Array:
    """The l2 start: bumps all over the picture, each with its own sign and turn."""
    b, c, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    sign_key, turn_key = jax.random.split(key)
    signs = _signs(sign_key, (b, c, down, 1, across, 1), x)
    turned = jax.random.bernoulli(turn_key, 0.5, (b, 1, down, 1, across, 1))
    pattern = jnp.asarray(bump(side), x.dtype)[:, None, :]
    delta = signs * jnp.where(turned, pattern.T.reshape(pattern.shape), pattern)
    delta = delta.reshape(b, c, down * side, across * side)
    spare = height - down * side, width - across * side
    delta = jnp.pad(delta, ((0, 0), (0, 0), *((n // 2, n - n // 2) for n in spare)))
    return _to_sphere(delta, x, budget)


def _move_mass(
    x_adv: Array,
    x: Array,
    key: PRNGKeyArray,
    budget: Budget,
    side: Array,
    *,
    bumps: Array,
    sizes: Array,
) -> Array:
    """The l2 proposal: a square is emptied, and its mass (and what clipping had left unused)
    goes to another one as a bump on top of what is there."""
    here_key, there_key, sign_key, turn_key = jax.random.split(key, 4)
    here, row, column = _place(here_key, x, side)
    there, _, _ = _place(there_key, x, side)
    delta = x_adv - x

    def mass(inside: Array, delta: Array) -> Array:
        return jnp.sum(jnp.where(inside, delta**2, 0), axis=(2, 3), keepdims=True)

    last = bumps.shape[1] - 1
    row, column = jnp.clip(row, 0, last), jnp.clip(column, 0, last)
    pattern = bumps[jnp.searchsorted(sizes, side)].astype(x.dtype)
    turned = jax.random.bernoulli(turn_key, 0.5, (x.shape[0], 1, 1, 1))
    pattern = jnp.where(turned, pattern[column, row], pattern[row, column])
    new = delta / (jnp.sqrt(mass(here, delta)) + 1e-12)
    new = new + pattern * _signs(sign_key, (*x.shape[:2], 1, 1), x)
    used = jnp.sum(delta**2, axis=(1, 2, 3), keepdims=True)
    unused = jnp.maximum(projections.per_row(budget.epsilon, x) ** 2 - used, 0) / x.shape[1]
    height = jnp.sqrt((unused + mass(here | there, delta)) / (mass(here, new) + 1e-12))
    delta = jnp.where(here, new * height, jnp.where(there, 0, delta))
    return _to_sphere(delta, x, budget)


def _to_sphere(delta: Array, x: Array, budget: Budget) -> Array:
    """``x`` plus ``delta`` stretched to the ball's surface."""
    delta = projections.per_row(budget.epsilon, x) * projections.steepest(delta, "l2")
    return projections.project(x + delta, x, budget)
