"""The weakest attack there is: a random point."""

import jax

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray


def noise(
    objective: Objective, x: Float[Array, "B ..."], key: PRNGKeyArray, budget: Budget
) -> AttackResult:
    """The weakest attack: a random point of the ball, the best of ``budget.restarts``.

    What gets no further than this has found nothing.

    Raises:
        UserError: ``x`` cannot be used.
    """
    projections.check_input(x, budget)
    restarts_key, judge_key = jax.random.split(key)

    def attempt(key: PRNGKeyArray, best: AttackResult) -> AttackResult:
        point_key, outcome_key = jax.random.split(key)
        point = projections.random_start(x, point_key, budget)
        return search.better(search.judge(objective, point, outcome_key), best)

    start = search.no_result(objective, x, key)
    best = search.best_of_restarts(attempt, start, restarts_key, budget.restarts)
    return search.judge(objective, best.x_adv, judge_key)
