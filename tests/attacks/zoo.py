"""Four tiny models, each weak in its own way (or not), and the attacks that tell them apart.

Pictures are [B, 1, 12, 12] in grey levels around the middle, so that no ball of up to 60 levels is
cut; what a model reads off them is linear, so that it is known what an attack can do. A row's
``sign`` is its right answer, +1 or -1. ``donors`` are two pictures of the other answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.adaptive import selective
from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.embedding import match_donors
from crossguard_jax.attacks.named import NamedAttack, RowObjective
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.attacks.square import square
from crossguard_jax.core.typing import Array, PRNGKeyArray

SIDE, FEATURES = 12, 8
PIXELS = SIDE * SIDE
LEVEL = 1 / 255


@dataclass(frozen=True)
class Animal:
    """A model, its parameters and its rows."""

    objective: RowObjective
    params: Any
    x: np.ndarray
    rows: Any


def linear(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """The answer is the sign of a weighted sum; the margin is how many levels it lacks."""
    margin = -rows["sign"] * (_levels(x) @ params["w"])
    return Outcome(margin, margin, jnp.full_like(margin, -1.0))


def masked(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """The same of rounded pixels, which have no gradient."""
    return linear(params, rows, jnp.round(255 * x) / 255, key)


def watched(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """A detector wants the upper half of the picture to agree with the answer; the lower half,
    which the model reads as well, it does not look at."""
    plain = linear(params, rows, x, key)
    upper = jnp.arange(PIXELS) < PIXELS // 2
    agrees = 2 * rows["sign"] * (_levels(x) @ jnp.where(upper, params["w"], 0))
    return Outcome(plain.loss, plain.margin, 1.0 - agrees)


def matched(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """The nearer of two prototypes answers; what is far from both is caught."""
    f = features(params, x)
    apart = jnp.stack([((f - sign * params["prototype"]) ** 2).sum(axis=1) for sign in (1, -1)])
    margin = jnp.where(rows["sign"] > 0, apart[0] - apart[1], apart[1] - apart[0])
    return Outcome(margin, margin, jnp.sqrt(apart.min(axis=0)) - params["reach"])


def features(params: Any, x: Array) -> Array:
    """What `matched` looks at, [B, 8]."""
    return _levels(x) @ params["features"].T


def distances(animal: Animal) -> np.ndarray:
    """How many levels every pixel must move until a linear row's answer turns, exactly."""
    w = animal.params["w"].astype(np.float64)
    levels = np.round(255 * animal.x).astype(np.float64).reshape(len(animal.x), -1) - 128
    return animal.rows["sign"] * (levels @ w) / np.abs(w).sum()


def linear_animal(
    objective: RowObjective, nearest: float, furthest: float, n: int = 48, seed: int = 0
) -> Animal:
    """Rows whose answers turn when every pixel moves by ``nearest`` to ``furthest`` levels."""
    rng = np.random.default_rng(seed)
    w = rng.choice([-1.0, 1.0], PIXELS) * rng.uniform(0.5, 1.5, PIXELS)
    w /= np.abs(w).sum()  # so that a sum is in levels that every pixel has moved
    sign = rng.choice([-1.0, 1.0], n)
    base = rng.integers(-12, 13, (n, PIXELS)).astype(float)
    wanted = sign * rng.uniform(nearest, furthest, n)
    for half in (slice(0, PIXELS // 2), slice(PIXELS // 2, PIXELS)):  # each half says the same
        share = np.abs(w[half]).sum()
        lacks = wanted - base[:, half] @ w[half] / share
        base[:, half] += lacks[:, None] * np.sign(w[half])
    return _animal(objective, base, sign, {"w": w.astype(np.float32)}, rng)


def matched_animal(n: int = 48, seed: int = 0) -> Animal:
    """Rows at their prototypes; the way from one to the other is 6 levels of every pixel."""
    rng = np.random.default_rng(seed)
    read = np.linalg.qr(rng.normal(size=(PIXELS, FEATURES)))[0].T
    direction = rng.normal(size=FEATURES)
    push = np.sign(read.T @ direction)
    prototype = direction * (3 * (read @ push) @ direction / (direction @ direction))
    sign = rng.choice([-1.0, 1.0], n)
    base = rng.integers(-12, 13, (n, PIXELS)).astype(float)
    base += (sign[:, None] * prototype - base @ read.T) @ read
    params = {
        "features": read.astype(np.float32),
        "prototype": prototype.astype(np.float32),
        "reach": np.float32(0.15 * 2 * np.linalg.norm(prototype)),
    }
    return _animal(matched, base, sign, params, rng)


def attacks(known: Animal, steps: int = 20) -> dict[str, NamedAttack]:
    """One attack of each kind; ``known`` is the model that a transfer attack has."""
    budget = Budget(0.0, steps=steps)

    def surrogate(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        return linear(known.params, rows, x, key)

    def aware(objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget) -> AttackResult:
        # Rounding to grey levels takes a margin of less than that away again.
        return pgd(selective(objective, slack=0.5), x, key, budget)

    return {
        "pgd": NamedAttack(pgd, budget),
        "square": NamedAttack(square, Budget(0.0, steps=400), kind="gradient_free"),
        "transfer": NamedAttack(pgd, budget, surrogate, kind="transfer"),
        "selective": NamedAttack(aware, budget, kind="adaptive"),
    }


def donor_attack(steps: int = 40) -> NamedAttack:
    """Drives features to each donor's."""

    def bound(params: Any, rows: Any) -> Callable[..., AttackResult]:
        donors = jax.vmap(partial(features, params), 1, 1)(rows["donors"])

        def attack(
            objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget
        ) -> AttackResult:
            features_of = lambda x, key: features(params, x)  # noqa: E731
            return match_donors(apgd, features_of, donors, objective, x, key, budget, "l2")

        return attack

    return NamedAttack(bound, Budget(0.0, steps=steps), kind="adaptive", bound=True)


def _levels(x: Array) -> Array:
    return (255 * x - 128).reshape(x.shape[0], -1)


def _animal(
    objective: RowObjective, base: np.ndarray, sign: np.ndarray, params: Any, rng: Any
) -> Animal:
    """Levels around 128 as pictures, each with two donors drawn from the other answer's rows."""
    levels = np.clip(np.round(base), -60, 60) + 128
    x = (levels.reshape(-1, 1, SIDE, SIDE) / 255).astype(np.float32)
    donors = np.stack([x[rng.choice(np.flatnonzero(sign == -s), 2)] for s in sign])
    return Animal(objective, params, x, {"sign": sign.astype(np.float32), "donors": donors})
