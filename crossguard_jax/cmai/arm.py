"""ARM in training: a controller that hardens the adversary while consistency is low.

``if avg(S_c) < tau_c then beta <- min(beta + d_beta, beta_max)``, likewise epsilon and lambda, and
likewise when S_c varies much. Rows without a picture have no say: their S_c is 1 whatever is done.
What counts as low is learned from clean pairs, whose S_c moves while the check learns on, and so it
follows the latest of them. The state is a tree of numbers that lives in the jitted train state, so
that it is saved and found again with everything else.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
class CleanScores:
    """The latest clean S_c, and where thresholds lie among them.

    The latest ones themselves and no running estimate: a rare quantile has few scores below it, so
    a step that is small enough to be steady there is too small to follow a drift.

    Attributes:
        recent: the latest scores, [N] float32, the oldest first.
        shares: of them that lay below each threshold at the start, [K].
        gaps: each threshold less that quantile, [K]: less than two scores are apart, unless the
            threshold lay outside of them all.
    """

    recent: Any
    shares: Any
    gaps: Any

    @classmethod
    def start(
        cls, recent: Float[np.ndarray, " N"], thresholds: Float[np.ndarray, " K"]
    ) -> "CleanScores":
        """From scores of the kind that will follow, and thresholds among them."""
        recent = np.asarray(recent, np.float32)
        shares = (recent < thresholds[:, None]).mean(axis=1, dtype=np.float32)
        gaps = np.float32(thresholds) - np.asarray(jnp.quantile(recent, shares))
        return cls(*map(jnp.asarray, (recent, shares, gaps)))

    def after(self, scores: Float[Array, " B"], count: Bool[Array, " B"]) -> "CleanScores":
        """With the scores that count in place of the oldest ones."""
        n = self.recent.shape[0]
        every = jnp.concatenate([self.recent, scores.astype(jnp.float32)])
        kept = jnp.concatenate([jnp.ones(n, bool), count])
        return replace(self, recent=every[jnp.argsort(kept, stable=True)][-n:])

    @property
    def thresholds(self) -> Float[Array, " K"]:
        """Where they lie now."""
        return jnp.quantile(self.recent, self.shares) + self.gaps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ArmState:
    """What the adversary is given now; float32 scalars.

    Attributes:
        beta: weight of S_c in its objective.
        epsilon: its budget.
        lambda_: share of the adversarial loss.
        tau: the S_c that an evasive one stays above.
        tau_c: the mean S_c under which a batch alarms. Both come from the data, and are here so
            that runs of one shape compile once.
        clean: the `CleanScores` that ``tau`` and ``tau_c`` follow; None: they stay.
    """

    beta: Any
    epsilon: Any
    lambda_: Any
    tau: Any = 0.0
    tau_c: Any = 0.0
    clean: Any = None


@dataclass(frozen=True)
class Controller:
    """When to turn, and how far.

    Attributes:
        tau_c: a batch whose mean S_c is below it alarms, at the start.
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

    def start(self, tau: float = 0.0, recent: Float[np.ndarray, " N"] | None = None) -> ArmState:
        """The state before the first batch.

        Args:
            tau: the evasive adversary's.
            recent: clean S_c of rows such as those to come, which both thresholds then follow; None
                where they stay.
        """
        knobs = {f: jnp.float32(getattr(self, f).start) for f in KNOBS}
        clean = None
        if recent is not None:
            clean = CleanScores.start(recent, np.array([tau, self.tau_c]))
        return ArmState(**knobs, tau=jnp.float32(tau), tau_c=jnp.float32(self.tau_c), clean=clean)

    def alarms(
        self, state: ArmState, scores: Float[Array, " B"], count: Bool[Array, " B"]
    ) -> Bool[Array, ""]:
        """Whether a batch's mean S_c is too low, or its variance too high, of rows that count."""
        scores = scores.astype(jnp.float32)
        variance = scores.var(where=count)
        return (scores.mean(where=count) < state.tau_c) | (variance > self.max_variance)

    def update(
        self,
        state: ArmState,
        scores: Float[Array, " B"],
        clean: Float[Array, " B"],
        count: Bool[Array, " B"],
    ) -> ArmState:
        """The state after a batch.

        Nothing changes where no row counts, or one that does has a score that is no number.

        Args:
            state: before it.
            scores: S_c of its adversarial rows.
            clean: S_c of the same rows before the attack.
            count: which rows have a picture.
        """
        usable = count.any() & jnp.isfinite(jnp.where(count, scores + clean, 0)).all()
        alarm = self.alarms(state, scores, count)
        after: dict[str, Any] = {}
        for field in KNOBS:
            knob, value = getattr(self, field), getattr(state, field)
            by = jnp.where(alarm, jnp.float32(knob.step), jnp.float32(-knob.decay))
            after[field] = knob.turned(value, by)
        if state.clean is not None:
            after["clean"] = state.clean.after(clean, count)
            after["tau"], after["tau_c"] = after["clean"].thresholds
        return jax.tree.map(
            lambda new, old: jnp.where(usable, new, old), replace(state, **after), state
        )
