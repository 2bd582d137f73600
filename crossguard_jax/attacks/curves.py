"""What a suite of attacks found, as plain numpy: cells, and each example's worst case over them.

A cell is one attack at one radius. A perturbation found at a radius lies in every larger ball, so
it counts there as well: that is what makes a curve over radii monotone. At the last radius every
row that was right is attacked anew, so what the attacks can do there without that help is known
too (`Curve.fresh`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Bool, Float, Int, Shaped

CLEAN, SWAP = ("clean", 0.0), ("swap", 0.0)
"""The cells that no attack made: the inputs as they are, and each row with another's picture."""

KINDS = ("white_box", "adaptive", "gradient_free", "transfer", "noise")
GOALS = ("fool", "deny")
_NOISE = 1e-5  # of a margin; draws that differ by more differ because the system is random

CellId = tuple[str, float]


@dataclass(frozen=True)
class Cell:
    """What the rows that were attacked came to; every field is [R], an entry a row.

    Attributes:
        rows: which ones, as positions in the whole set.
        loss: the judge's loss of what the attack returned.
        margin: above 0 the model is fooled.
        detector: above 0 the input is caught; NaN where nothing detects.
        spread: how far a margin or a detector moved between draws of the model's randomness.
        x_adv: the inputs, where they were kept: uint8 pictures [R, ...], or as they were given.
    """

    rows: Int[np.ndarray, " R"]
    loss: Float[np.ndarray, " R"]
    margin: Float[np.ndarray, " R"]
    detector: Float[np.ndarray, " R"]
    spread: Float[np.ndarray, " R"]
    x_adv: Shaped[np.ndarray, "R ..."] | None = None

    @property
    def fooled(self) -> Bool[np.ndarray, " R"]:
        """The model is wrong, caught or not."""
        return self.margin > 0

    @property
    def rejected(self) -> Bool[np.ndarray, " R"]:
        """The input is caught."""
        return self.detector > 0

    @property
    def success(self) -> Bool[np.ndarray, " R"]:
        """Fooled and not caught."""
        return self.fooled & ~self.rejected


@runtime_checkable
class CellStore(Protocol):
    """Where cells are kept: a dict will do, or a folder."""

    def get(self, cell: CellId, /) -> Cell | None:
        """The cell, or None where it has not been made."""

    def __setitem__(self, cell: CellId, value: Cell, /) -> None:
        """Keeps a cell."""


@dataclass(frozen=True)
class Entry:
    """An attack as a report lists it: what it is, and what it was allowed to spend."""

    name: str
    kind: str
    goal: str
    samples: int
    norm: str
    steps: int
    restarts: int
    relative_step: float
    random_start: bool


@dataclass(frozen=True)
class Plan:
    """Everything that settles what a run of the suite finds, the model aside.

    Attributes:
        attacks: in the order in which they run.
        epsilons: radii, rising.
        rows: how many examples there are.
        draws: evaluations under keys of their own whose mean judges an input.
        alone: each attack ran on rows that it had not broken itself, not on what was left.
        key: the random key's data.
        pictures, conditions: digests of the inputs, and of what comes with them (labels, texts).
    """

    attacks: tuple[Entry, ...]
    epsilons: tuple[float, ...]
    rows: int
    draws: int
    alone: bool
    key: tuple[int, ...]
    pictures: str
    conditions: str

    @property
    def norm(self) -> str:
        """The ball that all attacks share."""
        return self.attacks[0].norm

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        entries = [asdict(entry) for entry in self.attacks]
        lists = {"attacks": entries, "epsilons": list(self.epsilons), "key": list(self.key)}
        return asdict(self) | lists

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Inverse of `as_dict`."""
        entries = tuple(Entry(**entry) for entry in values["attacks"])
        tuples = {name: tuple(values[name]) for name in ("epsilons", "key")}
        return cls(**{**values, **tuples, "attacks": entries})


@dataclass(frozen=True)
class Curve:
    """Each example's worst case over the suite, by radius; [E, B], a column an example.

    Attributes:
        plan: what was run.
        right: clean answer right and not rejected, [B]; only these were attacked.
        clean_rejected: rejected as it is, [B].
        won: an attack within the radius fools the model and is not caught.
        by: the first attack that did, as a position in the plan; -1 where none did.
        caught: none did, and what fooled the model within the radius was caught.
        denied: an input within the radius is rejected, whatever the answer.
        loss: the greatest loss that was seen within the radius, the clean one included.
        fresh: won at the last radius by an attack that ran there, [B].
        swapped: fooled and not caught with another row's picture, [B]; among ``right``.
        random: the system's answer to one input varies.
        detects: the system can reject.
        each: by attack, ``won`` by it; empty unless each ran alone.
        denials: by attack that is after it, ``denied`` by it.
    """

    plan: Plan
    right: Bool[np.ndarray, " B"]
    clean_rejected: Bool[np.ndarray, " B"]
    won: Bool[np.ndarray, "E B"]
    by: Int[np.ndarray, "E B"]
    caught: Bool[np.ndarray, "E B"]
    denied: Bool[np.ndarray, "E B"]
    loss: Float[np.ndarray, "E B"]
    fresh: Bool[np.ndarray, " B"]
    swapped: Bool[np.ndarray, " B"]
    random: bool
    detects: bool
    each: Mapping[str, Bool[np.ndarray, "E B"]]
    denials: Mapping[str, Bool[np.ndarray, "E B"]]

    @property
    def robust(self) -> Bool[np.ndarray, "E B"]:
        """Right, and nothing within the radius gets through."""
        return self.right & ~self.won

    def at(self, epsilon: float) -> int:
        """The radius's row.

        Raises:
            ValueError: it was not run.
        """
        return self.plan.epsilons.index(epsilon)

    def within(self, epsilon: float) -> "Curve":
        """What was found up to a radius: the curve without the larger ones.

        Raises:
            ValueError: it was not run.
        """
        end = self.at(epsilon) + 1
        fields = {name: getattr(self, name)[:end] for name in _BY_RADIUS}
        won = fields["won"]
        return replace(
            self,
            plan=replace(self.plan, epsilons=self.plan.epsilons[:end]),
            # Attacks ran at a radius on what stood within the one before.
            fresh=won[-1] & ~won[-2] if end > 1 else won[-1],
            each={name: one[:end] for name, one in self.each.items()},
            denials={name: one[:end] for name, one in self.denials.items()},
            **fields,
        )


_BY_RADIUS = ("won", "by", "caught", "denied", "loss")


def worst_case(plan: Plan, cells: CellStore) -> Curve:
    """The curve from the cells of a finished run.

    Raises:
        KeyError: a cell is missing.
    """
    clean, swap = _cell(cells, CLEAN), _cell(cells, SWAP)
    shape = len(plan.epsilons), plan.rows
    won, caught, denied = (np.zeros(shape, bool) for _ in range(3))
    by, loss = np.full(shape, -1), np.tile(clean.loss, (shape[0], 1))
    each, denials = (
        {entry.name: np.zeros(shape, bool) for entry in plan.attacks if entry.goal == goal}
        for goal in GOALS
    )
    fresh, spread = np.zeros(plan.rows, bool), [clean.spread.max(initial=0)]
    for e, epsilon in enumerate(plan.epsilons):
        last = e == shape[0] - 1
        for i, entry in enumerate(plan.attacks):
            cell = _cell(cells, (entry.name, epsilon))
            spread.append(cell.spread.max(initial=0))
            # From this radius on: the perturbation lies in every larger ball.
            denied[e:, cell.rows] |= cell.rejected
            if entry.goal != "fool":
                denials[entry.name][e:, cell.rows] |= cell.rejected
                continue
            caught[e:, cell.rows] |= cell.fooled & cell.rejected
            loss[e:, cell.rows] = np.maximum(loss[e:, cell.rows], cell.loss)
            winners = cell.rows[cell.success]
            by[e:, winners[~won[e, winners]]] = i
            won[e:, winners] = each[entry.name][e:, winners] = True
            if last:
                fresh[winners] = True
    swapped = np.zeros(plan.rows, bool)
    swapped[swap.rows] = swap.success
    return Curve(
        plan=plan,
        right=~clean.fooled & ~clean.rejected,
        clean_rejected=clean.rejected,
        won=won,
        by=by,
        caught=caught & ~won,
        denied=denied,
        loss=loss,
        fresh=fresh,
        swapped=swapped,
        random=bool(max(spread) > _NOISE),
        detects=bool(np.isfinite(clean.detector).any()),
        each=each if plan.alone else {},
        denials=denials,
    )


def pictures_at(curve: Curve, cells: CellStore, epsilon: float) -> dict[int, np.ndarray]:
    """By row, the input that won within the radius, or else the one of greatest loss.

    Raises:
        UserError: a cell whose inputs were not kept.
    """
    best: dict[int, tuple[tuple[bool, float], np.ndarray]] = {}
    for radius in curve.plan.epsilons[: curve.at(epsilon) + 1]:
        for entry in curve.plan.attacks:
            cell = _cell(cells, (entry.name, radius))
            if entry.goal != "fool" or not radius:  # a point: there the input is as it was
                continue
            if cell.x_adv is None and cell.rows.size:
                raise UserError(f"{entry.name} at {radius:g}: what it made was not kept")
            for i, row in enumerate(cell.rows.tolist()):
                rank = (bool(cell.success[i]), float(cell.loss[i]))
                if cell.x_adv is not None and (row not in best or rank > best[row][0]):
                    best[row] = (rank, cell.x_adv[i])
    return {row: x_adv for row, (_, x_adv) in best.items()}


def _cell(cells: CellStore, name: CellId) -> Cell:
    cell = cells.get(name)
    if cell is None:
        raise KeyError(f"no cell of {name[0]} at {name[1]:g}")
    return cell
