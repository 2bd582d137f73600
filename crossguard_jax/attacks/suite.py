"""Many attacks on the same rows, and each example's worst case over all of them.

Each attack runs on rows that still stand, regrouped into batches of one shape, so that nothing
compiles twice. What an attack claims is not believed: its result goes through uint8 and is judged
anew, under keys that the search has not seen, by one objective for all attacks.
"""

import functools
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.curves import (
    CLEAN,
    SWAP,
    Cell,
    CellId,
    CellStore,
    Curve,
    Entry,
    Plan,
    worst_case,
)
from crossguard_jax.attacks.eot import eot
from crossguard_jax.attacks.named import NamedAttack, RowObjective
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree

Program = Callable[..., Any]
_NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Suite:
    """Attacks by name, in the order in which they run: the cheap ones first save the most.

    Attributes:
        attacks: by name (lower case, digits, underscores); all of one norm and range. A suite
            without any can judge alone.
        objective: what judges an attack without a judge of its own; success is fooled and not
            caught under it.
        batch_size: rows to a batch; the last one is filled up.
        draws: judging takes the mean of this many evaluations under keys of their own. A model
            without randomness pays for one.
        pictures: inputs are pictures of grey levels / 255, and results go through uint8.
        keep: cells keep the inputs that the attacks made.
        spread: maps a function over batches, as ``map`` does: who divides them among processes has
            each done by one.

    Raises:
        UserError: names, or budgets that do not belong to one ball.
    """

    attacks: Mapping[str, NamedAttack]
    objective: RowObjective
    batch_size: int = 64
    draws: int = 8
    pictures: bool = True
    keep: bool = False
    spread: Callable[[Callable[..., Any], Sequence[Any]], Iterable[Any]] = map

    def __post_init__(self) -> None:
        for name in self.attacks:
            if not _NAME.fullmatch(name) or name in (CLEAN[0], SWAP[0]):
                raise UserError(f"attack suite: {name!r} cannot name an attack; write it like pgd")
        balls = {(a.budget.norm, a.budget.low, a.budget.high) for a in self.attacks.values()}
        if len(balls) > 1:
            raise UserError(f"attack suite: budgets of {len(balls)} balls; make a suite for each")
        for field in ("batch_size", "draws"):
            if getattr(self, field) < 1:
                raise UserError(f"attack suite: {field} {getattr(self, field)!r}: at least 1")

    def run(
        self,
        params: PyTree,
        x: Float[np.ndarray, "B ..."],
        rows: PyTree,
        epsilons: Sequence[float],
        key: PRNGKeyArray,
        *,
        store: Callable[[Plan], CellStore] = lambda plan: {},
        donors: Int[np.ndarray, " B"] | None = None,
        alone: bool = False,
        among: Bool[np.ndarray, "E B"] | None = None,
        steps: float = 1.0,
        restarts: float = 1.0,
    ) -> Curve:
        """Clean rows, rows with another's picture, then every attack at every radius.

        Args:
            params: the model's, handed to the objectives.
            x: inputs, float32 in the budgets' range.
            rows: what comes with them, a tree of [B, ...] numpy arrays.
            epsilons: radii; put 0 among them, and one that is hopeless for the model.
            key: for attacks and judges; each cell has its own, whatever else is run.
            store: gives the place for this plan's cells. Cells that are there already are not
                made again, so a place that outlives the process makes a killed run go on.
            donors: whose picture each row is given for `Curve.swapped`; None draws another row.
            alone: each attack runs on what it has not broken itself: dearer, and `Curve.each`
                can tell the attacks apart.
            among: the rows that are attacked, at each radius from the smallest up; None is those
                that are right when clean.
            steps, restarts: multiples of every attack's own, to see whether they suffice.

        Raises:
            UserError: inputs, radii or multiples that cannot be used.
            ValueError: an attack left its ball, or a margin is not a number.
        """
        if not self.attacks:
            raise UserError("attack suite: no attacks; name at least one")
        rows = jax.tree.map(np.asarray, rows)
        self._check(x, rows)
        conditions = digest(rows if among is None else (rows, among))
        plan = self._plan(x, conditions, epsilons, key, alone, steps, restarts)
        cells = store(plan)
        made = functools.partial(self._made, cells, params, rows, key)
        clean = made(CLEAN, np.arange(len(x)), self._judge, x)
        right = np.flatnonzero(~clean.fooled & ~clean.rejected)
        swapped = x[_others(len(x), plan.key) if donors is None else donors]
        made(SWAP, right, self._judge, swapped)
        standing = _Standing(len(x), alone)
        for e, epsilon in enumerate(plan.epsilons):
            if epsilon == plan.epsilons[-1]:
                standing.anew()
            attacked = right if among is None else np.flatnonzero(among[e])
            for entry in plan.attacks:
                over = standing.of(attacked, entry)
                name = (entry.name, epsilon)
                if epsilon == 0:  # a point: there is nothing to search
                    cell = made(name, over, self._judge, x)
                else:
                    budget = self.attacks[entry.name].at(epsilon, steps, restarts)
                    cell = made(name, over, self._programs[entry.name], x, budget)
                standing.note(entry, cell)
        return worst_case(plan, cells)

    def judged(
        self, params: PyTree, x: Float[np.ndarray, "B ..."], rows: PyTree, key: PRNGKeyArray
    ) -> Cell:
        """What the judge of attacks makes of inputs as they are."""
        over = np.arange(len(x))
        return self._over(self._judge, params, x, rows, over, key, CLEAN)

    def _plan(
        self,
        x: np.ndarray,
        conditions: str,
        epsilons: Sequence[float],
        key: PRNGKeyArray,
        alone: bool,
        steps: float,
        restarts: float,
    ) -> Plan:
        if steps <= 0 or restarts <= 0:
            raise UserError(f"attack suite: steps {steps:g}, restarts {restarts:g}: above 0")
        radii = tuple(sorted({float(epsilon) for epsilon in epsilons}))
        if not radii:
            raise UserError("attack suite: no radii; give epsilons")
        for attack in self.attacks.values():
            for epsilon in radii:
                attack.at(epsilon)  # refuses what is no radius before anything has run
        return Plan(
            attacks=tuple(
                attack.entry(name, steps, restarts) for name, attack in self.attacks.items()
            ),
            epsilons=radii,
            rows=len(x),
            draws=self.draws,
            alone=alone,
            key=tuple(int(word) for word in jax.random.key_data(key).ravel()),
            pictures=digest(x),
            conditions=conditions,
        )

    @cached_property
    def _judge(self) -> Program:
        return self._judge_of(self.objective)

    def _judge_of(self, objective: RowObjective) -> Program:
        @jax.jit
        def judge(params: PyTree, rows: PyTree, x: Array, key: PRNGKeyArray) -> dict[str, Array]:
            return self._judged(objective, params, rows, x, key)

        return judge

    @cached_property
    def _programs(self) -> dict[str, Program]:
        """Attacks, compiled once: radii and parameters are arguments."""
        return {
            name: self._whole(attack) if attack.whole else self._program(attack)
            for name, attack in self.attacks.items()
        }

    def _whole(self, attack: NamedAttack) -> Program:
        """An attack on all rows at once; who calls it judges what it returns."""
        climbed = attack.objective or self.objective

        @jax.jit
        def searched(
            params: PyTree, rows: PyTree, x: Array, key: PRNGKeyArray, budget: Budget
        ) -> tuple[Array, Array]:
            def objective(x: Array, at: Array, key: PRNGKeyArray) -> Outcome:
                return climbed(params, jax.tree.map(lambda leaf: leaf[at], rows), x, key)

            x_adv = attack.attack(objective, x, key, budget).result.x_adv
            excess = projections.excess(x_adv, x, budget)
            return projections.through_uint8(x, x_adv, budget) if self.pictures else x_adv, excess

        return searched

    def _search(self, attack: NamedAttack) -> Program:
        """What an attack makes of a batch, and how far it left its ball."""
        climbed = attack.objective or self.objective

        @jax.jit
        def searched(
            params: PyTree, rows: PyTree, x: Array, key: PRNGKeyArray, budget: Budget
        ) -> tuple[Array, Array]:
            def plain(x: Array, key: PRNGKeyArray) -> Outcome:
                return climbed(params, rows, x, key)

            objective = eot(plain, attack.samples) if attack.samples > 1 else plain
            search = attack.attack(params, rows) if attack.bound else attack.attack
            x_adv = search(objective, x, key, budget).x_adv
            excess = projections.excess(x_adv, x, budget)
            return projections.through_uint8(x, x_adv, budget) if self.pictures else x_adv, excess

        return searched

    def _program(self, attack: NamedAttack) -> Program:
        """An attack, and its judge, which all attacks share that have none of their own."""
        searched = self._search(attack)
        judge = self._judge_of(attack.judge) if attack.judge else self._judge

        def run(
            params: PyTree, rows: PyTree, x: np.ndarray, key: PRNGKeyArray, budget: Budget
        ) -> dict[str, Any]:
            search_key, judge_key = jax.random.split(key)
            x_adv, excess = searched(params, rows, x, search_key, budget)
            # From the host, as clean rows come: the judge of arrays on a mesh is another program.
            judged = judge(params, rows, np.asarray(x_adv), judge_key)
            return judged | {"excess": excess} | ({"x_adv": x_adv} if self.keep else {})

        return run

    def _judged(
        self, objective: RowObjective, params: PyTree, rows: PyTree, x: Array, key: PRNGKeyArray
    ) -> dict[str, Array]:
        """The mean outcome over draws, and how far draws differ, [B] each."""
        draws = jax.vmap(lambda key: objective(params, rows, x, key))(
            jax.random.split(key, self.draws)
        )
        detector = draws.detector
        if detector is None:
            detector = jnp.full_like(draws.margin, jnp.nan)
        # A constant has no draws that differ, not even by rounding.
        spread = jnp.maximum(jnp.ptp(draws.margin, axis=0), jnp.nan_to_num(jnp.ptp(detector, 0)))
        means = {"loss": draws.loss, "margin": draws.margin, "detector": detector}
        return {name: value.mean(axis=0) for name, value in means.items()} | {"spread": spread}

    def _made(
        self,
        cells: CellStore,
        params: PyTree,
        rows: PyTree,
        key: PRNGKeyArray,
        name: CellId,
        over: np.ndarray,
        program: Program,
        x: np.ndarray,
        *more: Any,
    ) -> Cell:
        """A cell from the store, or made and put there."""
        cell = cells.get(name)
        if cell is None:
            attack = self.attacks.get(name[0])
            if attack is not None and attack.whole and name[1] and over.size:
                x = self._perturbed(program, name, params, rows, x, over, _key_of(key, name), *more)
                program, more = self._judge_and_keep, ()
            cell = self._over(program, params, x, rows, over, _key_of(key, name), name, *more)
            cells[name] = cell
        return cell

    def _perturbed(
        self,
        program: Program,
        name: CellId,
        params: PyTree,
        rows: PyTree,
        x: np.ndarray,
        over: Int[np.ndarray, " R"],
        key: PRNGKeyArray,
        budget: Budget,
    ) -> np.ndarray:
        """All inputs, those that are attacked moved by one perturbation, as they are saved."""
        at = np.resize(over, len(x))  # one shape, however few still stand
        some = jax.tree.map(lambda leaf: leaf[at], rows)
        moved, excess = program(params, some, x[at], key, budget)
        _check_excess(name, np.asarray(excess))
        x_adv = np.array(x)
        x_adv[over] = np.asarray(moved)[: len(over)]
        return x_adv

    def _judge_and_keep(
        self, params: PyTree, rows: PyTree, x: np.ndarray, key: PRNGKeyArray
    ) -> dict[str, Any]:
        return self._judge(params, rows, x, key) | ({"x_adv": x} if self.keep else {})

    def _over(
        self,
        program: Program,
        params: PyTree,
        x: np.ndarray,
        rows: PyTree,
        over: Int[np.ndarray, " R"],
        key: PRNGKeyArray,
        name: CellId,
        *more: Any,
    ) -> Cell:
        """A program over some rows, in batches of one shape."""
        if not over.size:
            return Cell(over, *(np.zeros(0, np.float32) for _ in range(4)))

        def one(numbered: tuple[int, tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
            i, (batch, n) = numbered
            those = jax.tree.map(lambda leaf: leaf[batch], rows)
            outputs = program(params, those, x[batch], jax.random.fold_in(key, i), *more)
            return {name: np.asarray(value)[:n] for name, value in outputs.items()}

        parts = list(self.spread(one, list(enumerate(_batches(over, self.batch_size)))))
        fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _check_excess(name, fields.pop("excess", np.zeros(1)))
        unknown = over[np.isnan(fields["margin"]) | np.isnan(fields["loss"])]
        if unknown.size:
            at = f"{name[0]} at {name[1]:g}: row {unknown[0]}"
            raise ValueError(f"{at} has a loss or margin of NaN, which no attack can raise")
        x_adv = fields.pop("x_adv", None)
        if x_adv is not None and self.pictures:
            x_adv = np.round(255 * x_adv).astype(np.uint8)
        return Cell(over, **fields, x_adv=x_adv)

    def _check(self, x: np.ndarray, rows: PyTree) -> None:
        budget = next(iter(self.attacks.values())).at(0.0)
        if len(x) < 2:
            raise UserError("attack suite: a row has no other's picture to take; give two or more")
        for start in range(0, len(x), self.batch_size):
            projections.check_input(jnp.asarray(x[start : start + self.batch_size]), budget)
        for leaf in jax.tree.leaves(rows):
            if leaf.shape[:1] != (len(x),):
                raise UserError(
                    f"attack suite: rows of {list(leaf.shape)} for {len(x)} inputs; one each"
                )
        if self.pictures and np.abs(255 * x - np.round(255 * x)).max() > 1e-3:
            raise UserError("attack suite: x is not in grey levels; give uint8 pictures / 255")


class _Standing:
    """Which rows each attack has still to be run on."""

    def __init__(self, n: int, alone: bool):
        self._n, self._alone = n, alone
        self._done: dict[str, np.ndarray] = {}

    def _done_with(self, entry: Entry) -> np.ndarray:
        whose = entry.name if self._alone else entry.goal
        return self._done.setdefault(whose, np.zeros(self._n, bool))

    def of(self, rows: Int[np.ndarray, " R"], entry: Entry) -> Int[np.ndarray, " S"]:
        return rows[~self._done_with(entry)[rows]]

    def note(self, entry: Entry, cell: Cell) -> None:
        reached = cell.success if entry.goal == "fool" else cell.rejected
        self._done_with(entry)[cell.rows[reached]] = True

    def anew(self) -> None:
        self._done.clear()


def digest(tree: PyTree) -> str:
    """A fingerprint of a tree of arrays: shapes, types and values, in order."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def _key_of(key: PRNGKeyArray, cell: CellId) -> PRNGKeyArray:
    """By name and radius, so that neither depends on what else is in the run."""
    return jax.random.fold_in(key, zlib.crc32(f"{cell[0]} {cell[1]:.9g}".encode()))


def _batches(over: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows in groups of ``size``, and how many of each are not filling."""
    for start in range(0, len(over), size):
        part = over[start : start + size]
        yield np.resize(part, size), len(part)


def _others(n: int, words: Sequence[int]) -> np.ndarray:
    """For each row another one, at random: no row is its own."""
    circle = np.random.default_rng(list(words)).permutation(n)
    others = np.empty(n, int)
    others[circle] = np.roll(circle, 1)
    return others


def _check_excess(name: CellId, excess: np.ndarray) -> None:
    if excess.max() > 0:
        raise ValueError(f"{name[0]} left its ball of {name[1]:g} by {excess.max():g}")
