"""What a guard learns by: cross-entropy on the label that comes next (see `guard.recipe`)."""

from typing import Any

import jax.numpy as jnp

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.nn import lora, verdict
from crossguard_jax.train.step import Loss


def guard_loss(graphdef: Any, label_ids: tuple[int, int], over: str = "vocabulary") -> Loss:
    """Mean cross-entropy (nats) and accuracy of a batch with ``labels``, by the adapter.

    ``-log p(label)`` is the cross-entropy over the two labels plus ``-log`` of the mass that both
    have. The loss takes a weight of the second as its last argument.

    Args:
        graphdef: the model's.
        label_ids: of the (negative, positive) label.
        over: a name in `nn.verdict.LOSSES`.

    Raises:
        UserError: another name.
    """
    if over not in verdict.LOSSES:
        raise UserError(f"train.loss {over!r} is none of {', '.join(verdict.LOSSES)}")
    ids = jnp.asarray(label_ids)

    def loss(
        adapters: Any, frozen: Any, batch: Any, key: PRNGKeyArray, weight: Array | float = 1.0
    ) -> tuple[Array, Any]:
        model, labels = lora.merge(graphdef, adapters, frozen), batch["labels"]
        every = verdict.label_logits(model, batch, None if over == "vocabulary" else ids)
        logits = every[:, ids] if over == "vocabulary" else every
        losses = verdict.cross_entropy(logits, labels)
        metrics = {"accuracy": ((logits[:, 1] > logits[:, 0]) == labels).mean()}
        if over == "vocabulary":
            log_mass = verdict.log_mass(every, ids)
            losses, metrics["mass"] = losses - weight * log_mass, jnp.exp(log_mass).mean()
        return losses.mean(), metrics

    return loss


def mass_weight(first: float, step: Array) -> Array:
    """Weight of the labels' mass: 0 in the ``first`` steps, then 1."""
    return (step >= first).astype(jnp.float32)
