"""One attack that knows the consistency check and one that does not, and what they made.

They go against the model's plain answer, so that what the check sees of them is measured apart from
what is done about it: a row that the check would have rejected is attacked as any other.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.attacks import adaptive
from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.curves import CLEAN, Cell
from crossguard_jax.attacks.named import NamedAttack
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.suite import Suite, digest
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray, Shaped
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness.climbs import SLACK
from crossguard_jax.evals.robustness.runs import CellFolder, measure
from crossguard_jax.evals.robustness.systems import which
from crossguard_jax.runtime import processes

OBLIVIOUS, ADAPTIVE = "oblivious", "adaptive"
STEPS = 20


@dataclass(frozen=True)
class Attacked:
    """What an attack made of R rows.

    Attributes:
        rows: positions in the probe's; those that the model answered rightly.
        pictures: uint8 [R, C, X, Y].
        s_c: how well each text fits what its picture has become.
        fooled: the plain answer is wrong.
    """

    rows: Int[np.ndarray, " R"]
    pictures: Shaped[np.ndarray, "R *I C X Y"]
    s_c: Float[np.ndarray, " R"]
    fooled: Bool[np.ndarray, " R"]


@dataclass(frozen=True)
class Probe:
    """Rows as they are, and as attacks have left them.

    Attributes:
        norm, epsilon, steps: of both attacks; the radius is in units of pixels in [0, 1].
        cut: S_c from which on the model answers plainly; None without a check.
        records: B of them.
        x: their pictures, float32 [B, C, X, Y] in [0, 1].
        rows: what comes with them, arrays [B, ...].
        s_c: how well text and picture fit; 1 everywhere without a check.
        attacked: by attack; `ADAPTIVE` only where there is a check.
    """

    norm: str
    epsilon: float
    steps: int
    cut: float | None
    records: Sequence[Record]
    x: Float[np.ndarray, "B *I C X Y"]
    rows: Mapping[str, np.ndarray]
    s_c: Float[np.ndarray, " B"]
    attacked: Mapping[str, Attacked]

    def at(self, rows: Int[np.ndarray, " R"]) -> dict[str, np.ndarray]:
        """What comes with some of the rows."""
        return {name: value[rows] for name, value in self.rows.items()}


def probe(
    system: Immunized,
    records: Sequence[Record],
    config: Any,
    folder: str | Path,
    steps: int = STEPS,
) -> Probe:
    """APGD on the plain margin, and, with a check, on `adaptive.selective`; each on every row that
    is answered rightly. Killed and called again, it goes on.

    Args:
        system: what is attacked.
        records: labelled; those without a picture are left out.
        config: ``attack`` of ``configs/cmai.py``: norm, key and sizes; the radius is that of
            ``convergence``.
        folder: of the cells.
        steps: of each attack.

    Raises:
        UserError: fewer than two records with a picture, a check that nothing cuts, or whatever
            `Suite.run` and `CellFolder` refuse.
    """
    pictured = [record for record in records if record.image is not None]
    if len(pictured) < 2:
        raise UserError(f"attack: {len(pictured)} of {len(records)} rows have a picture; give two")
    x, rows = system.rows(pictured, which(config))
    cut, epsilon = plain_cut(system), float(config.convergence.epsilon)
    budget = Budget(0.0, config.norm, steps)
    attacks = {OBLIVIOUS: NamedAttack(apgd, budget)}
    if cut is not None:
        # Whatever its branches do, to be answered plainly is to be above all of them.
        held = replace(
            system, policy=Policy.from_config({"branches": [{"below": cut, "do": "reject"}]})
        )
        climbed = functools.partial(_unseen, held)
        attacks[ADAPTIVE] = NamedAttack(apgd, budget, climbed, kind="adaptive")
    fooled = functools.partial(_fooled, system)
    suite = Suite(attacks, fooled, config.batch_size, draws=1, keep=True, spread=processes.spread)
    name = f"{digest(system.params)}, cut {cut!r}"
    key, folder = jax.random.key(config.seed), Path(folder)
    curve = measure(suite, system.params, x, rows, [epsilon], key, folder, name, alone=True)
    cells = CellFolder(folder, name, curve.plan)
    size = config.batch_size
    scored = functools.partial(_scored, system, rows, size)

    def attacked(cell: Cell) -> Attacked:
        x_adv = cell.x_adv
        if x_adv is None:  # no rows, or radius 0
            x_adv = np.round(255 * x[cell.rows]).astype(np.uint8)
        s_c = scored(cell.rows, x_adv.astype(np.float32) / 255)
        return Attacked(cell.rows, x_adv, s_c, cell.fooled)

    results = {name: attacked(_cell(cells, name, curve.plan.epsilons[-1])) for name in attacks}
    clean = scored(_cell(cells, *CLEAN).rows, x)
    return Probe(config.norm, epsilon, steps, cut, pictured, x, rows, clean, results)


@functools.partial(jax.jit, static_argnums=0)
def s_c(system: Immunized, params: Any, rows: Any, x: Array) -> Array:
    """`Immunized.s_c`, compiled."""
    return system.s_c(params, rows, x)


def plain_cut(system: Immunized) -> float | None:
    """The S_c from which on a model answers plainly; None without a check.

    Raises:
        UserError: a check that nothing cuts.
    """
    if system.task.reader is None:
        return None
    if len(system.policy.branches) > 1:
        return system.policy.branches[-2].below
    if system.threshold is None:
        raise UserError("attack: the model's check has no threshold and its policy no branch")
    return system.threshold.tau


def _fooled(system: Immunized, params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """The margin of the plain answer; nobody looks on."""
    margin = system.accepted(params, rows, x, key).margin
    return Outcome(margin, margin)


def _unseen(system: Immunized, params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """First to fool, then to agree with the text."""

    def by_margin(x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = system.accepted(params, rows, x, key)
        return replace(outcome, loss=outcome.margin)

    return adaptive.selective(by_margin, SLACK)(x, key)


def _cell(cells: CellFolder, name: str, epsilon: float) -> Cell:
    cell = cells.get((name, epsilon))
    assert cell is not None  # the run has just made it
    return cell


def _scored(
    system: Immunized,
    rows: Mapping[str, np.ndarray],
    size: int,
    over: Int[np.ndarray, " R"],
    x: Float[np.ndarray, "R ..."],
) -> Float[np.ndarray, " R"]:
    """S_c of pictures with the texts of some rows, in batches of one shape."""
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(over), size):
        here = np.resize(np.arange(start, min(start + size, len(over))), size)
        those = {name: value[over[here]] for name, value in rows.items()}
        scores = np.asarray(s_c(system, system.params, those, x[here]))
        parts.append(scores[: len(over) - start])
    return np.concatenate(parts)
