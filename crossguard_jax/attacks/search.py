"""What every search for a perturbation shares: how steep, how good, which is better."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.attacks.problem import AttackResult, Objective, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, PRNGKeyArray


def evaluate(
    objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray
) -> tuple[Outcome, Float[Array, "B ..."]]:
    """The outcome at ``x``, and the gradient of each row's loss."""

    def total(x: Array) -> tuple[Array, Outcome]:
        # A row's loss depends on that row alone, so the sum's gradient is every row's own.
        outcome = objective(x, key)
        return jnp.sum(outcome.loss), outcome

    gradient, outcome = jax.grad(total, has_aux=True)(x)
    return outcome, gradient


def as_result(x_adv: Float[Array, "B ..."], outcome: Outcome) -> AttackResult:
    """A candidate and its outcome, as a result."""
    return AttackResult(x_adv, outcome.loss, outcome.success, outcome.rejected)


def no_result(objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray) -> AttackResult:
    """What any candidate is better than; ``objective`` is traced, not run.

    Raises:
        UserError: the objective does not return one number a row.
    """
    outcome = jax.eval_shape(objective, x, key)
    rows = (x.shape[0],)
    for name in ("loss", "margin", "detector"):
        value = getattr(outcome, name)
        if value is not None and value.shape != rows:
            raise UserError(
                f"attack: the objective's {name} is {list(value.shape)} for {rows[0]} inputs; "
                "return one number an input, [B]"
            )
    no = jnp.zeros(rows, bool)
    return AttackResult(x, jnp.full(rows, -jnp.inf, outcome.loss.dtype), no, no)


def better(new: AttackResult, best: AttackResult) -> AttackResult:
    """Row by row the better of two: a success before a failure, then the greater loss."""
    tied = new.success == best.success
    wins = jnp.where(tied, new.loss > best.loss, new.success)
    return select(wins, new, best)


def select(rows: Bool[Array, " B"], yes: Any, no: Any) -> Any:
    """The tree ``yes`` in the given rows, ``no`` in the others; leaves are [B, ...]."""
    return jax.tree.map(
        lambda a, b: jnp.where(rows.reshape(rows.shape + (1,) * (a.ndim - 1)), a, b), yes, no
    )


def judge(objective: Objective, x_adv: Float[Array, "B ..."], key: PRNGKeyArray) -> AttackResult:
    """What ``x_adv`` does under a key that its search has not seen.

    A search keeps the best of many noisy outcomes, which is better than it will be again.
    """
    return as_result(x_adv, objective(x_adv, key))


def best_of_restarts(
    attempt: Callable[[PRNGKeyArray, AttackResult], AttackResult],
    start: AttackResult,
    key: PRNGKeyArray,
    restarts: int,
) -> AttackResult:
    """Runs ``attempt(key, best so far) -> best so far`` one try after another."""

    def one(best: AttackResult, key: PRNGKeyArray) -> tuple[AttackResult, None]:
        return attempt(key, best), None

    best, _ = jax.lax.scan(one, start, jax.random.split(key, restarts))
    return best
