"""This package's own tables: the 7B models on three slices, and one step from 8 to 256 chips.

Every cell is compiled, and kept as soon as it is there: a table that is stopped goes on.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from crossguard_jax.core.config import load_config
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.io.progress import Progress
from crossguard_jax.plan.chips import GIB, Machine, devices_of, find_target
from crossguard_jax.plan.measure import compilers
from crossguard_jax.plan.planning import Forecast, make_plan
from crossguard_jax.report import drawing

LLAVA = "llava-hf/llava-1.5-7b-hf"
SLICES = ("v5litepod-16", "v5p-16", "v6e-8")
CHIPS = (8, 16, 32, 64, 128, 256)
"""v5litepod slices of the weak scaling."""


@dataclass(frozen=True)
class Column:
    """A column of the first table.

    Attributes:
        kind: a name in `programs.KINDS`.
        spec: the configuration.
        overrides: of its fields.
        rows, length: of a batch; 0 is the configuration's.
    """

    kind: str
    spec: str
    overrides: tuple[str, ...] = ()
    rows: int = 0
    length: int = 0

    def plan(self, target: Machine, devices: Sequence[Any], sizes: dict[str, int]) -> Forecast:
        """Its figures on chips."""
        config = load_config(self.spec, [f"--config.{each}" for each in self.overrides])
        return make_plan(config, self.kind, target, devices, sizes, self.rows, self.length)


_GUARD, _CMAI = "configs/guard.py:llava_7b", "configs/cmai.py:llava_7b"
WORKS = (
    Column("sft", _GUARD, ("optim.accumulate=1",), 16, 704),
    Column("score", _GUARD, (), 16, 704),
    Column("mbat", _CMAI, (f"model.path={LLAVA}", "optim.accumulate=1"), 16, 704),
    Column("ppo", "configs/impforge.py:llama_7b"),
)


def make_tables(out: str | Path) -> None:
    """Writes ``plan.json``, ``plan.md``, ``scaling.json``, ``scaling.md`` and ``scaling.png``."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cells = [(work, name, _all_in_parts(name)) for work in WORKS for name in SLICES]
    _fill("compiling the table", cells, out / "plan", table)
    scaled = [(_scaled(n), f"v5litepod-{n}", sizes) for n in CHIPS for sizes in meshes(n)]
    rows = _fill("compiling the scaling", scaled, out / "scaling", scaling_table)
    (out / "scaling.png").write_bytes(drawing.png(scaling_figure(rows)))


Cell = tuple[Column, str, dict[str, int]]
"""Column on the slice of a name, and the mesh's sizes."""


def _all_in_parts(name: str) -> dict[str, int]:
    return {"data": 1, "fsdp": find_target(name).devices, "tensor": 1}


def _scaled(chips: int) -> Column:
    return Column("sft", _GUARD, ("optim.accumulate=1",), ROWS_A_CHIP * chips, 704)


def _fill(
    what: str,
    cells: Sequence[Cell],
    place: Path,
    shown: Callable[[Sequence[Mapping[str, Any]]], str],
) -> list[dict[str, Any]]:
    """The cells' figures, in files at ``place`` after each; what is there already stays."""
    file = place.with_suffix(".json")
    stored = {_key(row): row for row in json.loads(file.read_text())} if file.is_file() else {}
    rows: list[dict[str, Any]] = []
    with Progress(what, len(cells), unit="cell") as progress:
        for work, name, sizes in cells:
            key = work.kind, name, tuple(sizes.values()), compilers()
            row = stored.get(key)
            if row is None:
                target = find_target(name)
                row = work.plan(target, devices_of(target), sizes).as_dict()
                row["compilers"] = compilers()
            rows.append(row)
            later = [row for row in stored.values() if _key(row) not in map(_key, rows)]
            write_atomic(file, json.dumps(rows + later, indent=1) + "\n")
            write_atomic(place.with_suffix(".md"), shown(rows))
            progress.update(note=f"{work.kind} on {name}")
    return rows


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["kind"], row["topology"], tuple(row["mesh"].values()), row["compilers"]


ROWS_A_CHIP = 2


def meshes(chips: int) -> Iterator[dict[str, int]]:
    """Two ways to use more chips: the base in as many parts, or in 16 and copies of these."""
    yield {"data": 1, "fsdp": chips, "tensor": 1}
    if chips > 16:
        yield {"data": chips // 16, "fsdp": 16, "tensor": 1}


_HEADINGS = (
    *("work", "slice", "a batch", "memory a chip (GiB)", "of it temporaries", "fits"),
    *("sent a chip (GB)", "time (s)", "bound by", "MFU"),
)
_NAMES = {
    "sft": "guard step",
    "score": "scoring",
    "mbat": "MBAT step",
    "ppo": "PPO iteration",
    "attack": "PGD",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first table as Markdown."""
    return _markdown(_HEADINGS, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    programs, seconds = row["programs"], row["seconds"]
    largest = max(programs, key=lambda p: p["temporaries"])
    bounds = {name: seconds[name] for name in ("compute", "memory", "wire")}
    names = {"compute": "products", "memory": "memory", "wire": "links"}
    low, high = row["mfu"]
    return [
        _NAMES[row["kind"]],
        f"{row['topology']}, fsdp={row['mesh']['fsdp']}",
        f"{row['rows']} x {row['length']}",
        f"{row['memory_bytes'] / GIB:.2f} of {row['memory_limit_bytes'] / GIB:.2f}",
        f"{largest['temporaries'] / GIB:.2f}",
        "yes" if row["fits"] else "no",
        f"{sum(p['wire'] for p in programs) / 1e9:.1f}",
        f"{seconds['at_once']:.3g} to {seconds['one_by_one']:.3g}",
        names[max(bounds, key=lambda name: bounds[name])],
        f"{low:.0%} to {high:.0%}",
    ]


_SCALING_HEADINGS = (
    *("chips", "mesh", "rows", "memory a chip (GiB)", "sent a chip (GB)"),
    *("products (s)", "memory (s)", "links (s)"),
    *("efficiency, all at once", "efficiency, one by one"),
)


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The second one."""
    return _markdown(_SCALING_HEADINGS, [_scaling_cells(row, rows[0]) for row in rows])


def efficiency(row: Mapping[str, Any], first: Mapping[str, Any], seconds: str) -> float:
    """Rows a second and chip, as a share of the first slice's."""
    each = [r["rows"] / r["devices"] / r["seconds"][seconds] for r in (row, first)]
    return each[0] / each[1]


def _scaling_cells(row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    (program,) = row["programs"]
    mesh = ", ".join(f"{axis}={n}" for axis, n in row["mesh"].items() if n > 1)
    return [
        str(row["devices"]),
        mesh,
        str(row["rows"]),
        f"{row['memory_bytes'] / GIB:.2f}",
        f"{program['wire'] / 1e9:.2f}",
        *(f"{row['seconds'][part]:.3f}" for part in ("compute", "memory", "wire")),
        f"{efficiency(row, first, 'at_once'):.0%}",
        f"{efficiency(row, first, 'one_by_one'):.0%}",
    ]


@drawing.styled
def scaling_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Bytes sent a chip, and predicted efficiency, by chips and mesh."""
    figure, (sent, share) = drawing.panels(1, 2, (6.9, 2.9))
    ways = {
        "base in as many parts as chips": [r for r in rows if r["mesh"]["data"] == 1],
        "base in 16 parts, copies of these": [
            r for r in rows if r["mesh"]["data"] > 1 or r["devices"] == 16
        ],
    }
    for i, (name, some) in enumerate(ways.items()):
        chips = [r["devices"] for r in some]
        style: dict[str, Any] = {"color": drawing.COLOURS[i], "linestyle": drawing.LINES[i]}
        wires = [sum(p["wire"] for p in r["programs"]) / 1e9 for r in some]
        sent.plot(chips, wires, marker="o", markersize=3, label=name, **style)
        low = [100 * efficiency(r, rows[0], "one_by_one") for r in some]
        high = [100 * efficiency(r, rows[0], "at_once") for r in some]
        share.plot(chips, low, marker="o", markersize=3, **style)
        share.fill_between(chips, low, high, color=drawing.COLOURS[i], alpha=0.15)
    for axes in (sent, share):
        axes.set_xscale("log", base=2)
        axes.set_xticks(CHIPS, [str(n) for n in CHIPS])
        axes.set_xlabel("chips (v5e)")
        axes.grid(True)
        axes.set_ylim(bottom=0)
    sent.set_ylabel("sent a chip and step (GB)")
    share.set_ylabel("efficiency against 8 chips (%)")
    sent.legend(loc="lower right")
    return figure


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruled = ["---", "---", *["---:"] * (len(headings) - 2)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, ruled, *rows])
