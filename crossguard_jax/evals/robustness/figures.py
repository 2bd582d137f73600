"""How robust a system is: figures with intervals from what an attack suite found.

Shares of all rows: ``clean.accuracy``, ``robust_accuracy``; of the rows that were right when
clean: ``asr`` (a perturbation fools the system and is not rejected), ``caught`` (what fools it is
rejected), ``denied`` (a perturbation is rejected, whatever the answer). A clean row that is
rejected is not right. Names are ``linf.8.asr`` for 8/255 and ``l2.0_5.asr`` for 0.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from crossguard_jax.attacks.curves import Curve
from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Bool, Shaped
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.fixed import FixedScores


@dataclass(frozen=True)
class Robustness:
    """One system under attack.

    Attributes:
        curves: by the seed that the system was trained with; all on the same rows, by one plan.
        convergence: ``steps`` and ``restarts``, each a curve at one radius by the multiple of the
            suite's own.
        scores: of a guard that was attacked at cuts of its own, by seed too.
        among: by attack, the rows that its own share is of, [B]; all where it is not named. Of a
            targeted one these are the rows with another answer than it wants.

    Raises:
        UserError: no curve, or curves that differ in rows, attacks or radii.
    """

    curves: Mapping[int, Curve]
    convergence: Mapping[str, Mapping[float, Curve]] = field(default_factory=dict)
    scores: Mapping[int, FixedScores] = field(default_factory=dict)
    among: Mapping[str, Bool[np.ndarray, " B"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.curves:
            raise UserError("robustness: no curve; attack the system with one seed at least")
        same = {(c.plan.attacks, c.plan.epsilons, c.plan.pictures) for c in self.curves.values()}
        if len(same) > 1:
            raise UserError("robustness: the seeds' curves differ in rows, attacks or radii")

    @property
    def any(self) -> Curve:
        """One of the curves, for what they share."""
        return next(iter(self.curves.values()))

    @property
    def norm(self) -> str:
        """``linf`` or ``l2``."""
        return self.any.plan.norm

    def stacked(self, name: str) -> Shaped[np.ndarray, "N ..."]:
        """An array of the curves, a layer a seed."""
        return np.stack([getattr(curve, name) for curve in self.curves.values()])


def level(norm: str, epsilon: float) -> str:
    """A radius in a dotted name: grey levels for linf."""
    value = 255 * epsilon if norm == "linf" else epsilon
    return f"{value:.4g}".replace(".", "_").replace("-", "_")


def level_title(norm: str, epsilon: float) -> str:
    """A radius for a reader."""
    return f"{255 * epsilon:.4g}/255" if norm == "linf" else f"{epsilon:.4g}"


def share(hits: Bool[np.ndarray, "N B"], among: Bool[np.ndarray, "N B"]) -> Estimate:
    """The share of hits over all seeds, with Wilson's interval for the rows of one.

    Seeds are not taken for more rows: they see the same ones.
    """
    total = int(among.sum())
    if total == 0:
        return Estimate.empty()
    n = max(1, round(total / len(among)))
    value = int((hits & among).sum()) / total
    low, high = metrics.wilson_interval(round(value * n), n)
    return Estimate(value, min(low, value), max(high, value), n)


def figures(system: Robustness) -> Figures:
    """Every figure of one system by its dotted name; with several seeds also each seed's."""
    estimates = _of_seeds(system, slice(None))
    if len(system.curves) > 1:
        for i, seed in enumerate(system.curves):
            own = _of_seeds(system, slice(i, i + 1))
            estimates |= {f"{name}.seed_{seed}": estimate for name, estimate in own.items()}
    for what, curves in system.convergence.items():
        for multiple, curve in curves.items():
            asr = share(curve.won[-1:], curve.right[None])
            estimates[converged_name(what, multiple, curve)] = asr
    return estimates


def converged_name(what: str, multiple: float, curve: Curve) -> str:
    """The dotted name of ASR under a multiple of the attacks' steps or restarts."""
    norm, times = curve.plan.norm, f"{multiple:g}".replace(".", "_")
    return f"{norm}.{level(norm, curve.plan.epsilons[-1])}.{what}_times_{times}.asr"


def _of_seeds(system: Robustness, seeds: slice) -> Figures:
    norm, right = system.norm, system.stacked("right")[seeds]
    everyone = np.ones_like(right)
    estimates = {
        f"{norm}.clean.accuracy": share(right, everyone),
        f"{norm}.clean.rejected": share(system.stacked("clean_rejected")[seeds], everyone),
        f"{norm}.swap.asr": share(system.stacked("swapped")[seeds], right),
    }
    arrays = {name: system.stacked(name)[seeds] for name in ("robust", "won", "caught", "denied")}
    by = system.stacked("by")[seeds]
    for e, epsilon in enumerate(system.any.plan.epsilons):
        where = f"{norm}.{level(norm, epsilon)}"
        estimates[f"{where}.robust_accuracy"] = share(arrays["robust"][:, e], everyone)
        estimates[f"{where}.asr"] = share(arrays["won"][:, e], right)
        if system.any.detects:
            estimates[f"{where}.caught"] = share(arrays["caught"][:, e], right)
            estimates[f"{where}.denied"] = share(arrays["denied"][:, e], right)
        for i, entry in enumerate(system.any.plan.attacks):
            if entry.goal == "fool":
                estimates[f"{where}.first.{entry.name}"] = share(by[:, e] == i, right)
        for name in system.any.each:
            alone = np.stack([curve.each[name][e] for curve in system.curves.values()])[seeds]
            estimates[f"{where}.alone.{name}"] = share(alone, right & system.among.get(name, True))
    return estimates


def compare(a: Robustness, b: Robustness) -> Figures:
    """Paired differences ``a - b`` of clean and robust accuracy, at the radii that both have.

    With one seed each, Newcombe's interval; with more, the normal one of the rows' differences of
    means over seeds.

    Raises:
        UserError: they were not attacked on the same rows in the same ball.
    """
    if (a.any.plan.pictures, a.norm) != (b.any.plan.pictures, b.norm):
        raise UserError("robustness: systems attacked on different rows or in different balls")
    estimates = {
        f"{a.norm}.clean.accuracy_difference": paired(a.stacked("right"), b.stacked("right"))
    }
    robust = a.stacked("robust"), b.stacked("robust")
    for epsilon in a.any.plan.epsilons:
        if epsilon in b.any.plan.epsilons:
            hits = [r[:, s.any.at(epsilon)] for r, s in zip(robust, (a, b), strict=True)]
            name = f"{a.norm}.{level(a.norm, epsilon)}.robust_accuracy_difference"
            estimates[name] = paired(*hits)
    return estimates


def paired(a: Bool[np.ndarray, "N B"], b: Bool[np.ndarray, "M B"]) -> Estimate:
    """``a`` less ``b`` on the same rows, a layer a seed: Newcombe's interval with one seed each,
    otherwise the normal one of the rows' differences of means over seeds."""
    if len(a) == len(b) == 1:
        return metrics.paired_difference(a[0], b[0])
    return metrics.mean(a.mean(axis=0) - b.mean(axis=0))
