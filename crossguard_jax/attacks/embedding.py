"""Attacks on features: away from the picture's own, or toward another picture's.

The feature objectives are raised by any attack. Features of the picture tower alone cost a small
part of the whole model, so searching by them and judging once (`judged` None, and `match_donors`)
is the cheapest way at a large model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome, Search
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

FeaturesOf = Callable[[Array, PRNGKeyArray], Array]
"""``features_of(x [B, ...], key) -> [B, D]``, or ``[B, P, D]`` for features of P patches."""

METRICS = ("cosine", "l2")


def distance(
    a: Float[Array, "B *P D"], b: Float[Array, "B *P D"], metric: str = "cosine"
) -> Float[Array, " B"]:
    """How far features are from others, the mean over patches.

    ``cosine`` is 1 less the cosine; ``l2`` is the squared distance, as a share of the mean squared
    length of ``b``'s features.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if metric == "cosine":
        a, b = _unit(a), _unit(b)
        return (1 - (a * b).sum(axis=-1)).reshape(len(a), -1).mean(axis=1)
    squares, apart = ((v**2).reshape(len(v), -1).sum(axis=1) for v in (b, a - b))
    return apart / (squares + jnp.finfo(jnp.float32).tiny)


def push(
    features_of: FeaturesOf,
    clean: Float[Array, "B *P D"],
    judged: Objective | None = None,
    metric: str = "cosine",
) -> Objective:
    """Features as far as can be from those of the clean pictures (embedding deviation).

    At the clean picture itself the gradient is 0: start at random (`Budget.random_start`).

    Args:
        features_of: what to deviate.
        clean: its value at the clean pictures.
        judged: whose margin and detector the outcome has; None: nothing counts as a success, and
            what an attack returns is to be judged by `search.judge`.
        metric: a name in `METRICS`.

    Raises:
        UserError: another metric; where the objective is called, features of another shape.
    """
    return _objective(features_of, clean, judged, metric, sign=1)


def pull(
    features_of: FeaturesOf,
    donors: Float[Array, "B *P D"],
    judged: Objective | None = None,
    metric: str = "cosine",
) -> Objective:
    """Features as near as can be to a donor's (arXiv 2409.06793, which takes the angle).

    A donor that fits the same text with another answer takes the detector along: what looks at the
    features of a picture sees one that fits.

    Args:
        features_of: what to match.
        donors: its value at each row's donor.
        judged: as of `push`.
        metric: a name in `METRICS`.

    Raises:
        UserError: as `push`.
    """
    return _objective(features_of, donors, judged, metric, sign=-1)


def match_donors(
    attack: Search,
    features_of: FeaturesOf,
    donors: Float[Array, "B N *P D"],
    judged: Objective,
    x: Float[Array, "B ..."],
    key: PRNGKeyArray,
    budget: Budget,
    metric: str = "cosine",
) -> AttackResult:
    """Pulls each row toward each of its donors, and keeps what does most to ``judged``.

    The search goes by features alone; ``judged`` is evaluated once a donor, and once more under a
    fresh key.

    Args:
        attack: how to raise the objective of `pull`.
        features_of: what to match.
        donors: its value at N donors of each row; rows with fewer repeat one.
        judged: the objective that counts.
        x: clean inputs, float32 in the budget's range.
        key: for the attacks and the judging.
        budget: of each attack.
        metric: a name in `METRICS`.

    Raises:
        UserError: no donors, or what `pull` or the attack refuses.
    """
    projections.check_input(x, budget)
    if donors.shape[1] < 1:
        raise UserError(f"donors: {list(donors.shape)}; give [B, N, ...], one or more a row")
    donors_key, judge_key = jax.random.split(key)

    def one(best: AttackResult, now: tuple[Array, Array]) -> tuple[AttackResult, None]:
        donor, key = now
        attack_key, outcome_key = jax.random.split(key)
        source = pull(features_of, donor, metric=metric)
        x_adv = attack(source, x, attack_key, budget).x_adv
        return search.better(search.judge(judged, x_adv, outcome_key), best), None

    each = jnp.swapaxes(donors, 0, 1), jax.random.split(donors_key, donors.shape[1])
    best, _ = jax.lax.scan(one, search.no_result(judged, x, key), each)
    return search.judge(judged, best.x_adv, judge_key)


def _unit(v: Array) -> Array:
    # Inside the root: a vector of zeros has a finite gradient too.
    return v / jnp.sqrt((v**2).sum(axis=-1, keepdims=True) + 1e-12)


def _objective(
    features_of: FeaturesOf, reference: Array, judged: Objective | None, metric: str, sign: int
) -> Objective:
    if metric not in METRICS:
        raise UserError(f"features: metric {metric!r} is none of {', '.join(METRICS)}")

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        features_key, judged_key = jax.random.split(key)
        features = features_of(x, features_key)
        if features.shape != reference.shape or features.ndim not in (2, 3):
            raise UserError(
                f"features: {list(features.shape)}, and {list(reference.shape)} to compare them "
                "with; give the same layer's, [B, D] or [B, P, D]"
            )
        loss = sign * distance(features, reference, metric)
        if judged is None:
            return Outcome(loss, jnp.full_like(loss, -1))
        outcome = judged(x, judged_key)
        return Outcome(loss, outcome.margin, outcome.detector)

    return objective
