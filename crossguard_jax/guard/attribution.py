"""What of a picture the verdict rests on: integrated gradients through its features.

After Sundararajan et al. (arXiv 1703.01365): the path goes from the features of a picture of one
colour, the median of its own, to those of the picture. Each patch has its share of what the picture
adds to the margin, ``logit(unsafe) - logit(safe)``, and the shares add up to that. In the small
world this found the deciding thing more often than hiding patches, one at a time, did, and far more
often than the gradient at the picture itself.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.guard.encoding import Pictures, pictures_of
from crossguard_jax.guard.guard import Guard
from crossguard_jax.nn import lora

STEPS = 16
"""Gradients along the path."""


def heatmaps(
    guard: Guard, images: Sequence[Pictures], texts: Sequence[object], batch_size: int = 16
) -> list[list[Float[np.ndarray, "G G"]] | UserError]:
    """A map for each picture of each row, or the row's error.

    Of a long text the window with the highest margin is explained: the one that the verdict is of.

    Args:
        guard: whose verdicts.
        images, texts, batch_size: as of `Guard.score`. A gradient takes more memory than a verdict.

    Returns:
        Nats of the margin by patch, G along a side of the square that the guard sees; above zero
        speaks for unsafe.
    """
    graphdef, *states = guard.parts
    labels = np.asarray(guard.label_ids)

    def read(batch: dict[str, Any]) -> Array:
        return _shares(graphdef, tuple(states), batch, labels)

    side = round(guard.model.config.vision.n_patches**0.5)
    maps: list[list[np.ndarray] | UserError] = []
    for shown, windows in zip(
        images, guard.read_each(images, texts, read, batch_size), strict=True
    ):
        if isinstance(windows, UserError):
            maps.append(windows)
            continue
        worst = windows[windows[:, 0].argmax(), 1:]
        squares = worst[: worst.size // side**2 * side**2].reshape(-1, side, side)
        maps.append([*squares[: len(pictures_of(shown))]])
    return maps


@functools.partial(jax.jit, static_argnums=0)
def _shares(
    graphdef: Any, states: Any, batch: dict[str, Array], label_ids: Array
) -> Float[Array, "B N"]:
    """Each row's margin, and behind it the patches of its pictures, one after the other."""
    model = lora.merge(graphdef, *states)
    ids, mask = batch["input_ids"], batch["attention_mask"].astype(bool)

    def margins(features: Array | None) -> Array:
        logits = model.read(model.place(ids, features), mask, label_ids)
        return logits[:, 1] - logits[:, 0]

    if "pixel_values" not in batch:
        return margins(None)[:, None]
    pixels = batch["pixel_values"]
    plain = jnp.broadcast_to(jnp.median(pixels, axis=(2, 3), keepdims=True), pixels.shape)

    def features(pixels: Array) -> Array:
        each = model.image_features(pixels)
        index = batch.get("picture_index")
        shown = each[:, None] if index is None else each[index]
        return shown.astype(jnp.float32)  # [B, I, P, D]

    end, start = features(pixels), features(plain)
    flat = (len(ids), -1, end.shape[-1])

    def gradient(total: Array, step: Array) -> tuple[Array, None]:
        between = start + (step + 0.5) / STEPS * (end - start)
        slope = jax.grad(lambda x: margins(x.reshape(flat)).sum())(between)
        return total + slope / STEPS, None

    mean, _ = jax.lax.scan(gradient, jnp.zeros_like(end), jnp.arange(STEPS, dtype=end.dtype))
    shares = (mean * (end - start)).sum(axis=-1)
    if model.config.vision_feature_select_strategy == "full":
        shares = shares[..., 1:]  # the class token is no place
    return jnp.concatenate([margins(end.reshape(flat))[:, None], shares.reshape(len(ids), -1)], 1)
