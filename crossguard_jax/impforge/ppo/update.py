"""PPO for a policy that writes texts (arXiv 1707.06347, as used in arXiv 1909.08593).

Everything here is arrays in, arrays out: it knows no model. A policy is a function that evaluates
a trajectory, a reward is one number a row. Scores come at a text's last token; the KL penalty
(k1, against the reference) comes at every token, inside the reward.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crossguard_jax.core.errors import UserError, check_divides
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.train.step import strided

Metrics = dict[str, Array]


@dataclass(frozen=True)
class PpoSettings:
    """The algorithm's numbers; ``configs/impforge.py`` says which are the paper's.

    Attributes:
        kl_coef: weight of the KL in the reward; where an adaptive controller starts.
        kl_target: nats a text that the controller steers to; 0 keeps ``kl_coef`` fixed.
        kl_horizon: texts over which the controller would correct an error of one.
        gamma, gae_lambda: discount and trace of the advantages (arXiv 1506.02438).
        clip_policy, clip_value: half-widths of the trust region.
        value_coef: weight of the critic's loss.
        epochs, minibatches: passes over a trajectory, and parts of each pass.
        missing_end_penalty: subtracted from the score of a text that never ended.
        normalize_by_category: whiten advantages inside each category instead of over all.
    """

    kl_coef: float = 0.05
    kl_target: float = 0.0
    kl_horizon: float = 10_000.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_policy: float = 0.2
    clip_value: float = 0.2
    value_coef: float = 0.1
    epochs: int = 2
    minibatches: int = 4
    missing_end_penalty: float = 1.0
    normalize_by_category: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectory:
    """What a rollout leaves for the update; fields are arrays, one row a text.

    Attributes:
        inputs: what the policy's evaluation needs (prompts, tokens), a tree of [B, ...].
        mask: [B, N], True on the text's tokens, its end token among them.
        ended: [B], whether the text has an end token.
        logprobs: [B, N] float32, of the policy that wrote the text, by the training kernel.
        reference: [B, N] float32, of the reference policy.
        values: [B, N] float32, the critic's.
        category: [B] int32.
    """

    inputs: Any
    mask: Any
    ended: Any
    logprobs: Any
    reference: Any
    values: Any
    category: Any


Evaluate = Callable[[Any, Any, Any], tuple[Array, Array]]
"""``evaluate(trainable, frozen, inputs) -> (logprobs [B, N], values [B, N])``, float32."""


def token_rewards(
    scores: Float[Array, " B"],
    logprobs: Float[Array, "B N"],
    reference: Float[Array, "B N"],
    mask: Bool[Array, "B N"],
    kl_coef: Float[Array, ""] | float,
) -> Float[Array, "B N"]:
    """``-kl_coef * (log pi - log pi_ref)`` at every token, and the score at the last."""
    last = mask & (jnp.cumsum(mask, axis=1) == mask.sum(axis=1, keepdims=True))
    return jnp.where(last, scores[:, None], 0.0) - kl_coef * jnp.where(
        mask, logprobs - reference, 0.0
    )


def advantages_and_returns(
    rewards: Float[Array, "B N"],
    values: Float[Array, "B N"],
    mask: Bool[Array, "B N"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Generalized advantage estimation (arXiv 1506.02438); nothing follows a text's last token."""
    values = jnp.where(mask, values, 0.0)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = jnp.where(mask, rewards + gamma * following - values, 0.0)

    def back(trace: Array, error: Array) -> tuple[Array, Array]:
        trace = error + gamma * gae_lambda * trace
        return trace, trace

    _, traces = jax.lax.scan(back, jnp.zeros_like(errors[:, 0]), errors.T, reverse=True)
    advantages = jnp.where(mask, traces.T, 0.0)
    return advantages, advantages + values


def whiten(
    x: Float[Array, "B N"],
    mask: Bool[Array, "B N"],
    groups: Int[Array, " B"] | None = None,
    n_groups: int = 1,
) -> Float[Array, "B N"]:
    """Zero mean and unit variance over the masked entries, of all rows or of each group's."""
    groups = jnp.zeros(x.shape[0], jnp.int32) if groups is None else groups
    weight = mask.astype(jnp.float32)

    def by_group(y: Array) -> Array:
        return jax.ops.segment_sum(y.sum(axis=1), groups, n_groups)[groups, None]

    n = jnp.maximum(by_group(weight), 1.0)
    centred = x - by_group(x * weight) / n
    variance = by_group(centred**2 * weight) / n
    return jnp.where(mask, centred * jax.lax.rsqrt(variance + 1e-8), 0.0)


def policy_loss(
    logprobs: Float[Array, "B N"],
    old: Float[Array, "B N"],
    advantages: Float[Array, "B N"],
    mask: Bool[Array, "B N"],
    clip: float,
    n_tokens: Array | None = None,
) -> Float[Array, ""]:
    """The clipped surrogate, a mean over tokens (see `masked_mean`)."""
    ratio = jnp.exp(jnp.where(mask, logprobs - old, 0.0))
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return masked_mean(jnp.maximum(-advantages * ratio, -advantages * clipped), mask, n_tokens)


def value_loss(
    values: Float[Array, "B N"],
    old: Float[Array, "B N"],
    returns: Float[Array, "B N"],
    mask: Bool[Array, "B N"],
    clip: float,
    n_tokens: Array | None = None,
) -> Float[Array, ""]:
    """Half the squared error, of the value or of its clipped move, whichever is worse."""
    clipped = old + jnp.clip(values - old, -clip, clip)
    worse = jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * masked_mean(worse, mask, n_tokens)


def masked_mean(
    x: Float[Array, "B N"], mask: Bool[Array, "B N"], n: Array | None = None
) -> Float[Array, ""]:
    """The mean of the masked entries, 0 where there are none; or the share that they have in a mean
    over ``n``, of rows that are a part of more."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum() if n is None else n, 1)


def sequence_kl(
    logprobs: Float[Array, "B N"], reference: Float[Array, "B N"], mask: Bool[Array, "B N"]
) -> Float[Array, " B"]:
    """``log pi(text) - log pi_ref(text)`` in nats (k1)."""
    return jnp.where(mask, logprobs - reference, 0.0).sum(axis=1)


def steer(
    kl_coef: Float[Array, ""], kl: Float[Array, ""], n: int, settings: PpoSettings
) -> Float[Array, ""]:
    """The next KL weight: proportional control in log space (arXiv 1909.08593, section 2.2)."""
    if not settings.kl_target:
        return kl_coef
    error = jnp.clip(kl / settings.kl_target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * n / settings.kl_horizon)


def update(
    evaluate: Evaluate,
    optimizer: optax.GradientTransformation,
    settings: PpoSettings,
    trainable: Any,
    opt_state: Any,
    frozen: Any,
    trajectory: Trajectory,
    scores: Float[Array, " B"],
    kl_coef: Float[Array, ""],
    key: PRNGKeyArray,
    n_categories: int = 1,
    accumulate: int = 1,
) -> tuple[Any, Any, Metrics]:
    """Improves the policy and critic on one trajectory: ``epochs`` x ``minibatches`` steps.

    Args:
        evaluate: the policy's log-probabilities and the critic's values of given texts.
        optimizer: moves ``trainable``.
        settings: the algorithm's numbers.
        trainable: policy and critic.
        opt_state: the optimizer's.
        frozen: passed to ``evaluate``.
        trajectory: the rollout.
        scores: the reward of each text, without KL.
        kl_coef: the KL's weight now.
        key: of the shuffles; every epoch draws its own.
        n_categories: how many categories there are, where advantages are normalized by them.
        accumulate: microbatches a minibatch is split into, one after the other; the gradient is
            that of the whole minibatch.

    Returns:
        ``(trainable, opt_state, metrics)``.

    Raises:
        UserError: the minibatches do not divide the batch, or the microbatches a minibatch.
    """
    t = trajectory
    n = t.mask.shape[0]
    if n % settings.minibatches:
        raise UserError(f"ppo.minibatches {settings.minibatches} does not divide the batch of {n}")
    rows = n // settings.minibatches
    check_divides("optim.accumulate", accumulate, "the minibatch", rows)
    advantages, returns = _advantages(t, scores, kl_coef, settings, n_categories)
    gradients = functools.partial(_gradients, evaluate, settings, frozen)

    def accumulated(trainable: Any, part: Any, n_tokens: Array) -> tuple[Any, Metrics]:
        def one(total: Any, micro: Any) -> tuple[Any, Metrics]:
            grads, metrics = gradients(trainable, micro, n_tokens)
            return jax.tree.map(jnp.add, total, grads), metrics

        zero = jax.tree.map(jnp.zeros_like, trainable)
        grads, shares = jax.lax.scan(one, zero, strided(part, accumulate))
        metrics = {name: value.sum() for name, value in shares.items()}
        return grads, metrics | {"log_ratio_max": shares["log_ratio_max"].max()}

    def step(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], Metrics]:
        trainable, opt_state = carry
        n_tokens = part[0].mask.sum()

        if accumulate == 1:
            grads, metrics = gradients(trainable, part, n_tokens)
        else:
            grads, metrics = accumulated(trainable, part, n_tokens)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return (optax.apply_updates(trainable, updates), opt_state), metrics

    def epoch(carry: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], Metrics]:
        order = jax.random.permutation(key, n).reshape(settings.minibatches, -1)
        parts = jax.tree.map(lambda x: x[order], (t, advantages, returns))
        return jax.lax.scan(step, carry, parts)

    keys = jax.random.split(key, settings.epochs)
    (trainable, opt_state), steps = jax.lax.scan(epoch, (trainable, opt_state), keys)
    return trainable, opt_state, _means(steps) | _fit(t, returns)


def _means(steps: Metrics) -> Metrics:
    """Means over [epochs, minibatches], and of the ratio its extremes."""
    metrics = {name: value.mean() for name, value in steps.items()}
    # Before anything moved the ratio is one: what else it is, is an error of the kernels.
    metrics["log_ratio_max"] = steps["log_ratio_max"][-1].max()
    metrics["log_ratio_start"] = steps["log_ratio_max"][0, 0]
    return metrics


def _fit(t: Trajectory, returns: Float[Array, "B N"]) -> Metrics:
    """How well the critic foresaw the returns."""
    residual = jnp.where(t.mask, returns - t.values, 0.0)
    spread = masked_mean((returns - masked_mean(returns, t.mask)) ** 2, t.mask)
    unexplained = masked_mean(residual**2, t.mask) / jnp.maximum(spread, 1e-8)
    return {"explained_variance": 1 - unexplained}


def _advantages(
    t: Trajectory, scores: Array, kl_coef: Array, settings: PpoSettings, n_categories: int
) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Whitened advantages, and returns, of a trajectory whose texts have these scores."""
    scores = scores.astype(jnp.float32) - settings.missing_end_penalty * ~t.ended
    rewards = token_rewards(scores, t.logprobs, t.reference, t.mask, kl_coef)
    advantages, returns = advantages_and_returns(
        rewards, t.values, t.mask, settings.gamma, settings.gae_lambda
    )
    groups = t.category if settings.normalize_by_category else None
    n_groups = n_categories if groups is not None else 1
    return whiten(advantages, t.mask, groups, n_groups), returns


def _gradients(
    evaluate: Evaluate,
    settings: PpoSettings,
    frozen: Any,
    trainable: Any,
    part: tuple[Trajectory, Array, Array],
    n_tokens: Int[Array, ""],
) -> tuple[Any, Metrics]:
    """What rows ``(trajectory, advantages, returns)`` add to gradient and metrics of a minibatch of
    ``n_tokens``: of the policy's loss, then of the critic's.

    A loop of two, since what each keeps for its gradient would else lie there together: a compiler
    may run two things side by side that do not depend on each other, and none does so with the
    turns of a loop. Of what `evaluate` gives, what a loss does not ask for is not computed.
    """
    t, advantages, returns = part

    def of_policy(trainable: Any) -> tuple[Float[Array, ""], Metrics]:
        logprobs, _ = evaluate(trainable, frozen, t.inputs)
        clip = settings.clip_policy
        loss = policy_loss(logprobs, t.logprobs, advantages, t.mask, clip, n_tokens)
        ratio = jnp.exp(jnp.where(t.mask, logprobs - t.logprobs, 0.0))
        outside = (jnp.abs(ratio - 1) > clip).astype(jnp.float32)
        return loss, {
            "policy_loss": loss,
            "clip_fraction": masked_mean(outside, t.mask, n_tokens),
            "log_ratio_max": jnp.abs(jnp.log(ratio)).max(),
        }

    def of_value(trainable: Any) -> tuple[Float[Array, ""], Metrics]:
        _, values = evaluate(trainable, frozen, t.inputs)
        clip = settings.clip_value
        loss = value_loss(values, t.values, returns, t.mask, clip, n_tokens)
        return settings.value_coef * loss, {"value_loss": loss}

    def half(loss: Callable[[Any], tuple[Array, Metrics]]) -> Callable[[Any], tuple[Any, Metrics]]:
        def gradient(trainable: Any) -> tuple[Any, Metrics]:
            (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
            return grads, dict.fromkeys(_OF_ROWS, jnp.float32(0)) | metrics | {"loss": value}

        return gradient

    def one(total: Any, turn: Array) -> tuple[Any, Metrics]:
        grads, metrics = jax.lax.switch(turn, (half(of_policy), half(of_value)), trainable)
        return jax.tree.map(jnp.add, total, grads), metrics

    zero = jax.tree.map(jnp.zeros_like, trainable)
    grads, metrics = jax.lax.scan(one, zero, jnp.arange(2))
    return grads, {name: value.sum() for name, value in metrics.items()}


_OF_ROWS = ("policy_loss", "clip_fraction", "log_ratio_max", "value_loss")
"""Metrics that come of the losses themselves."""
