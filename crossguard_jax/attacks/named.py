"""An attack with a name's worth of facts: what it climbs, what it may spend, what it is after."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossguard_jax.attacks.curves import GOALS, KINDS, Entry
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

RowObjective = Callable[[Any, Any, Array, PRNGKeyArray], Outcome]
"""``objective(params, rows, x [B, ...], key) -> Outcome``: parameters are any tree and stay
arguments of the compiled program; ``rows`` is a tree of [B, ...] arrays (labels, texts, donors)."""

Attack = Callable[..., Any]
"""``attack(objective, x, key, budget) -> AttackResult``."""


@dataclass(frozen=True)
class NamedAttack:
    """An attack and what it may spend.

    Attributes:
        attack: the search, ``attack(objective, x, key, budget) -> AttackResult``.
        budget: its norm, steps and restarts; the radius comes from the suite.
        objective: what it climbs; None is what the suite judges by. A transfer attack climbs
            another model's (both models' parameters are in ``params``).
        kind: one of `curves.KINDS`; ``adaptive`` knows the detector.
        goal: ``fool``; or ``deny``, which wants rows rejected and is counted apart.
        samples: draws of the model's randomness that each evaluation averages (EOT).
        bound: ``attack`` is ``attack(params, rows)``, which gives the search: for one that needs
            more than an objective, such as each row's donors.
        whole: it perturbs all rows at once: ``attack(objective, x, key, budget)`` with an objective
            of all pictures, some rows' numbers and a key (`universal.RowsObjective`).
        judge: what its results are judged by, where that is not the suite's.

    Raises:
        UserError: a kind, goal or number of samples that is none.
    """

    attack: Attack
    budget: Budget
    objective: RowObjective | None = None
    kind: str = "white_box"
    goal: str = "fool"
    samples: int = 1
    bound: bool = False
    whole: bool = False
    judge: RowObjective | None = None

    def __post_init__(self) -> None:
        for field, choices in (("kind", KINDS), ("goal", GOALS)):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"attack: {field} {getattr(self, field)!r} is none of {', '.join(choices)}"
                )
        if isinstance(self.samples, bool) or self.samples < 1:
            raise UserError(f"attack: samples {self.samples!r}: a whole number above 0")

    def scaled(self, steps: float = 1.0, restarts: float = 1.0) -> Budget:
        """The budget with multiples of its steps and restarts."""
        return replace(
            self.budget,
            steps=max(1, round(self.budget.steps * steps)),
            restarts=max(1, round(self.budget.restarts * restarts)),
        )

    def at(self, epsilon: float, steps: float = 1.0, restarts: float = 1.0) -> Budget:
        """The same, at a radius."""
        return replace(self.scaled(steps, restarts), epsilon=np.float32(epsilon))

    def entry(self, name: str, steps: float = 1.0, restarts: float = 1.0) -> Entry:
        """How a plan lists it."""
        budget = self.scaled(steps, restarts)
        return Entry(
            name=name,
            kind=self.kind,
            goal=self.goal,
            samples=self.samples,
            norm=budget.norm,
            steps=budget.steps,
            restarts=budget.restarts,
            relative_step=budget.relative_step,
            random_start=budget.random_start,
        )
