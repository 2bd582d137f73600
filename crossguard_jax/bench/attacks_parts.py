"""What the benches of attacks share: a model's input, equality and programs."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.hf.pictures import OPENAI_MEAN, OPENAI_STD
from crossguard_jax.nn.llava import Llava

EPSILON = 8 / 255
SAME = 1e-5  # pixels nearer than this are the same
MOST_DIFFERENT = 1e-3  # share of pixels that may differ: signs of gradients near zero


def normalized(x: Float[Array, "B C X Y"]) -> Float[Array, "B C X Y"]:
    """Pixels in [0, 1] as the tower reads them."""
    mean, std = (jnp.asarray(v, x.dtype)[:, None, None] for v in (OPENAI_MEAN, OPENAI_STD))
    return (x - mean) / std


def picture(model: Llava, n: int = 1) -> np.ndarray:
    """``n`` pictures of noise, [n, 3, X, X] in [0, 1]; none of it so near an end that it clips."""
    side = model.config.vision.image_size
    rng = np.random.default_rng(1)
    return rng.uniform(0.1, 0.9, (n, 3, side, side)).astype(np.float32)


def compiled(function: Any, *arguments: Any) -> tuple[Any, float]:
    """A jitted function's program for these arguments, and the seconds that making it took."""
    began = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - began


def ready(program: Any, *arguments: Any) -> Any:
    """Runs a program, and returns what it finds when it is there."""
    return jax.block_until_ready(program(*arguments))


def check_same_pixels(ours: Any, theirs: Any, x: Any, what: str) -> float:
    """The share of pixels in which two attacks on ``x`` differ.

    Raises:
        UserError: it is above `MOST_DIFFERENT`, or nothing was moved.
    """
    ours, theirs, x = (np.asarray(a) for a in (ours, theirs, x))
    if np.abs(ours - x).max() < EPSILON / 2:
        raise UserError(f"{what}: the attack does not move the picture, so equality shows nothing")
    share = float((np.abs(ours - theirs) > SAME).mean())
    if share > MOST_DIFFERENT:
        raise UserError(f"{what}: the two sides differ in {share:.2%} of the pixels; no timing")
    return share


def check_in_ball(x_adv: Any, x: Any, what: str) -> None:
    """Refuses pictures outside the ball around ``x`` or outside [0, 1], or that did not move.

    Raises:
        UserError: such a picture.
    """
    x_adv, x = np.asarray(x_adv), np.asarray(x)
    moved = np.abs(x_adv - x).max()
    if not EPSILON / 2 < moved < EPSILON + SAME or x_adv.min() < 0 or x_adv.max() > 1:
        raise UserError(f"{what}: moved by {255 * moved:.2f} grey levels, not by up to 8")
