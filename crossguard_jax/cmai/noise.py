"""Noise on pictures, keyed by row: what a row gets does not depend on its neighbours."""

import hashlib
import hmac
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.typing import Array, Float, Int, PRNGKeyArray, Shaped

PIXELS = "pixels"
"""The name, among a batch's inputs, of pictures [B, ...] in [0, 1]; the rest is left alone."""

ATTACKED = "attacked"
"""The same under attack, where a batch has them."""

_SEEN = ("h_v", "attacked_h_v")  # of pictures, as `Answering.pairs` finds it in a batch
_APART = 7  # the attack draws by the step's key itself

Inputs = dict[str, Array]
"""Arrays [B, ...] by name, one of them `PIXELS`."""


def content_keys(
    secret: bytes, texts: Sequence[str], pictures: Sequence[Sequence[np.ndarray]]
) -> Shaped[Array, " B"]:
    """One key a row, from its content and a secret: whoever does not know the secret cannot tell
    what noise a request will get, and the same request always gets the same.

    Args:
        secret: any bytes.
        texts: one a row.
        pictures: what the model sees of each row's, grey levels / 255.
    """
    names = []
    for text, levels in zip(texts, pictures, strict=True):
        h = hmac.new(secret, text.encode("utf-8", "surrogatepass"), "sha256")
        for each in levels:
            h.update(np.round(255 * each).astype(np.uint8).tobytes())
        names.append(h.hexdigest())
    return row_keys(jax.random.key(0), names)


def row_keys(key: PRNGKeyArray, ids: Sequence[str]) -> Shaped[Array, " B"]:
    """One key a row, from the row's name: in any batch, at any place, it is the same."""
    digests = b"".join(hashlib.sha256(name.encode("utf-8", "replace")).digest() for name in ids)
    words = np.frombuffer(digests, "<u4").reshape(len(ids), -1)[:, :2].astype(np.uint32)
    return jax.vmap(lambda w: jax.random.fold_in(jax.random.fold_in(key, w[0]), w[1]))(words)


def with_noise(batch: Inputs, key: PRNGKeyArray, most: float) -> Inputs:
    """A batch to learn from with noise on its pictures; what was seen of them before is dropped.

    Each row's noise is Gaussian, of a standard deviation between 0 and ``most``, so that clean
    pictures stay among them; a row's clean and ``attacked`` pictures get the same.

    Args:
        batch: with pictures, and perhaps ``attacked`` ones.
        key: of the step.
        most: in units of the pictures; 0 leaves the batch as it is.
    """
    if not most:
        return batch
    scale_key, noise_key = jax.random.split(jax.random.fold_in(key, _APART))
    pixels = batch[PIXELS]
    shape = (len(pixels), *(1,) * (pixels.ndim - 1))
    scale = jax.random.uniform(scale_key, shape, pixels.dtype, 0, most)
    noise = scale * jax.random.normal(noise_key, pixels.shape, pixels.dtype)
    moved = {name: batch[name] + noise for name in (PIXELS, ATTACKED) if name in batch}
    return {name: x for name, x in batch.items() if name not in _SEEN} | moved


def noisy(
    inputs: Inputs,
    keys: Shaped[Array, " B"],
    samples: Int[Array, " n"],
    sigma: float | Float[Array, ""],
) -> Inputs:
    """The given samples of every row: its pictures plus Gaussian noise, not clipped.

    Sample ``j`` of a row is the same whichever others are drawn with it.

    Args:
        inputs: a batch.
        keys: of `row_keys`.
        samples: their numbers.
        sigma: standard deviation, in units of the pictures.

    Returns:
        ``B * n`` rows, those of one input side by side.
    """
    pixels = inputs[PIXELS]

    def draws(key: Array) -> Array:
        each = jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)
        return jax.vmap(lambda k: jax.random.normal(k, pixels.shape[1:], pixels.dtype))(each)

    noise = jax.vmap(draws)(keys).reshape(-1, *pixels.shape[1:])
    repeated = {name: jnp.repeat(x, samples.shape[0], axis=0) for name, x in inputs.items()}
    return repeated | {PIXELS: repeated[PIXELS] + sigma * noise}
