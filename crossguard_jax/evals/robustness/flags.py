"""What AutoAttack's own checks would say of a system (Croce and Hein, its ``checks.py``)."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from crossguard_jax.attacks.adaptive import check_differentiable
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool
from crossguard_jax.evals.robustness.figures import Robustness, share
from crossguard_jax.report.blocks import Block, Bullets, Section, Text

SQUARE = 0.002
"""Of robust accuracy: what Square may find behind attacks by gradients, as AutoAttack's alpha."""


@dataclass(frozen=True)
class Gradients:
    """Of some clean rows.

    Attributes:
        rows: how many were looked at.
        zero: at how many of them the loss has no gradient at all.
        detector: what keeps gradients from a detector; "" where nothing does or nothing detects.
    """

    rows: int
    zero: int
    detector: str = ""


def gradients(system: Immunized, x: np.ndarray, rows: Any, size: int) -> Gradients:
    """Looks at the gradients of the plain answer's loss and of the detector.

    Args:
        system: what is attacked.
        x, rows: of `Immunized.rows`.
        size: rows to a batch.
    """
    zero, reason = 0, ""
    for start in range(0, len(x), size):
        here = np.minimum(np.arange(start, start + size), len(x) - 1)
        some = jax.tree.map(lambda leaf, here=here: leaf[here], rows)
        lengths = np.asarray(_lengths(system, system.params, some, x[here]))
        zero += int((lengths[: len(x) - start] == 0).sum())
    if len(system.policy.branches) > 1:
        some = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[:size]), rows)  # not under jit
        objective = functools.partial(system.accepted, system.params, some)
        try:
            check_differentiable(objective, jax.numpy.asarray(x[:size]), jax.random.key(0))
        except UserError as error:
            reason = str(error)
    return Gradients(len(x), zero, reason)


@functools.partial(jax.jit, static_argnums=0)
def _lengths(system: Immunized, params: Any, rows: Any, x: Array) -> Array:
    def total(x: Array) -> Array:
        return system.accepted(params, rows, x, jax.random.key(0)).loss.sum()

    return abs(jax.grad(total)(x)).reshape(len(x), -1).sum(axis=1)


def flags(system: Robustness, answers: int, looked: Gradients) -> list[str]:
    """Its warnings, a line each; none where it has none.

    Args:
        system: what the suite found.
        answers: how many there are.
        looked: of `gradients`.
    """
    lines, curve = [], system.any
    if curve.random:
        lines.append(
            "Randomized defence: one input's answers vary, so AutoAttack's `rand` version (EOT) is "
            "the one to run."
        )
    if looked.zero:
        lines.append(
            f"Zero gradients: the loss has none at {looked.zero} of {looked.rows} clean rows, "
            "which stops attacks that go by cross-entropy."
        )
    if looked.detector:
        lines.append(f"A detector that gradients do not pass: {looked.detector}.")
    fooling = [(i, e) for i, e in enumerate(curve.plan.attacks) if e.goal == "fool"]
    steered = [i for i, e in fooling if e.kind in ("white_box", "adaptive")]
    square = [i for i, e in fooling if e.kind == "gradient_free"]
    if not curve.each:  # it has only what those before it left
        square = [i for i in square if steered and i > max(steered)]
    if square and steered:
        everyone = np.ones_like(system.stacked("right"))
        if curve.each:
            free = _any_of(system, square) & ~_any_of(system, steered)
        else:
            free = np.isin(system.stacked("by"), square)
        most = max(share(free[:, e], everyone).value for e in range(len(curve.plan.epsilons)))
        if most > SQUARE:
            lines.append(
                f"Square attack lowers robust accuracy by {most:.1%} behind the attacks by "
                "gradients: their gradients may be masked."
            )
    if answers < 4:
        what = "DLR and targeted DLR are" if answers < 3 else "targeted DLR is"
        lines.append(f"{answers} answers: {what} not defined; margins stand in for it.")
    return lines


def _any_of(system: Robustness, numbers: list[int]) -> Bool[np.ndarray, "N E B"]:
    """Broken by one of the plan's attacks, where each ran alone."""
    names = [system.any.plan.attacks[i].name for i in numbers]
    return np.stack([np.any([c.each[n] for n in names], axis=0) for c in system.curves.values()])


def flags_section(lines: dict[str, list[str]]) -> Section:
    """By system."""
    items = tuple(f"{name}: {line}" for name, some in lines.items() for line in some)
    body: Block = Bullets(items) if items else Text("None of its checks raises a flag.")
    about = Text("AutoAttack warns where its result is not to be trusted; here it would say:")
    return Section("AutoAttack's flags", (about, body) if items else (body,))
