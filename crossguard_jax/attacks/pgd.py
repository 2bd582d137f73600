"""Projected gradient ascent (Madry et al., arXiv 1706.06083)."""

import jax

from crossguard_jax.attacks import projections, search
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

KEEP = ("best", "last")


def pgd(
    objective: Objective,
    x: Float[Array, "B ..."],
    key: PRNGKeyArray,
    budget: Budget,
    keep: str = "best",
) -> AttackResult:
    """Sign steps (linf) or normalized steps (l2), each followed by a projection.

    Untargeted or targeted is the objective's affair. A try costs ``budget.steps`` gradients and
    one evaluation; what it returns is judged once more, under a fresh key.

    Args:
        objective: what to raise; it is differentiated.
        x: clean inputs, float32 in the budget's range.
        key: for starts and for whatever is random in the objective.
        budget: ``relative_step`` 0 takes steps of 2.5 epsilon / ``steps``.
        keep: ``best`` returns each row's best iterate over all steps and restarts; ``last`` the
            last iterate (of the best restart), which is what adversarial training wants.

    Raises:
        UserError: ``x`` or ``keep`` cannot be used.
    """
    projections.check_input(x, budget)
    if keep not in KEEP:
        raise UserError(f"pgd: keep {keep!r} is none of {', '.join(KEEP)}")
    restarts_key, judge_key = jax.random.split(key)

    def attempt(key: PRNGKeyArray, best: AttackResult) -> AttackResult:
        climb_key, last_key = jax.random.split(key)
        x_adv, best = _climb(objective, x, climb_key, budget, best, keep == "best")
        return search.better(search.judge(objective, x_adv, last_key), best)

    start = search.no_result(objective, x, key)
    if keep == "last" and budget.restarts == 1:  # nothing to choose from, so nothing to compare
        x_adv, _ = _climb(objective, x, restarts_key, budget, start, False)
    else:
        x_adv = search.best_of_restarts(attempt, start, restarts_key, budget.restarts).x_adv
    return search.judge(objective, x_adv, judge_key)


def _climb(
    objective: Objective,
    x: Array,
    key: PRNGKeyArray,
    budget: Budget,
    best: AttackResult,
    track: bool,
) -> tuple[Array, AttackResult]:
    """One try: its last iterate (not evaluated), and the best one that ``track`` saw."""
    start_key, steps_key = jax.random.split(key)
    step_size = projections.per_row(budget.step_size, x)

    def step(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
        x_adv, best = carry
        outcome, gradient = search.evaluate(objective, x_adv, key)
        if track:
            best = search.better(search.as_result(x_adv, outcome), best)
        x_adv = x_adv + step_size * projections.steepest(gradient, budget.norm)
        return (projections.project(x_adv, x, budget), best), None

    x_adv = projections.random_start(x, start_key, budget) if budget.random_start else x
    (x_adv, best), _ = jax.lax.scan(step, (x_adv, best), jax.random.split(steps_key, budget.steps))
    return x_adv, best
