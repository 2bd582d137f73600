"""What a robustness table lacks before it can be believed (after Carlini et al., 1902.06705).

A pure function of the results: nothing that a report could claim, only what was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossguard_jax.attacks.curves import Entry
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.evals.robustness.figures import Robustness, figures, level, level_title, share
from crossguard_jax.report.blocks import Block, Bullets, Text

GRADIENT_KINDS = ("white_box", "adaptive")


@dataclass(frozen=True)
class Limits:
    """How much is little.

    Attributes:
        change: of ASR, when steps or restarts double.
        shortfall: of ASR below the ceiling, and of clean accuracy of a random system at radius 0.
        rows: that a share needs at least.
    """

    change: float = 0.02
    shortfall: float = 0.01
    rows: int = 100


def missing(system: Robustness, limits: Limits | None = None) -> tuple[str, ...]:
    """What is missing for one system, in words; empty when it is complete."""
    limits = limits or Limits()
    lacks = [
        *_at_zero(system, limits),
        *_rising_to_the_ceiling(system, limits),
        *(line for what in ("steps", "restarts") for line in _converged(system, what, limits)),
        *_attacks(system),
        *_counts(system, limits),
    ]
    return tuple(lacks)


def unequal(systems: Mapping[str, Robustness]) -> tuple[str, ...]:
    """What keeps several systems from being compared: rows, radii, or the search's budget."""
    (first, one), *others = systems.items()
    lacks = []
    for name, other in others:
        if other.any.plan.pictures != one.any.plan.pictures:
            lacks.append(f"{name} was not attacked on the same rows as {first}")
        if other.any.plan.epsilons != one.any.plan.epsilons:
            lacks.append(f"{name} was not attacked at the same radii as {first}")
        mine, theirs = ({a.name: a for a in s.any.plan.attacks} for s in (one, other))
        for attack in dict.fromkeys([*mine, *theirs]):
            if attack not in mine or attack not in theirs:
                entry = mine.get(attack) or theirs[attack]
                # What a detector is for has nothing to do where there is none.
                if entry.kind == "adaptive" or entry.goal == "deny":
                    continue
                lacks.append(f"{attack} was run on one of {first} and {name} only")
            elif _spent(mine[attack]) != _spent(theirs[attack]):
                lacks.append(f"{name} was attacked by {attack} with another budget than {first}")
    return tuple(lacks)


def _spent(entry: Entry) -> tuple[Any, ...]:
    """What an attack may spend. A system without a detector has nothing for it to be aware of, and
    one without randomness nothing to average: they change no other number."""
    return (
        entry.norm,
        entry.steps,
        entry.restarts,
        entry.relative_step,
        entry.random_start,
        entry.goal,
    )


def stamp(lacks: Mapping[str, Sequence[str]], between: Sequence[str] = ()) -> tuple[Block, ...]:
    """The seal on top of a report: COMPLETE, or INCOMPLETE and what is missing.

    Args:
        lacks: what `missing` found, by each system's title.
        between: what `unequal` found.
    """
    whose: dict[str, list[str]] = {}
    for title, lines in lacks.items():
        for line in lines:
            whose.setdefault(line, []).append(title)
    # Two are named: it is as short, and says which.
    items = [
        f"{'Every system' if 2 < len(lacks) == len(titles) else '; '.join(titles)}: {line}"
        for line, titles in whose.items()
    ]
    items += [f"Between systems: {line}" for line in between]
    if items:
        return (Text("**INCOMPLETE.** These figures lack:"), Bullets(tuple(items)))
    return (
        Text(
            "**COMPLETE.** Radius 0 equals clean; the curve rises to what an unrelated picture "
            "does; doubled steps and restarts change little; an attack without gradients, averages "
            "over what is random and attacks that know the detector were among them where they "
            "apply; rows, seeds and intervals are given."
        ),
    )


def _at_zero(system: Robustness, limits: Limits) -> list[str]:
    if 0.0 not in system.any.plan.epsilons:
        return ["radius 0, which must equal clean"]
    lost = share(system.stacked("won")[:, system.any.at(0.0)], system.stacked("right"))
    allowed = limits.shortfall if system.any.random else 0.0
    if lost.value > allowed:
        return [f"radius 0 equal to clean: {lost.value:.1%} of the right rows fall there"]
    return []


def _rising_to_the_ceiling(system: Robustness, limits: Limits) -> list[str]:
    right, won = system.stacked("right"), system.stacked("won")
    lacks = []
    if sum(epsilon > 0 for epsilon in system.any.plan.epsilons) < 2:
        lacks.append("a curve: two radii above 0 at least")
    if (won[:, 1:] < won[:, :-1]).any():
        lacks.append("a monotone curve: a row that falls at a radius stands at a larger one")
    top, ceiling = share(system.stacked("fresh"), right), share(system.stacked("swapped"), right)
    carried = share(won[:, -1], right)
    where = level_title(system.norm, system.any.plan.epsilons[-1])
    if top.value < carried.value - limits.shortfall:
        lacks.append(
            f"attacks that find at {where} what they found within smaller radii: ASR "
            f"{top.value:.1%} there, {carried.value:.1%} with those"
        )
    if top.value < ceiling.value - limits.shortfall:
        lacks.append(
            f"a curve that reaches the ceiling: ASR {top.value:.1%} at {where}, "
            f"{ceiling.value:.1%} with an unrelated picture"
        )
    return lacks


def _converged(system: Robustness, what: str, limits: Limits) -> list[str]:
    curves = system.convergence.get(what, {})
    if not {1.0, 2.0} <= set(curves):
        return [f"convergence in {what}: as many, and twice as many"]
    one, two = curves[1.0], curves[2.0]
    if one.plan.pictures != two.plan.pictures or one.plan.epsilons != two.plan.epsilons:
        return [f"convergence in {what} on the same rows at the same radius"]
    spent = [{e.name: getattr(e, what) for e in curve.plan.attacks} for curve in (one, two)]
    as_in_the_curve = one.plan.attacks == system.any.plan.attacks
    if not as_in_the_curve or any(spent[1].get(k, 0) < 2 * n for k, n in spent[0].items()):
        return [f"convergence in {what} of the attacks that made the curve, doubled"]
    if one.plan.epsilons[-1] not in system.any.plan.epsilons or one.plan.epsilons[-1] == 0:
        return [f"convergence in {what} at a radius of the curve"]
    asr = [share(curve.won[-1:], curve.right[None]).value for curve in (one, two)]
    if not abs(asr[1] - asr[0]) <= limits.change:
        return [f"convergence in {what}: doubled, ASR goes from {asr[0]:.1%} to {asr[1]:.1%}"]
    return []


def _attacks(system: Robustness) -> list[str]:
    plan = system.any.plan
    fooling = [entry for entry in plan.attacks if entry.goal == "fool"]
    kinds = {entry.kind for entry in fooling}
    lacks = []
    if "gradient_free" not in kinds:
        lacks.append("an attack without gradients (square)")
    if not kinds & set(GRADIENT_KINDS):
        lacks.append("a white-box attack")
    if system.any.detects and "adaptive" not in kinds:
        lacks.append("an attack that knows the detector")
    averaged = [e for e in fooling if e.kind in GRADIENT_KINDS and e.samples > 1]
    if any(c.random for c in system.curves.values()) and (not averaged or plan.draws < 2):
        lacks.append("averages over what is random in the system (EOT), in search and judging")
    return lacks


def _counts(system: Robustness, limits: Limits) -> list[str]:
    lacks = []
    measured = figures(system)
    norm = system.norm
    for epsilon in system.any.plan.epsilons:
        estimate = measured[f"{norm}.{level(norm, epsilon)}.asr"]
        if not _has_interval(estimate):
            lacks.append(f"an interval at {level_title(norm, epsilon)}: no row was right")
        elif estimate.n < limits.rows:
            lacks.append(
                f"rows: {estimate.n} that were right at {level_title(norm, epsilon)}; "
                f"{limits.rows} at least"
            )
    return lacks[:1]


def _has_interval(estimate: Estimate) -> bool:
    return estimate.n > 0 and bool(np.isfinite([estimate.low, estimate.high]).all())
