"""AdamW with warm-up, as every recipe here uses it."""

from typing import Any

import optax

from crossguard_jax.core.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(
    config: Any, steps: int, field: str = "optim", steps_field: str = "train.steps"
) -> optax.Schedule:
    """Linear warm-up from 0, then the config's ``schedule`` down to ``end_learning_rate``.

    Args:
        config: ``learning_rate``, ``schedule``, ``warmup_steps``, ``end_learning_rate``.
        steps: optimizer steps of the whole run.
        field, steps_field: what errors call ``config`` and ``steps``.

    Raises:
        UserError: no such schedule, or a warm-up that the run is too short for.
    """
    peak, end, warmup = config.learning_rate, config.end_learning_rate, config.warmup_steps
    if config.schedule not in SCHEDULES:
        choices = ", ".join(SCHEDULES)
        raise UserError(f"{field}.schedule {config.schedule!r} is none of {choices}")
    if not 0 <= warmup < max(steps, 1):
        raise UserError(
            f"{field}.warmup_steps {warmup}: must be from 0 to below {steps_field} {steps}"
        )
    rest = max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, end / peak if peak else 0.0),
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), after], [warmup])


def optimizer(config: Any, steps: int, *fields: str) -> optax.GradientTransformation:
    """Clipping by global norm (0: none), then AdamW (arXiv 1711.05101).

    Args:
        config: `learning_rate`'s, and ``clip_norm``, ``b1``, ``b2``, ``weight_decay``.
        steps, fields: as in `learning_rate`.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = optax.adamw(
        learning_rate(config, steps, *fields),
        config.b1,
        config.b2,
        weight_decay=config.weight_decay,
    )
    return optax.chain(clip, adam)
