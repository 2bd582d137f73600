"""PPO's arithmetic against loops over texts and tokens in numpy."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.impforge.ppo import update as ppo
from crossguard_jax.impforge.ppo.update import PpoSettings, Trajectory

DRAWS = range(6)


def put(*arrays: object) -> list[object]:
    """The arguments with numpy's arrays on the device."""
    return [jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]


class Drawn:
    """A random batch of ragged texts; row 0 has one token, row 1 has all."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.b, self.n = int(rng.integers(3, 9)), int(rng.integers(4, 13))
        lengths = rng.integers(1, self.n + 1, self.b)
        lengths[:2] = 1, self.n
        self.lengths = lengths
        self.mask = np.arange(self.n) < lengths[:, None]
        # What is behind a text's end must not matter, so it is large.
        self.old = self.noise(0.5) - 2
        self.new = self.old + self.noise(0.3)
        self.reference = self.old + self.noise(0.5)
        self.values, self.old_values = self.noise(1.0), self.noise(1.0)
        self.rewards = self.noise(1.0)
        self.scores = rng.normal(size=self.b).astype(np.float32)

    def noise(self, scale: float) -> np.ndarray:
        x = self.rng.normal(size=(self.b, self.n)) * scale
        return np.where(self.mask, x, 7.0).astype(np.float32)

    def tokens(self) -> Iterator[tuple[int, int]]:
        return ((i, t) for i in range(self.b) for t in range(self.lengths[i]))


@pytest.mark.parametrize("seed", DRAWS)
def test_token_rewards_are_those_of_a_loop(seed: int) -> None:
    d = Drawn(seed)
    found = ppo.token_rewards(*put(d.scores, d.old, d.reference, d.mask, 0.07))
    expected = np.zeros((d.b, d.n))
    for i, t in d.tokens():
        expected[i, t] = -0.07 * (float(d.old[i, t]) - float(d.reference[i, t]))
        if t == d.lengths[i] - 1:
            expected[i, t] += d.scores[i]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    kl = [sum(d.old[i, t] - d.reference[i, t] for t in range(d.lengths[i])) for i in range(d.b)]
    np.testing.assert_allclose(ppo.sequence_kl(*put(d.old, d.reference, d.mask)), kl, atol=1e-5)


@pytest.mark.parametrize("seed", DRAWS)
def test_advantages_are_those_of_the_definition(seed: int) -> None:
    d = Drawn(seed)
    gamma, lam = 0.9, 0.8
    found = ppo.advantages_and_returns(*put(d.rewards, d.values, d.mask, gamma, lam))
    expected = np.zeros((2, d.b, d.n))
    for i, t in d.tokens():
        total, end = 0.0, d.lengths[i]
        for s in range(t, end):  # the sum itself, not its recursion
            following = float(d.values[i, s + 1]) if s + 1 < end else 0.0
            error = float(d.rewards[i, s]) + gamma * following - float(d.values[i, s])
            total += (gamma * lam) ** (s - t) * error
        expected[:, i, t] = total, total + d.values[i, t]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(np.where(d.mask, found[1], 0), expected[1], atol=1e-5)


@pytest.mark.parametrize("seed", DRAWS)
def test_whitening_is_of_the_masked_entries_of_each_group(seed: int) -> None:
    d = Drawn(seed)
    for groups in (None, d.rng.integers(0, 3, d.b).astype(np.int32)):
        found = ppo.whiten(*put(d.rewards, d.mask, groups, 1 if groups is None else 3))
        labels = np.zeros(d.b) if groups is None else groups
        for label in set(labels):
            inside = d.mask & (labels == label)[:, None]
            x = d.rewards[inside].astype(np.float64)
            expected = (x - x.mean()) / math.sqrt(x.var() + 1e-8)
            np.testing.assert_allclose(np.asarray(found)[inside], expected, atol=2e-4)
        assert not np.asarray(found)[~d.mask].any()


@pytest.mark.parametrize("seed", DRAWS)
def test_the_policy_loss_and_its_gradient_are_those_of_a_loop(seed: int) -> None:
    d = Drawn(seed)
    clip, n = 0.2, int(d.mask.sum())
    found, slope = jax.value_and_grad(ppo.policy_loss)(*put(d.new, d.old, d.rewards, d.mask, clip))
    loss, expected = 0.0, np.zeros((d.b, d.n))
    for i, t in d.tokens():
        ratio, a = math.exp(float(d.new[i, t]) - float(d.old[i, t])), float(d.rewards[i, t])
        free, held = -a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip)
        loss += max(free, held) / n
        if free >= held:  # the clipped branch is flat where it is the larger
            expected[i, t] = free / n
    assert float(found) == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(slope, expected, atol=1e-5)
    assert (expected[d.mask] == 0).any(), "no token is clipped, so the clip was not looked at"


@pytest.mark.parametrize("seed", DRAWS)
def test_the_value_loss_and_its_gradient_are_those_of_a_loop(seed: int) -> None:
    d = Drawn(seed)
    clip, n, returns = 0.2, int(d.mask.sum()), d.noise(1.0)
    args = d.values, d.old_values, returns, d.mask, clip
    found, slope = jax.value_and_grad(ppo.value_loss)(*put(*args))
    loss, expected = 0.0, np.zeros((d.b, d.n))
    for i, t in d.tokens():
        value, old, target = (float(x[i, t]) for x in (d.values, d.old_values, returns))
        held = min(max(value, old - clip), old + clip)
        free_error, held_error = (value - target) ** 2, (held - target) ** 2
        loss += 0.5 * max(free_error, held_error) / n
        if free_error >= held_error:
            expected[i, t] = (value - target) / n
    assert float(found) == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(slope, expected, atol=1e-5)


def test_the_controller_steers_the_kl_to_its_target() -> None:
    settings = PpoSettings(kl_target=6.0, kl_horizon=1000.0)
    steer = ppo.steer
    coef = jnp.float32(0.05)
    assert float(steer(coef, jnp.float32(12.0), 100, settings)) == pytest.approx(0.05 * 1.02)
    assert float(steer(coef, jnp.float32(0.0), 100, settings)) == pytest.approx(0.05 * 0.98)
    assert float(steer(coef, jnp.float32(6.6), 100, settings)) == pytest.approx(0.05 * 1.01)
    assert float(steer(coef, jnp.float32(99.0), 100, PpoSettings())) == pytest.approx(0.05)


def bandit(settings: PpoSettings, scores: np.ndarray, tokens: np.ndarray, n_tokens: int):
    """A policy without context: one logit a token, and a critic of one number."""

    def evaluate(trainable, frozen, inputs):
        logs = jax.nn.log_softmax(trainable["logits"])[inputs["tokens"]]
        return logs, jnp.broadcast_to(trainable["value"], logs.shape)

    trainable = {"logits": jnp.zeros(n_tokens), "value": jnp.zeros(())}
    tokens = jnp.asarray(tokens)
    logs, values = evaluate(trainable, None, {"tokens": tokens})
    mask = jnp.ones(tokens.shape, bool)
    category = jnp.zeros(len(tokens), jnp.int32)
    ended = jnp.ones(len(tokens), bool)
    trajectory = Trajectory({"tokens": tokens}, mask, ended, logs, logs, values, category)
    adam = optax.adam(0.05)
    key = jax.random.key(0)
    return jax.jit(
        lambda: ppo.update(
            evaluate,
            adam,
            settings,
            trainable,
            adam.init(trainable),
            None,
            trajectory,
            jnp.asarray(scores),
            jnp.float32(0.0),
            key,
        )
    )()


def test_an_update_makes_what_was_rewarded_likelier() -> None:
    tokens = np.arange(8, dtype=np.int32)[:, None] % 4
    scores = (tokens[:, 0] == 2).astype(np.float32)
    trainable, _, metrics = bandit(PpoSettings(minibatches=2), scores, tokens, 4)
    chances = jax.nn.softmax(trainable["logits"])
    assert int(chances.argmax()) == 2 and chances[2] > 0.26
    assert float(metrics["log_ratio_start"]) == 0.0
    assert float(trainable["value"]) > 0


def test_a_text_that_never_ends_is_worth_less() -> None:
    mask, zero = jnp.ones((2, 3), bool), jnp.zeros((2, 3))
    seen = []

    def evaluate(trainable, frozen, inputs):
        return trainable * jnp.ones((2, 3)), jnp.zeros((2, 3))

    for ended in ([True, True], [True, False]):
        trajectory = Trajectory(
            {}, mask, jnp.asarray(ended), zero, zero, zero, jnp.zeros(2, jnp.int32)
        )
        sgd = optax.sgd(0.1)
        _, _, metrics = ppo.update(
            evaluate,
            sgd,
            PpoSettings(minibatches=1, epochs=1, gae_lambda=1.0, missing_end_penalty=3.0),
            jnp.zeros(()),
            sgd.init(jnp.zeros(())),
            None,
            trajectory,
            jnp.ones(2),
            jnp.float32(0.0),
            jax.random.key(0),
        )
        seen.append(float(metrics["value_loss"]))
    # Both returns are 1; with the penalty one of them is -2.
    assert seen == pytest.approx([0.5, (0.5 + 2.0) / 2])


def test_minibatches_must_divide_the_batch() -> None:
    tokens = np.zeros((6, 1), np.int32)
    with pytest.raises(UserError, match="minibatches 4 does not divide the batch of 6"):
        bandit(PpoSettings(minibatches=4), np.zeros(6, np.float32), tokens, 4)


def improved(rows: int, n: int, accumulate: int, seed: int = 0):
    """An update by plain gradient steps of a policy and a critic, on ragged texts."""
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(rng.normal(size=(rows, n)).astype(np.float32)) for _ in range(3)]
    mask = jnp.asarray(np.arange(n) < rng.integers(1, n + 1, rows)[:, None])
    features = jnp.asarray(rng.normal(size=(rows, n, 5)).astype(np.float32))
    trajectory = Trajectory(
        features, mask, mask.any(1), drawn[0] * 0.1, drawn[1] * 0.1, drawn[2], jnp.zeros(rows, int)
    )

    def evaluate(trainable, frozen, inputs):
        logprobs = jnp.tanh(inputs @ trainable["policy"] + trainable["shared"])
        return logprobs, inputs @ trainable["critic"] + trainable["shared"]

    trainable = {"policy": jnp.ones(5) / 5, "critic": jnp.ones(5), "shared": jnp.float32(0.1)}
    sgd, settings = optax.sgd(0.3), PpoSettings(minibatches=2, epochs=2, clip_policy=0.05)
    arguments = (trainable, sgd.init(trainable), None, trajectory, drawn[0][:, 0])
    return jax.jit(
        lambda: ppo.update(
            *(evaluate, sgd, settings, *arguments),
            *(jnp.float32(0.1), jax.random.key(1)),
            accumulate=accumulate,
        )
    )(), (evaluate, settings, trajectory)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_an_update_in_microbatches_of_unequal_texts_is_that_of_the_minibatches(accumulate) -> None:
    (whole, _, metrics), _ = improved(16, 7, 1)
    (parted, _, others), _ = improved(16, 7, accumulate)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), whole, parted)
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert abs(float(whole["shared"]) - 0.1) > 1e-3


def test_one_loss_after_the_other_has_the_gradient_of_their_sum() -> None:
    _, (evaluate, settings, t) = improved(16, 7, 1)
    trainable = {"policy": jnp.ones(5), "critic": jnp.ones(5), "shared": jnp.float32(0.1)}
    advantages, returns = t.values, t.values * 2

    def both(trainable):
        logprobs, values = evaluate(trainable, None, t.inputs)
        policy = ppo.policy_loss(logprobs, t.logprobs, advantages, t.mask, settings.clip_policy)
        value = ppo.value_loss(values, t.values, returns, t.mask, settings.clip_value)
        return policy + settings.value_coef * value

    loss, wanted = jax.value_and_grad(both)(trainable)
    part, n_tokens = (t, advantages, returns), t.mask.sum()
    grads, metrics = ppo._gradients(evaluate, settings, None, trainable, part, n_tokens)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), grads, wanted)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_microbatches_must_divide_the_minibatch() -> None:
    with pytest.raises(UserError, match="^optim.accumulate 3 does not divide the minibatch of 8"):
        improved(16, 7, 3)


def test_policys_and_critics_activations_are_never_there_together(compiled_as_users_do) -> None:
    rows, n, width = 16, 8, 512
    keys = jax.random.split(jax.random.key(0), 4)
    trainable = {
        name: jax.random.normal(k, (width, 4)) for name, k in zip("pc", keys, strict=False)
    }
    frozen = jax.random.normal(keys[2], (4, width))
    inputs = jax.random.normal(keys[3], (rows, n, width))
    zero, mask = jnp.zeros((rows, n)), jnp.ones((rows, n), bool)
    ended, category = jnp.ones(rows, bool), jnp.zeros(rows, jnp.int32)
    t = Trajectory(inputs, mask, ended, zero, zero, zero, category)
    settings = PpoSettings(epochs=1, minibatches=1)

    def tower(kernel, inputs):
        x = inputs
        for _ in range(6):
            x = jnp.tanh(x @ kernel @ frozen)
        return x.mean(-1)

    def evaluate(trainable, frozen, inputs):
        return tower(trainable["p"], inputs), tower(trainable["c"], inputs)

    def temporaries(function, *arguments):
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def apart(accumulate):
        sgd = optax.sgd(0.1)
        return lambda trainable, t: ppo.update(
            *(evaluate, sgd, settings, trainable, sgd.init(trainable), None, t, zero[:, 0]),
            *(jnp.float32(0), jax.random.key(0)),
            accumulate=accumulate,
        )

    def gradients(trainable, t):
        part = t, t.values, t.values + 1
        return ppo._gradients(evaluate, settings, None, trainable, part, t.mask.sum())

    def policy_alone(trainable, t):
        return evaluate(trainable, None, t.inputs)[0].mean()

    of_policy = temporaries(jax.grad(policy_alone), trainable, t)
    one = temporaries(gradients, trainable, t)
    whole, parted = temporaries(apart(1), trainable, t), temporaries(apart(4), trainable, t)
    print(f"temporaries: of the policy alone {of_policy:,}, of both losses {one:,}")
    print(f"temporaries of an update: {whole:,}, in four microbatches {parted:,}")
    assert one < 1.2 * of_policy and parted < 0.6 * whole
