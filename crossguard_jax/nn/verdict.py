"""Two-token scoring: the verdict is the next token after the guard prompt.

Softmax runs over the two label tokens only; the last position alone goes through the last layer's
queries and the head, and two columns of the head alone are used.
"""

import jax
import jax.numpy as jnp

from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.lora import LoraScale

Batch = dict[str, Array]
"""``input_ids`` [B, L], ``attention_mask`` [B, L], ``pixel_values`` [B, C, X, Y] or absent."""


def label_logits(
    model: Llava, batch: Batch, label_ids: Int[Array, "2"], lora_scale: LoraScale = 1.0
) -> Float[Array, "B 2"]:
    """Logits of the (negative, positive) label token after each row's last real token."""
    return model.last_logits(
        batch["input_ids"],
        batch.get("pixel_values"),
        batch["attention_mask"].astype(bool),
        jnp.asarray(label_ids),
        lora_scale,
    )


def p_positive(logits: Float[Array, "B 2"]) -> Float[Array, " B"]:
    """Probability of the positive label ("unsafe") against the negative one."""
    return jax.nn.sigmoid(logits[:, 1] - logits[:, 0])


def cross_entropy(logits: Float[Array, "B 2"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """``-log p(y | picture, text)`` in nats; ``labels`` are 0 (negative) or 1 (positive)."""
    margin = (logits[:, 1] - logits[:, 0]) * (1 - 2 * labels)
    return jax.nn.softplus(margin)
