"""Balls, steps, starts and grey levels: the geometry that attacks on pictures share.

Arrays are [B, ...]; the ball is over all of an example's axes. Pictures are channels-first,
[B, C, X, Y], as `crossguard_jax.nn.llava` takes them, with pixels in [0, 1]: a model's own
normalization belongs inside the objective.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.problem import Budget
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray, Shaped

# Of a grey level; float32 noise in a difference of pixels is below 2e-5 of one.
_LEVEL_NOISE = 1e-4


def check_input(x: Shaped[Array, "B ..."], budget: Budget) -> None:
    """Refuses what no attack can start from; values that jit traces pass unseen.

    Raises:
        UserError: ``x`` is not float32 or float64, lies outside the budget's range or is not
            finite, or the budget has another number of radii than ``x`` has rows.
    """
    if x.dtype not in (jnp.float32, jnp.float64):
        raise UserError(
            f"attack: x is {x.dtype}; give pixels as float32 in [{budget.low:g}, {budget.high:g}] "
            "(uint8 / 255; half precision leaves the ball)"
        )
    if x.ndim < 2:
        raise UserError(f"attack: x is {list(x.shape)}; give a batch, [B, ...]")
    shape = jnp.shape(budget.epsilon)
    if shape not in ((), (x.shape[0],)):
        raise UserError(
            f"budget.epsilon is {list(shape)} for {x.shape[0]} inputs; give one, or one an input"
        )
    if isinstance(x, jax.core.Tracer):
        return
    values = np.asarray(x)
    if not ((values >= budget.low) & (values <= budget.high)).all():  # False for NaN as well
        raise UserError(
            f"attack: x runs from {values.min():g} to {values.max():g}; give pixels in "
            f"[{budget.low:g}, {budget.high:g}], before the model's normalization"
        )


def per_row(values: Any, x: Shaped[Array, "B ..."]) -> Array:
    """A number, or one a row ([B]), shaped so that it multiplies ``x`` row by row."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - 1)) if values.ndim else values


def l2_norm(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Each example's Euclidean norm.

    Divided by the largest element before squaring, so that gradients of 1e-30 still have one.
    """
    flat = x.reshape(x.shape[0], -1)
    scale = jnp.abs(flat).max(axis=1, initial=jnp.finfo(x.dtype).tiny)
    return scale * jnp.sqrt(jnp.sum((flat / scale[:, None]) ** 2, axis=1))


def steepest(gradient: Float[Array, "B ..."], norm: str) -> Float[Array, "B ..."]:
    """The direction of unit ``norm`` that rises fastest; no step where the gradient is 0."""
    if norm == "linf":
        return jnp.sign(gradient)
    length = l2_norm(gradient)
    return gradient / per_row(jnp.where(length > 0, length, 1), gradient)


def project(
    x_adv: Float[Array, "B ..."], x: Float[Array, "B ..."], budget: Budget
) -> Float[Array, "B ..."]:
    """The ball's nearest point to ``x_adv``, clipped to the valid range."""
    delta, epsilon = x_adv - x, per_row(budget.epsilon, x)
    if budget.norm == "linf":
        delta = jnp.clip(delta, -epsilon, epsilon)
    else:
        length = per_row(l2_norm(delta), x)
        # Not min(1, epsilon / length): 0 / 0 where nothing moved.
        delta = jnp.where(length > epsilon, delta * (epsilon / length), delta)
    return jnp.clip(x + delta, budget.low, budget.high).astype(x.dtype)


def random_start(
    x: Float[Array, "B ..."], key: PRNGKeyArray, budget: Budget
) -> Float[Array, "B ..."]:
    """A point drawn uniformly from the ball around ``x``, clipped to the valid range."""
    directions, radii = jax.random.split(key)
    if budget.norm == "linf":
        delta = jax.random.uniform(directions, x.shape, x.dtype, minval=-1.0)
    else:
        delta = steepest(jax.random.normal(directions, x.shape, x.dtype), "l2")
        # The share of a ball's volume within radius r is r**d, d its dimensions.
        dimensions = x.size // x.shape[0]
        share = jax.random.uniform(radii, x.shape[:1], x.dtype) ** (1 / dimensions)
        delta = delta * per_row(share, x)
    return project(x + per_row(budget.epsilon, x) * delta, x, budget)


def to_uint8(
    x: Float[Array, "B ..."], x_adv: Float[Array, "B ..."], budget: Budget
) -> Shaped[Array, "B ..."]:
    """``x_adv`` as a picture of grey levels (uint8) that is still inside the budget.

    The perturbation is rounded toward zero, not the picture to the nearest level: so no ball is
    left. ``x`` must be a picture of grey levels / 255 itself.

    Raises:
        UserError: the budget's range is not [0, 1].
    """
    if (budget.low, budget.high) != (0.0, 1.0):
        raise UserError(
            f"to_uint8: pixels are in [{budget.low:g}, {budget.high:g}]; grey levels need [0, 1]"
        )
    delta = 255 * (x_adv - x)
    if budget.norm == "linf":
        # 8/255 in float32 must not become 7 levels because a difference came out as 7.99999.
        delta = delta + _LEVEL_NOISE * jnp.sign(delta)
        most = jnp.floor(255 * per_row(budget.epsilon, x) + _LEVEL_NOISE)
        delta = jnp.clip(delta, -most, most)
    levels = jnp.round(255 * x) + jnp.trunc(delta)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def through_uint8(
    x: Float[Array, "B ..."], x_adv: Float[Array, "B ..."], budget: Budget
) -> Float[Array, "B ..."]:
    """``x_adv`` as it comes back from a saved picture: `to_uint8`, as pixels in [0, 1] again."""
    return to_uint8(x, x_adv, budget).astype(x.dtype) / 255


def excess(
    x_adv: Float[Array, "B ..."], x: Float[Array, "B ..."], budget: Budget
) -> Float[Array, " B"]:
    """How far each row is outside its ball or range, [B]; at most 0 inside, rounding forgiven."""
    delta = x_adv - x
    axes = tuple(range(1, x.ndim))
    reach = l2_norm(delta) if budget.norm == "l2" else jnp.abs(delta).max(axes)
    outside = jnp.maximum(budget.low - x_adv, x_adv - budget.high).max(axes)
    allowed = jnp.asarray(budget.epsilon) * (1 + 1e-5) + 1e-6
    return jnp.maximum(reach - allowed, outside - 1e-6)
