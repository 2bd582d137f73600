"""Two-token scoring: the verdict is the next token after the guard prompt.

A score is a softmax over the two label tokens only; the last position alone goes through the last
layer's queries and the head, and two columns of the head alone are used. What is trained on is the
whole vocabulary at that position (`LOSSES`): a loss over two columns leaves the labels where they
were among all other tokens, and a server that samples one token says something else.
"""

import jax
import jax.numpy as jnp

from crossguard_jax.core.typing import Array, Float, Int
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.lora import LoraScale

LOSSES = ("vocabulary", "labels")
"""``-log p(label)`` over every token, or over the two labels (the paper's binary cross-entropy)."""

Batch = dict[str, Array]
"""``input_ids`` [B, L], ``attention_mask`` [B, L]; ``pixel_values`` [M, C, X, Y] and, unless row i
shows picture i, ``picture_index`` [B, I] (see `nn.llava.Llava`), or neither."""


def label_logits(
    model: Llava,
    batch: Batch,
    label_ids: Int[Array, "2"] | None,
    lora_scale: LoraScale = 1.0,
) -> Float[Array, "B V"]:
    """Logits of the (negative, positive) label token after each row's last real token, [B, 2]; of
    the whole vocabulary, [B, V], where ``label_ids`` is None."""
    return model.last_logits(
        batch["input_ids"],
        batch.get("pixel_values"),
        batch["attention_mask"].astype(bool),
        None if label_ids is None else jnp.asarray(label_ids),
        lora_scale,
        batch.get("picture_index"),
    )


def p_positive(logits: Float[Array, "B 2"]) -> Float[Array, " B"]:
    """Probability of the positive label ("unsafe") against the negative one."""
    return jax.nn.sigmoid(logits[:, 1] - logits[:, 0])


def cross_entropy(logits: Float[Array, "B 2"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """``-log p(y | picture, text)`` in nats; ``labels`` are 0 (negative) or 1 (positive)."""
    margin = (logits[:, 1] - logits[:, 0]) * (1 - 2 * labels)
    return jax.nn.softplus(margin)


def log_mass(logits: Float[Array, "B V"], label_ids: Int[Array, " K"]) -> Float[Array, " B"]:
    """Log of the probability that the next token is one of the labels."""
    labels = jax.nn.logsumexp(logits[:, jnp.asarray(label_ids)], axis=1)
    return labels - jax.nn.logsumexp(logits, axis=1)


def vocabulary_loss(
    logits: Float[Array, "B V"], label_ids: Int[Array, " K"], labels: Int[Array, " B"]
) -> Float[Array, " B"]:
    """``-log p(y | picture, text)`` in nats, y among all V tokens.

    Args:
        logits: at the position of the label.
        label_ids: token ids of the K answers.
        labels: which of them is right.
    """
    right = jnp.take_along_axis(logits, jnp.asarray(label_ids)[labels][:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - right
