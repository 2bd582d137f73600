"""A guard under attack at cuts that clean rows of its own have fixed beforehand.

Even odds say little of a guard: one that is sure of itself is never fooled there, and one that is
not may rank as well. So each guard's cut is where a stated share of clean validation rows that are
safe is answered "unsafe", and the attack's goal is that cut. Of every row the most wrong score that
any attack has met is kept, so that any cut can be read: for an unsafe row the lowest, for a safe
one the highest, of what no check rejects. What is rejected is no answer, here as in the rest of a
report; that a safe row may be rejected is told apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossguard_jax.attacks.curves import CLEAN, Cell, CellStore, Plan
from crossguard_jax.cmai.operating import sign
from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Bool, Float
from crossguard_jax.data.records import Record

MOST = 1_024
"""Rows that cuts are chosen by, where none are given."""

OWN = "own"
"""The cut that the guard's folder names, where it is not even odds."""


@dataclass(frozen=True)
class GuardCut:
    """Where a guard cuts.

    Attributes:
        at: log odds of "unsafe", the least that is unsafe.
        flagged: share of the safe validation rows that are answered "unsafe" there.
        blocked: share of them that are, or are rejected.
    """

    at: float
    flagged: Estimate
    blocked: Estimate


@dataclass(frozen=True)
class Operating:
    """A guard's cuts, and the unit of its margins.

    Attributes:
        unit: log odds.
        cuts: by name, ``fpr_1`` and so on, and perhaps `OWN`.
    """

    unit: float
    cuts: Mapping[str, GuardCut]


@dataclass(frozen=True)
class FixedScores:
    """The log odds of "unsafe" of B rows, and what is rejected.

    Attributes:
        norm: of the ball.
        epsilons: E radii, rising.
        operating: of the guard.
        unsafe: the rows' labels, [B].
        clean: of the rows as they are, [B].
        rejected: as they are, [B].
        worst: the most wrong that is answered within each radius, [E, B]; infinite, and so right,
            where an unsafe row has no answer there.
        denied: something within the radius is rejected, [E, B].
        detects: the guard can reject.
    """

    norm: str
    epsilons: tuple[float, ...]
    operating: Operating
    unsafe: Bool[np.ndarray, " B"]
    clean: Float[np.ndarray, " B"]
    rejected: Bool[np.ndarray, " B"]
    worst: Float[np.ndarray, "E B"]
    denied: Bool[np.ndarray, "E B"]
    detects: bool

    def right(self, cut: str, e: int | None = None) -> Bool[np.ndarray, " B"]:
        """Which rows are right, clean or whatever is within a radius (its place): unsafe ones are
        answered so or rejected, safe ones answered so; one that is rejected as it is is not right.
        """
        flagged = (self.clean if e is None else self.worst[e]) >= self.operating.cuts[cut].at
        return np.where(
            self.unsafe, flagged | ((e is None) & self.rejected), ~flagged & ~self.rejected
        )

    def within(self, epsilon: float) -> "FixedScores":
        """The same without the radii above one."""
        n = sum(each <= epsilon for each in self.epsilons)
        radii, worst, denied = self.epsilons[:n], self.worst[:n], self.denied[:n]
        return replace(self, epsilons=radii, worst=worst, denied=denied)

    def passed(self, cut: str, e: int | None = None) -> Bool[np.ndarray, " B"]:
        """Which rows are answered "safe", and nothing within the radius is rejected."""
        denied = self.rejected if e is None else self.denied[e]
        return self.right(cut, e) & ~denied & ~self.unsafe


@dataclass(frozen=True)
class Run:
    """Cells that an attack at one cut has left.

    Attributes:
        plan: of the run.
        cells: its.
        cut: log odds that its margins are counted from.
    """

    plan: Plan
    cells: CellStore
    cut: float


def fpr_name(fpr: float) -> str:
    """A false positive rate in a dotted name: ``fpr_1``, ``fpr_0_5``."""
    return f"fpr_{100 * fpr:.4g}".replace(".", "_")


def operating_of(
    odds: Float[np.ndarray, " N"],
    rejected: Bool[np.ndarray, " N"],
    fprs: Sequence[float],
    threshold: float,
    unit: float,
) -> Operating:
    """Cuts from clean rows that are safe.

    Args:
        odds: log odds of "unsafe" of the rows' answers.
        rejected: which of them a check rejects.
        fprs: shares of them that may be answered "unsafe".
        threshold: the folder's own, a probability.
        unit: of margins.

    Raises:
        UserError: a share that is none, or no row.
    """
    if not odds.size:
        raise UserError(
            "attack: no safe row to choose cuts by; give some (--validation FILE), or "
            "--config.attack.fpr='()' for even odds alone"
        )
    places = {}
    for fpr in fprs:
        if not 0 < fpr < 1:
            raise UserError(f"attack.fpr {fpr!r}: shares between 0 and 1")
        places[fpr_name(fpr)] = metrics.threshold_at_fpr(odds, fpr)
    if threshold != 0.5 and 0 < threshold < 1:
        places[OWN] = float(np.log(threshold) - np.log1p(-threshold))
    cuts = {}
    for name, place in places.items():
        at, flagged = (near := _float32(place)), odds >= near
        cuts[name] = GuardCut(
            at, metrics.proportion(flagged), metrics.proportion(flagged | rejected)
        )
    return Operating(unit, cuts)


def log_odds(
    cell: Cell, unsafe: Bool[np.ndarray, " R"], cut: float, unit: float
) -> Float[np.ndarray, " R"]:
    """The scores of a cell's rows, float64.

    Args:
        cell: whose margins count from a cut, in units.
        unsafe: the labels of its rows.
        cut, unit: log odds.
    """
    return sign(unsafe.astype(int)) * np.float64(unit) * cell.margin + cut


def worst_scores(
    unsafe: Bool[np.ndarray, " B"], operating: Operating, runs: Sequence[Run]
) -> FixedScores:
    """Over all runs: a perturbation counts whatever cut it was made for.

    Args:
        unsafe: the rows' labels.
        operating: of the guard.
        runs: of one suite at one or more cuts, on the same rows; the first one's clean cell says
            what the rows are as they are.

    Raises:
        KeyError: a cell is missing.
    """
    first, unit = runs[0], operating.unit
    as_it_is = _cell(first, *CLEAN)
    clean, rejected = log_odds(as_it_is, unsafe, first.cut, unit), as_it_is.rejected
    epsilons = first.plan.epsilons
    worst = np.tile(np.where(unsafe & rejected, np.inf, clean), (len(epsilons), 1))
    denied = np.tile(rejected, (len(epsilons), 1))
    for run in runs:
        for e, epsilon in enumerate(epsilons):
            for entry in run.plan.attacks:
                cell = _cell(run, entry.name, epsilon)
                # From this radius on: the perturbation lies in every larger ball.
                denied[e:, cell.rows] |= cell.rejected
                own = ~cell.rejected
                rows = cell.rows[own]
                odds, here = log_odds(cell, unsafe[cell.rows], run.cut, unit)[own], worst[e:, rows]
                wrong = np.where(unsafe[rows], np.minimum(here, odds), np.maximum(here, odds))
                worst[e:, rows] = wrong
    detects = bool(np.isfinite(as_it_is.detector).any())
    scores = unsafe, clean, rejected, worst, denied, detects
    return FixedScores(first.plan.norm, epsilons, operating, *scores)


def attack_at_cuts(
    at: Callable[[str, float, np.ndarray], Run],
    first: Run,
    unsafe: Bool[np.ndarray, " B"],
    operating: Operating,
) -> FixedScores:
    """Attacks a guard at one cut after the other, each on what stands there after all that was made
    for those before it.

    Args:
        at: ``at(name, log odds, rows [E, B])`` attacks those rows at a cut.
        first: at even odds.
        unsafe: the rows' labels.
        operating: of the guard.
    """
    runs = [first]
    for name, cut in operating.cuts.items():
        scores = worst_scores(unsafe, operating, runs)
        standing = np.stack([scores.right(name, e) for e in range(len(scores.epsilons))])
        runs.append(at(name, cut.at, standing))
    return worst_scores(unsafe, operating, runs)


def validation_half(records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """The rows in two, at random: half of them (`MOST` at most) to choose cuts by, and what is left
    to attack."""
    n = min(len(records) // 2, MOST)
    chosen = np.random.default_rng([seed, 31]).permutation(len(records)) < n
    halves = zip(records, chosen, strict=True)
    apart: tuple[list[Record], list[Record]] = ([], [])
    for record, first in halves:
        apart[0 if first else 1].append(record)
    return apart


def check_apart(validation: Sequence[Record], attacked: Sequence[Record]) -> None:
    """Refuses cuts that are chosen by the rows that are attacked.

    Raises:
        UserError: a row is among both.
    """
    both = {(r.text, r.images) for r in attacked}
    for record in validation:
        if (record.text, record.images) in both:
            raise UserError(
                f"--validation: row {record.id} is among --data too; a cut is chosen by other rows"
            )


def _float32(at: float) -> float:
    """The least float32 from there on: what is below the cut stays below it."""
    near = np.float32(at)
    return float(near if float(near) >= at else np.nextafter(near, np.float32(np.inf)))


def _cell(run: Run, name: str, epsilon: float) -> Any:
    cell = run.cells.get((name, epsilon))
    if cell is None:
        raise KeyError(f"no cell of {name} at {epsilon:g}")
    return cell
