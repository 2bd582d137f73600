"""What the benches of attacks share: a model's input, equality, programs, and FLOPs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import count
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.hf.pictures import OPENAI_MEAN, OPENAI_STD
from crossguard_jax.io.timing import Timed, ratios
from crossguard_jax.nn.llava import Llava

EPSILON = 8 / 255
BEFORE = 4
"""Text tokens before the picture, as in the guard's bench."""

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


def compared(timed: Mapping[str, Timed], baseline: str, ours: str) -> dict[str, float]:
    """Baseline's seconds over ours, of neighbouring runs: above 1, ours is faster."""
    low, median, high = ratios(timed[baseline], timed[ours])
    return {"median": median, "low": low, "high": high}


def medians(timed: Mapping[str, Timed]) -> dict[str, float]:
    """Median seconds of every side."""
    return {name: each.median for name, each in timed.items()}


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward pass.

    Attributes:
        matrices: products with the model's weights, 2N a token; N are the weights of matrices that
            a position must meet: unused layers of the tower are left out, of the last layer of the
            language model all but keys and values (one position asks), and the two columns of the
            head.
        attention: the two products of queries, keys and values; causal ones are half of all.
    """

    matrices: float
    attention: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.matrices + other.matrices, self.attention + other.attention)

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.matrices + self.attention

    @property
    def gradient(self) -> float:
        """A forward pass, and the gradient by the inputs: with frozen weights 2N a token more (not
        4N, of which half is the weights' gradient), and four products of attention for two."""
        return 2 * self.matrices + 3 * self.attention


def seeing(model: Llava, n: int) -> Work:
    """The tower and the projector on ``n`` pictures."""
    config = model.config.vision
    total, positions = config.num_hidden_layers, config.n_patches + 1
    used = max(i % (total + 1) for i in model.config.vision_feature_layer)
    layers = count(model.vision_tower.layers) * used / total
    patches = count(model.vision_tower.patch_embedding) + count(model.multi_modal_projector)
    matrices = 2 * n * (layers * positions + patches * config.n_patches)
    return Work(matrices, 4.0 * n * positions**2 * config.hidden_size * used)


def reading(model: Llava, rows: int, tokens: int, before: int = 0) -> Work:
    """The language model on rows of ``tokens`` tokens behind ``before`` others that are cached."""
    language = model.language_model
    n, width = language.config.num_hidden_layers, language.config.hidden_size
    attention = language.layers.self_attn
    of_last = count(attention.k_proj) + count(attention.v_proj)
    weights = (count(language.layers) * (n - 1) + of_last) / n
    pairs = tokens * (before + tokens / 2)
    return Work(2.0 * rows * tokens * weights, 4.0 * rows * pairs * width * (n - 1))
