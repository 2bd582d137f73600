"""Objectives on a classifier's logits; two label tokens' logits are a classifier of two classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.problem import Objective, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray

LogitsOf = Callable[[Array, PRNGKeyArray], Array]
"""``logits_of(x [B, ...], key) -> [B, V]``, V classes."""

LOSSES = ("cross_entropy", "margin", "dlr")
Labels = Int[Array, " _"] | Int[np.ndarray, " _"]
"""[B] classes."""


def from_logits(
    logits_of: LogitsOf,
    labels: Labels,
    loss: str = "cross_entropy",
    targets: Labels | None = None,
) -> Objective:
    """An attack on a classifier: away from ``labels``, or toward ``targets`` where given.

    The outcome's margin is the best wrong logit less the right one; targeted, it is the target's
    logit less the best other one.

    Args:
        logits_of: the classifier; its key is for whatever is random in it.
        labels: the right classes.
        loss: ``cross_entropy``; ``margin``; or ``dlr``, the difference of logits ratio of
            arXiv 2003.01690 (section 4), which does not change with the logits' scale; it needs
            three classes, four where targeted.
        targets: classes that the attacker wants.

    Raises:
        UserError: a loss that is none of these; and, where the objective is called, what
            `check_labels` refuses, or too few classes for ``dlr``.
    """
    if loss not in LOSSES:
        raise UserError(f"attack: loss {loss!r} is none of {', '.join(LOSSES)}")
    sign, classes = (1, labels) if targets is None else (-1, targets)

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        logits = logits_of(x, key)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if logits.ndim != 2 or logits.shape[0] != len(labels):
            raise UserError(
                f"attack: logits {list(logits.shape)} for {len(labels)} labels; give [B, classes]"
            )
        check_labels(labels, logits.shape[1], targets)
        margin = sign * margin_from(logits, classes)
        if loss == "margin":
            return Outcome(margin, margin)
        if loss == "dlr":
            return Outcome(logits_ratio(logits, labels, targets), margin)
        return Outcome(sign * cross_entropy(logits, classes), margin)

    return objective


def check_labels(labels: Labels, n_classes: int, targets: Labels | None = None) -> None:
    """Refuses labels that are no classes, and targets that are none or are the labels.

    Values that jit traces pass unseen: call this outside, where the labels are.

    Raises:
        UserError: with the first row that is wrong.
    """
    if n_classes < 2:
        raise UserError(f"attack: {n_classes} class; a classifier needs two logits")
    for name, values in (("labels", labels), ("targets", targets)):
        if values is None or isinstance(values, jax.core.Tracer):
            continue
        wrong = np.flatnonzero((np.asarray(values) < 0) | (np.asarray(values) >= n_classes))
        if wrong.size:
            raise UserError(
                f"attack: {name}[{wrong[0]}] is {values[wrong[0]]}; classes are 0 to "
                f"{n_classes - 1}"
            )
    if targets is None:
        return
    if np.shape(targets) != np.shape(labels):
        raise UserError(f"attack: {len(targets)} targets for {len(labels)} labels; give one each")
    if not (isinstance(labels, jax.core.Tracer) or isinstance(targets, jax.core.Tracer)):
        same = np.flatnonzero(np.asarray(targets) == np.asarray(labels))
        if same.size:
            raise UserError(
                f"attack: targets[{same[0]}] is the label, {labels[same[0]]}; take another class"
            )


def cross_entropy(logits: Float[Array, "B V"], labels: Labels) -> Float[Array, " B"]:
    """-log p(label), in nats."""
    # As log(1 + e^z): it keeps a gradient where 1 - p rounds to 0 and log p has none.
    others = jax.nn.logsumexp(_others(logits, labels), axis=1)
    return jax.nn.softplus(others - _pick(logits, labels))


def margin_from(logits: Float[Array, "B V"], labels: Labels) -> Float[Array, " B"]:
    """The best other logit less the label's: above 0, another class wins."""
    return _others(logits, labels).max(axis=1) - _pick(logits, labels)


def logits_ratio(
    logits: Float[Array, "B V"], labels: Labels, targets: Labels | None = None
) -> Float[Array, " B"]:
    """The difference of logits ratio (arXiv 2003.01690), untargeted or targeted.

    Raises:
        UserError: fewer than three classes, or four with ``targets``.
    """
    need = 3 if targets is None else 4
    if logits.shape[1] < need:
        raise UserError(
            f"attack: loss dlr needs {need} classes and there are {logits.shape[1]}; take margin"
        )
    ranked = -jnp.sort(-logits, axis=1)
    if targets is None:
        return margin_from(logits, labels) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    return (_pick(logits, targets) - _pick(logits, labels)) / (spread + 1e-12)


def unlikely(
    logits: Float[Array, "B N V"], tokens: Int[Array, "B N"], mask: Bool[Array, "B N"]
) -> Outcome:
    """Away from one answer in words, given the logits at each of its tokens after those before it.

    Args:
        logits: teacher-forced.
        tokens: the answer's.
        mask: False behind its end.

    Returns:
        The loss, ``-log p(answer)`` in nats. The margin, the greatest over the answer's tokens of
        the best other logit less the token's own: it is above 0 exactly where greedy decoding
        says something else. (Logits behind the first token that changes are those of an answer
        that is not given, but there the margin is above 0 already.)
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1)
    nats = cross_entropy(flat, targets).reshape(tokens.shape)
    margins = margin_from(flat, targets).reshape(tokens.shape)
    loss = jnp.where(mask, nats, 0).sum(axis=1)
    return Outcome(loss, jnp.where(mask, margins, -jnp.inf).max(axis=1))


def _pick(logits: Array, classes: Labels) -> Array:
    return jnp.take_along_axis(logits, jnp.asarray(classes)[:, None], axis=1)[:, 0]


def _others(logits: Array, classes: Labels) -> Array:
    """The logits, with the given class out of the running."""
    return jnp.where(jnp.arange(logits.shape[1]) == classes[:, None], -jnp.inf, logits)
