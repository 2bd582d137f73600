"""Perturbations that were not made on the model they are tried on."""

from collections.abc import Callable, Sequence

import jax

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

Attack = Callable[[Objective, Array, PRNGKeyArray, Budget], AttackResult]
"""`pgd`, `apgd`, `square`, or what else takes an objective."""


def transfer(
    attack: Attack,
    sources: Sequence[Objective],
    target: Objective,
    x: Float[Array, "B ..."],
    key: PRNGKeyArray,
    budget: Budget,
) -> AttackResult:
    """Attacks each source, and keeps for each row what does most to the target.

    The target is only judged: a run costs it one evaluation a source, and one under a fresh key.

    Args:
        attack: how to attack a source.
        sources: objectives of models that the attacker has (or of a part of the target).
        target: the objective that counts; the result's loss, success and rejection are its.
        x: clean inputs, float32 in the budget's range.
        key: for the attacks and the judging.
        budget: of each attack.

    Raises:
        UserError: no source, or ``x`` cannot be used.
    """
    if not sources:
        raise UserError("transfer: no source to make perturbations on; give one objective or more")
    projections.check_input(x, budget)
    *keys, judge_key = jax.random.split(key, len(sources) + 1)
    best = search.no_result(target, x, key)
    for source, source_key in zip(sources, keys, strict=True):
        attack_key, target_key = jax.random.split(source_key)
        x_adv = attack(source, x, attack_key, budget).x_adv
        best = search.better(search.judge(target, x_adv, target_key), best)
    return search.judge(target, best.x_adv, judge_key)


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
