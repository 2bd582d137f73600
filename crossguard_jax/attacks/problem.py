"""The words that every attack speaks: an objective, a budget, and what came of it.

An attack is a function ``attack(objective, x, key, budget) -> AttackResult`` on plain arrays,
to be called under the caller's jit. It knows no model: whatever can be written as an `Objective`
(a guard's verdict, an answer's loss, a caption's likelihood) can be attacked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

NORMS = ("linf", "l2")
_STATIC = {"static": True}  # part of the compiled program, not one of its arguments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """What a batch of inputs does to a model; every field is [B] float32, a row an input.

    Attributes:
        loss: what the attack raises.
        margin: above 0 the model is fooled (for a classifier: the best wrong logit less the right
            one).
        detector: above 0 the input is caught (for a consistency score: threshold less score);
            None where nothing detects.
    """

    loss: Any
    margin: Any
    detector: Any = None

    @property
    def rejected(self) -> Array:
        """Which inputs are caught, [B] bool."""
        if self.detector is None:
            return jnp.zeros(jnp.shape(self.margin), bool)
        return jnp.asarray(self.detector) > 0

    @property
    def success(self) -> Array:
        """Which inputs fool the model and are not caught, [B] bool."""
        return (jnp.asarray(self.margin) > 0) & ~self.rejected


Objective = Callable[[Array, PRNGKeyArray], Outcome]
"""``objective(x [B, ...], key) -> Outcome``; the key is for whatever is random in the model. A
row's outcome depends on that row alone."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        x_adv: the inputs, [B, ...], inside the budget and the valid range.
        loss: their loss, [B].
        success: whether each fools the model and is not caught, [B] bool.
        rejected: whether each is caught, [B] bool.
    """

    x_adv: Any
    loss: Any
    success: Any
    rejected: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Budget:
    """What an attacker may do. ``epsilon`` is an array to jit: another one compiles nothing.

    The rest is static. A value of ``epsilon`` that jit traces cannot be checked in there: make the
    budget outside.

    Attributes:
        epsilon: radius of the ball, in units of the input (pixels are in [0, 1]); a scalar or [B].
        norm: ``linf`` or ``l2``, over all of an example's axes.
        steps: gradient steps, or queries of a gradient-free attack.
        relative_step: step size as a multiple of epsilon; 0 takes 2.5 / steps.
        restarts: independent tries, of which each example keeps its best.
        random_start: begin each try at a random point of the ball.
        low: least valid input.
        high: greatest valid input.

    Raises:
        UserError: a value that is no budget.
    """

    epsilon: Any
    norm: str = field(default="linf", metadata=_STATIC)
    steps: int = field(default=10, metadata=_STATIC)
    relative_step: float = field(default=0.0, metadata=_STATIC)
    restarts: int = field(default=1, metadata=_STATIC)
    random_start: bool = field(default=True, metadata=_STATIC)
    low: float = field(default=0.0, metadata=_STATIC)
    high: float = field(default=1.0, metadata=_STATIC)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"budget.norm {self.norm!r} is none of {', '.join(NORMS)}")
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"budget.{name} {value!r}: a whole number above 0")
        if not 0.0 <= self.relative_step < float("inf"):
            raise UserError(f"budget.relative_step {self.relative_step!r}: 0 or a positive number")
        if not self.low < self.high:
            raise UserError(f"budget: low {self.low!r} is not below high {self.high!r}")
        # jit passes tracers through here, and trees pass placeholders.
        numeric = isinstance(self.epsilon, int | float | np.ndarray | np.generic | jax.Array)
        if numeric and not isinstance(self.epsilon, jax.core.Tracer):
            self._check_epsilon(np.asarray(self.epsilon, np.float64))

    def _check_epsilon(self, epsilon: np.ndarray) -> None:
        if not np.isfinite(epsilon).all() or (epsilon < 0).any():
            raise UserError(f"budget.epsilon {self.epsilon!r}: 0 or a positive, finite number")
        if self.norm == "linf" and (epsilon > self.high - self.low).any():
            raise UserError(
                f"budget.epsilon {self.epsilon!r} is above the whole range {self.low:g} to "
                f"{self.high:g}; 8 of 255 grey levels are 8/255"
            )

    @property
    def step_size(self) -> Array:
        """In units of the input; as ``epsilon``."""
        return jnp.asarray(self.epsilon) * (self.relative_step or 2.5 / self.steps)


Search = Callable[[Objective, Array, PRNGKeyArray, Budget], AttackResult]
"""`pgd`, `apgd`, `square`, or what else takes an objective."""
