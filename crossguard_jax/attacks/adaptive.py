"""Attacks that know the detector: to fool a model is not enough where something looks on.

The wrappers here make, of an objective with a detector, another one that any attack can raise;
`constrained` has the attacks that step by both gradients.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome, Search
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

Score = Callable[[Array, PRNGKeyArray], Array]
"""``score(x [B, ...], key) -> [B]``, such as S_c."""


def weighted(objective: Objective, weight: Float[Array, " B"] | float) -> Objective:
    """``loss - weight * detector``, the weight one for all rows or one a row.

    Raises:
        UserError: where it is called, an objective without a detector; so do all here.
    """

    def wrapped(x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = with_detector(objective(x, key))
        loss = outcome.loss - weight * outcome.detector
        return Outcome(loss, outcome.margin, outcome.detector)

    return wrapped


def selective(objective: Objective, slack: float = 0.0) -> Objective:
    """Raises the loss of rows that are not fooled yet, and lowers the detector of those that are.

    What is fooled counts for more than what is not, so that a search for the best keeps it; the
    loss is bounded, which changes no direction of a step.

    Args:
        objective: with a detector.
        slack: the margin above which a row counts as fooled: more than 0 leaves something for
            rounding to take away.
    """

    def wrapped(x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = with_detector(objective(x, key))
        fooled = outcome.margin > slack
        loss = jnp.where(fooled, 2 + _bounded(-outcome.detector), _bounded(outcome.loss))
        return Outcome(loss, outcome.margin, outcome.detector)

    return wrapped


def pinned(
    objective: Objective,
    score: Score,
    low: float = -math.inf,
    high: float = math.inf,
    avoid: bool = False,
) -> Objective:
    """Keeps a score inside an interval (or outside), so that a chosen branch answers.

    A row whose score is elsewhere counts as caught, beside those that the objective's own detector
    catches: hand the result to whatever is adaptive. A score that is no number is elsewhere.

    Args:
        objective: what the branch is to be fooled by; its detector may be None.
        score: what the branches are chosen by.
        low: the interval's lower end, which it contains.
        high: its upper end, which it does not.
        avoid: the score must lie outside the interval.

    Raises:
        UserError: an interval without a point.
    """
    if not low < high:
        raise UserError(f"pinned: low {low!r} is not below high {high!r}")

    def wrapped(x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = objective(x, key)
        s = score(x, key)

        # Beside its open end, by one float: an end counts as the branch's or not, as `low` and
        # `high` say.
        def below(end: float) -> Array:
            return jnp.nextafter(jnp.asarray(end, s.dtype), jnp.asarray(-jnp.inf, s.dtype))

        if avoid:
            off = jnp.minimum(s - below(low), high - s)
        else:
            off = jnp.maximum(low - s, s - below(high))
        nowhere = jnp.finfo(s.dtype).max  # finite, so that candidates can still be ranked
        off = jnp.where(jnp.isnan(s), -nowhere if avoid else nowhere, off)
        detector = off if outcome.detector is None else jnp.maximum(off, outcome.detector)
        return Outcome(outcome.loss, outcome.margin, detector)

    return wrapped


def denial(objective: Objective) -> Objective:
    """Raises the detector: a success is an input that is caught, whatever the model says of it.

    Of inputs that are answered rightly when clean it is a denial of service. The outcome has no
    detector of its own, so ``rejected`` of a result is False: what is caught is its ``success``.
    """

    def wrapped(x: Array, key: PRNGKeyArray) -> Outcome:
        detector = with_detector(objective(x, key)).detector
        return Outcome(detector, detector)

    return wrapped


def weighted_search(
    attack: Search,
    objective: Objective,
    x: Float[Array, "B ..."],
    key: PRNGKeyArray,
    budget: Budget,
    rounds: int = 6,
    first: float = 1.0,
) -> AttackResult:
    """`weighted`, with each row's weight searched for by tenfold steps and halvings.

    A row that was fooled and caught gets more weight on the detector, one that was not fooled
    less. It ends when all rows are successes, or after ``rounds`` attacks; the result is judged by
    ``objective`` under a fresh key.

    Args:
        attack: how to raise a weighted objective.
        objective: with a detector.
        x: clean inputs, float32 in the budget's range.
        key: for the attacks and the judging.
        budget: of each attack.
        rounds: attacks at most.
        first: the weight to begin with.

    Raises:
        UserError: ``x``, ``rounds`` or ``first`` cannot be used, or nothing detects.
    """
    if rounds < 1 or not 0.0 < first < math.inf:
        raise UserError(f"weighted: rounds {rounds!r} from 1, first {first!r} above 0")
    projections.check_input(x, budget)
    rounds_key, judge_key = jax.random.split(key)
    nothing = search.no_result(objective, x, key)

    def go_on(carry: tuple) -> Array:
        index, *_, best = carry
        return (index < rounds) & ~jnp.all(best.success)

    def attempt(carry: tuple) -> tuple:
        index, weight, low, high, best = carry
        attack_key, key = jax.random.split(jax.random.fold_in(rounds_key, index))
        x_adv = attack(weighted(objective, weight), x, attack_key, budget).x_adv
        outcome = objective(x_adv, key)
        best = search.better(candidate(x_adv, outcome), best)
        fooled = outcome.margin > 0
        low, high = jnp.where(fooled, weight, low), jnp.where(fooled, high, weight)
        middle = jnp.sqrt(low * high)
        weight = jnp.where(low == 0, high / 10, jnp.where(high == jnp.inf, low * 10, middle))
        return index + 1, weight, low, high, best

    rows = jnp.zeros_like(nothing.loss)
    start = (jnp.zeros((), jnp.int32), rows + first, rows, rows + jnp.inf, nothing)
    *_, best = jax.lax.while_loop(go_on, attempt, start)
    return search.judge(objective, best.x_adv, judge_key)


def check_differentiable(objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray) -> None:
    """Refuses a detector that gradients cannot get through. Call it before an attack, outside jit.

    Raises:
        UserError: nothing detects, or the detector's gradient cannot be taken, is not finite, or
            is 0 at all of ``x``.
    """
    with_detector(objective(x, key))
    mend = (
        "hand in the score before any rounding, argmax or threshold, or a smooth stand-in; "
        "or attack without gradients (square)"
    )

    def total(x: Array) -> Array:
        return jnp.sum(objective(x, key).detector)

    try:
        gradient = np.asarray(jax.jit(jax.grad(total))(x)).reshape(len(x), -1)
    except (TypeError, ValueError, NotImplementedError) as error:  # the call itself went well
        why = str(error).splitlines()[0]
        raise UserError(f"attack: the detector has no gradient ({why}); {mend}") from error
    wrong = np.flatnonzero(~np.isfinite(gradient).all(axis=1))
    if wrong.size:
        raise UserError(f"attack: the detector's gradient is not finite at input {wrong[0]}")
    if not gradient.any():
        raise UserError(f"attack: the detector's gradient is 0 at all {len(x)} inputs; {mend}")


def with_detector(outcome: Outcome) -> Outcome:
    """The outcome, if something detects.

    Raises:
        UserError: nothing does.
    """
    if outcome.detector is None:
        raise UserError(
            "attack: the objective has no detector to be aware of; take a plain attack (pgd, apgd)"
        )
    return outcome


def candidate(x_adv: Float[Array, "B ..."], outcome: Outcome) -> AttackResult:
    """What a search may keep: ranked, after success, by loss among those that are not caught, and
    by the detector among those that are; never by loss alone, of which the latter have most."""
    outcome = with_detector(outcome)
    rank = jnp.where(outcome.rejected, _bounded(-outcome.detector), 2 + _bounded(outcome.loss))
    return AttackResult(x_adv, rank, outcome.success, outcome.rejected)


def _bounded(x: Array) -> Array:
    """Into (-1, 1), rising everywhere; its slope does not vanish in float32, as tanh's does."""
    return x / (1 + jnp.abs(x))
