"""ARM in training: a controller that hardens the adversary while consistency is low.

``if avg(S_c) < tau_c then beta <- min(beta + d_beta, beta_max)``, likewise epsilon and lambda, and
likewise when S_c varies much. The state is a tree of numbers that lives in the jitted train state,
so that it is saved and found again with everything else.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float

KNOBS = ("beta", "epsilon", "lambda_")
"""What is turned (a command line cannot say ``lambda``, which Python keeps for itself)."""


@dataclass(frozen=True)
class Knob:
    """One number under control.

    Attributes:
        start: where it begins, and the least it ever is.
        maximum: the most it ever is.
        step: added after an alarming batch; 0 keeps it fixed.
        decay: taken off after a calm one; 0 keeps what was reached.
    """

    start: float
    maximum: float
    step: float = 0.0
    decay: float = 0.0

    @classmethod
    def from_config(cls, name: str, config: Any) -> "Knob":
        """From a config's ``{start, maximum, step, decay}``, the last two 0 where left out.

        Raises:
            UserError: a field that is unknown, missing, negative or no number.
        """
        values = {field: config[field] for field in config}
        unknown = sorted(set(values) - {"start", "maximum", "step", "decay"})
        missing = sorted({"start", "maximum"} - set(values))
        if unknown or missing:
            what = "unknown" if unknown else "missing"
            raise UserError(f"arm.{name}: {what} {', '.join(unknown or missing)}; see cmai.arm")
        for field, value in values.items():
            if not isinstance(value, int | float) or not 0.0 <= value < math.inf:
                raise UserError(f"arm.{name}.{field} {value!r}: 0 or a positive number")
        knob = cls(**{field: float(value) for field, value in values.items()})
        if knob.start > knob.maximum:
            raise UserError(f"arm.{name}: start {knob.start:g} is above maximum {knob.maximum:g}")
        return knob

    def turned(self, value: Float[Array, ""], by: Float[Array, ""]) -> Float[Array, ""]:
        """The value after a move, inside the bounds (also where it came from a wider range)."""
        return jnp.clip(value + by, self.start, self.maximum)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ArmState:
    """What the adversary is given now; float32 scalars.

    Attributes:
        beta: weight of S_c in its objective.
        epsilon: its budget.
        lambda_: share of the adversarial loss.
        tau: the S_c that an evasive one stays above. It never changes, and neither does ``tau_c``:
            they come from the data, and are here so that runs of one shape compile once.
        tau_c: as the controller has it.
    """

    beta: Any
    epsilon: Any
    lambda_: Any
    tau: Any = 0.0
    tau_c: Any = 0.0


@dataclass(frozen=True)
class Controller:
    """When to turn, and how far.

    Attributes:
        tau_c: a batch whose mean S_c is below it alarms.
        beta, epsilon, lambda_: the three knobs.
        max_variance: a batch whose S_c varies more than this alarms too.
    """

    tau_c: float
    beta: Knob
    epsilon: Knob
    lambda_: Knob
    max_variance: float = math.inf

    @classmethod
    def from_config(cls, config: Any) -> "Controller":
        """From ``{tau_c, max_variance, beta: {..}, epsilon: {..}, lambda_: {..}}``.

        Raises:
            UserError: whatever is wrong with it, by the field's name.
        """
        fields = {"tau_c", "max_variance", *KNOBS}
        unknown, missing = sorted(set(config) - fields), sorted(fields - set(config))
        if unknown or missing:
            what = "unknown" if unknown else "missing"
            raise UserError(f"arm: {what} {', '.join(unknown or missing)}; see cmai.arm")
        tau_c, variance = float(config["tau_c"]), float(config["max_variance"])
        if not math.isfinite(tau_c):
            raise UserError(f"arm.tau_c {tau_c!r}: a number")
        if not variance >= 0.0:
            raise UserError(f"arm.max_variance {variance!r}: 0, a positive number or inf")
        knobs = {name: Knob.from_config(name, config[name]) for name in KNOBS}
        if knobs["lambda_"].maximum > 1.0:
            raise UserError(f"arm.lambda_.maximum {knobs['lambda_'].maximum:g}: a share, at most 1")
        return cls(tau_c, max_variance=variance, **knobs)

    def start(self, tau: float = 0.0) -> ArmState:
        """The state before the first batch; ``tau`` is the evasive adversary's."""
        knobs = {f: jnp.float32(getattr(self, f).start) for f in KNOBS}
        return ArmState(**knobs, tau=jnp.float32(tau), tau_c=jnp.float32(self.tau_c))

    def alarms(self, state: ArmState, scores: Float[Array, " B"]) -> Bool[Array, ""]:
        """Whether a batch's mean S_c is too low, or its variance too high."""
        scores = scores.astype(jnp.float32)
        return (scores.mean() < state.tau_c) | (scores.var() > self.max_variance)

    def update(self, state: ArmState, scores: Float[Array, " B"]) -> ArmState:
        """The state after a batch; one with a score that is no number changes nothing."""
        finite = jnp.isfinite(scores).all()
        alarm = self.alarms(state, scores)
        after = {}
        for field in KNOBS:
            knob, value = getattr(self, field), getattr(state, field)
            by = jnp.where(alarm, jnp.float32(knob.step), jnp.float32(-knob.decay))
            after[field] = jnp.where(finite, knob.turned(value, by), value)
        return replace(state, **after)
