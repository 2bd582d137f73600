"""What an attack climbs on a system: the registry's climbs, made of a model's outputs."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from crossguard_jax.attacks import adaptive
from crossguard_jax.attacks.embedding import push
from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.problem import Objective, Outcome
from crossguard_jax.attacks.registry import Registered
from crossguard_jax.cmai import operating
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

TARGETED = ("target", "target_loss")
"""Climbs toward one answer, which option ``target`` names."""

SLACK = 0.05  # of a margin: what rounding to grey levels may take away


def climb(
    system: Immunized,
    whose: str,
    attack: Registered,
    params: Any,
    rows: Any,
    x: Array,
    key: PRNGKeyArray,
) -> Outcome:
    """`attacks.named.RowObjective` of a registered attack.

    Args:
        system: whose outputs are climbed.
        whose: its numbers' name in ``params``.
        attack: what is climbed, and its options.
        params, rows, x, key: as of the objective.
    """
    own = params[whose]

    def answers(x: Array, key: PRNGKeyArray) -> Outcome:
        return system.accepted(own, rows, x, key)

    def policy(x: Array, key: PRNGKeyArray) -> Outcome:
        return system.outcome(own, rows, x, key)

    def ratio(x: Array, key: PRNGKeyArray) -> Outcome:
        loss = "dlr" if len(system.task.labels) > 2 else "margin"
        return _of_logits(system, own, rows, loss, None)(x, key)

    def target(x: Array, key: PRNGKeyArray) -> Outcome:
        targets = jnp.full_like(rows["labels"], target_of(system, attack.options["target"]))
        loss = "cross_entropy" if attack.climb == "target_loss" else "margin"
        return _of_logits(system, own, rows, loss, targets)(x, key)

    def inside(x: Array, key: PRNGKeyArray) -> Outcome:
        low, high = answering_branch(system.policy) or (-math.inf, math.inf)
        s_c = lambda x, key: system.s_c(own, rows, x)  # noqa: E731
        kept = adaptive.pinned(_by_margin(policy), s_c, low, high)
        return adaptive.selective(kept, SLACK)(x, key)

    def features(x: Array, key: PRNGKeyArray) -> Outcome:
        clean = tower_states(system, own, rows, rows["clean"].astype(jnp.float32) / 255)
        states = lambda x, key: tower_states(system, own, rows, x)  # noqa: E731
        return push(states, clean, metric=attack.options["metric"])(x, key)

    ways: dict[str, Callable[[], Objective]] = {
        "loss": lambda: answers,
        "margin": lambda: _by_margin(answers),
        "dlr": lambda: ratio,
        "target": lambda: target,
        "target_loss": lambda: target,
        "policy": lambda: _by_margin(policy),
        "selective": lambda: adaptive.selective(_by_margin(answers), SLACK),
        "weighted": lambda: adaptive.weighted(_by_margin(answers), 1.0),
        "pinned": lambda: inside,
        "denial": lambda: adaptive.denial(policy),
        "features": lambda: features,
        "donors": lambda: _by_margin(answers),  # what judges each donor's result
    }
    return ways[attack.climb]()(x, key)


def target_of(system: Immunized, target: str) -> int:
    """The place of the answer that a targeted attack wants; "" is the first one, which for a guard
    lets the request through.

    Raises:
        UserError: the model does not give it.
    """
    labels = system.task.labels
    if target and target not in labels:
        raise UserError(f"attack: target {target!r} is none of {', '.join(labels[:20])}")
    return labels.index(target) if target else 0


def answering_branch(policy: Policy) -> tuple[float, float] | None:
    """The interval of S_c of the last branch that answers otherwise than plainly."""
    bottom, interval = -math.inf, None
    for branch in policy.branches[:-1]:
        if branch.do != "reject":
            interval = bottom, branch.below
        bottom = branch.below
    return interval


def tower_states(system: Immunized, params: Any, rows: Any, x: Array) -> Array:
    """The vision tower's states of each row's pictures, [B, P, W]."""
    pixels, _ = system.part.clean(rows, x)
    states, _ = system.task.see(params["trainable"], params["frozen"], pixels, system.regime)
    return states.reshape(len(x), -1, states.shape[-1])


def _of_logits(
    system: Immunized, params: Any, rows: Any, loss: str, targets: Array | None
) -> Objective:
    """The plain answer's logits as a classifier's; caught is what another branch deals with."""

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        trainable, cuts = params["trainable"], params["cuts"]
        inputs = system.part.clean(rows, x)
        logits, h_v = system.task.logits(trainable, params["frozen"], rows, inputs, system.regime)
        logits = operating.moved(rows, logits)
        outcome = from_logits(lambda x, key: logits, rows["labels"], loss, targets)(x, key)
        s_c = system.task.s_c(trainable, rows, h_v)
        return replace(outcome, detector=cuts[-1] - s_c if len(cuts) else None)

    return objective


def _by_margin(of: Objective) -> Objective:
    def by_margin(x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = of(x, key)
        return replace(outcome, loss=outcome.margin)

    return by_margin
