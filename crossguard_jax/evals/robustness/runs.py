"""Attack suites that a kill does not undo: every cell is a file as soon as it is made.

Several processes divide a cell's batches; the first one reads and writes the files.
A folder holds ``plan.json`` (what is run, on what) and an ``.npz`` for each cell. Giving the same
folder again goes on where it stopped; giving it to another run is refused.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.attacks.curves import Cell, CellId, Curve, Plan, worst_case
from crossguard_jax.attacks.suite import Suite
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float, Int, PRNGKeyArray, PyTree
from crossguard_jax.io.jsonl import read_json, write_atomic
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import processes

PLAN = "plan.json"


class CellFolder:
    """Cells in a folder, each written whole or not at all.

    Raises:
        UserError: the folder holds another run's cells.
    """

    def __init__(
        self,
        folder: str | Path,
        system: str,
        plan: Plan,
        report: Callable[[str], None] = lambda name: None,
    ):
        """Opens or makes the folder.

        Args:
            folder: where.
            system: what is attacked: a fingerprint of its parameters, so that another's cells are
                not taken for its own.
            plan: what is run.
            report: hears of each new cell.
        """
        self.folder, self._report = Path(folder), report
        facts = {"system": system, "plan": plan.as_dict()}
        # Through JSON and back: what is compared is what a file can hold.
        facts = json.loads(json.dumps(facts))
        path = self.folder / PLAN

        def claim() -> None:
            if not path.exists():
                write_atomic(path, json.dumps(facts, indent=1) + "\n")
            elif (other := read_json(path)) != facts:
                what = _first_difference(other, facts)
                raise UserError(f"{self.folder}: holds another run ({what}); give another folder")

        processes.by_first(claim)

    def get(self, cell: CellId, /) -> Cell | None:
        """The cell, or None where there is no file of it."""
        path = self._path(cell)

        def read() -> Cell | None:
            if not path.exists():
                return None
            with np.load(path, allow_pickle=False) as fields:
                return Cell(**{name: fields[name] for name in fields.files})

        return processes.by_first(read)

    def __setitem__(self, cell: CellId, value: Cell, /) -> None:
        buffer = io.BytesIO()
        fields = {name: field for name, field in vars(value).items() if field is not None}
        np.savez(buffer, **fields)
        processes.by_first(lambda: write_atomic(self._path(cell), buffer.getvalue()))
        self._report(f"{cell[0]} at {cell[1]:.4g}")

    def _path(self, cell: CellId) -> Path:
        return self.folder / f"{cell[0]}@{cell[1]!r}.npz"


def cells_of(folder: str | Path, plan: Plan) -> CellFolder:
    """The cells of a run that has been made there."""
    return CellFolder(folder, read_json(Path(folder) / PLAN)["system"], plan)


def read_curve(folder: str | Path) -> Curve:
    """The curve of a finished run, from its folder alone.

    Raises:
        UserError: there is no plan, or a cell is missing.
    """
    facts = read_json(Path(folder) / PLAN)
    plan = Plan.from_dict(facts["plan"])
    try:
        return worst_case(plan, cells_of(folder, plan))
    except KeyError as error:
        raise UserError(f"{folder}: not finished ({error.args[0]}); run it again") from error


def measure(
    suite: Suite,
    params: PyTree,
    x: Float[np.ndarray, "B ..."],
    rows: PyTree,
    epsilons: Sequence[float],
    key: PRNGKeyArray,
    folder: str | Path,
    system: str,
    **options: Any,
) -> Curve:
    """`Suite.run`, resumable, with progress on stderr.

    Args:
        suite: the attacks and the judge.
        params, x, rows, epsilons, key: as `Suite.run` takes them.
        folder: of the cells.
        system: a fingerprint of ``params``.
        **options: further ones of `Suite.run`.

    Raises:
        UserError: whatever `Suite.run` or `CellFolder` refuses.
    """
    total = 2 + len(suite.attacks) * len(set(epsilons))
    done = len(list(Path(folder).glob("*.npz")))
    with Progress("attacks", total, "cell", start=done) as progress:

        def store(plan: Plan) -> CellFolder:
            return CellFolder(folder, system, plan, lambda name: progress.update(1, name))

        return suite.run(params, x, rows, epsilons, key, store=store, **options)


def converge(
    suite: Suite,
    params: PyTree,
    x: Float[np.ndarray, "B ..."],
    rows: PyTree,
    epsilon: float,
    key: PRNGKeyArray,
    folder: str | Path,
    system: str,
    *,
    steps: Sequence[float] = (0.5, 1.0, 2.0),
    restarts: Sequence[float] = (1.0, 2.0),
    donors: Int[np.ndarray, " B"] | None = None,
) -> dict[str, dict[float, Curve]]:
    """The suite at one radius with multiples of every attack's steps, then of its restarts.

    Args:
        suite, params, x, rows, key, folder, system, donors: as `measure` takes them; a part of the
            rows will often do.
        epsilon: the radius.
        steps, restarts: the multiples; 1 is run once for both.

    Returns:
        ``steps`` and ``restarts``, each by multiple.
    """
    curves: dict[str, dict[float, Curve]] = {"steps": {}, "restarts": {}}
    budgets: Mapping[str, Sequence[float]] = {"steps": steps, "restarts": restarts}
    for what, multiples in budgets.items():
        for multiple in sorted(multiples):
            name = "as_it_is" if multiple == 1 else f"{what}_{multiple:g}"
            curves[what][multiple] = measure(
                suite,
                params,
                x,
                rows,
                [epsilon],
                key,
                Path(folder) / name,
                system,
                donors=donors,
                **{what: float(multiple)},
            )
    return curves


def _first_difference(a: Any, b: Any, path: str = "") -> str:
    """Where two JSON values first differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            if a.get(name) != b.get(name):
                return _first_difference(a.get(name), b.get(name), f"{path}.{name}".lstrip("."))
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        i = next(i for i, (one, other) in enumerate(zip(a, b, strict=True)) if one != other)
        return _first_difference(a[i], b[i], f"{path}[{i}]")
    return f"{path} was {a!r} and is {b!r}"
