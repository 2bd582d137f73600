"""``crossguard toy rivals``: the paper's main table in the small world, rivals and controls in it.

A seed has guards, trained alike and for as long, a guard that is immunized, and a base that was
taught to refuse by what words say, as an aligned LLaVA does. The others read these or the models
that ship: detectors are fitted to rows of the training split, controls lose a modality.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from crossguard_jax.cmai.folders import FILE, save_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import write_jsonl
from crossguard_jax.evals.benchmarks import evaluate
from crossguard_jax.evals.calibrate import FPR, held_out
from crossguard_jax.evals.scoring import score_benchmarks
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.runtime.shards import Beat, Work
from crossguard_jax.sweeps.cells import Figures, Sweep, SweepCell, work_of
from crossguard_jax.sweeps.held import held
from crossguard_jax.systems.controls import Constant, HalfBlind
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.rivals import hidden_detect, jaildam, rcs
from crossguard_jax.systems.system import System
from crossguard_jax.toy.study import SOURCE, benchmarks, read
from crossguard_jax.toy.tables import cells
from crossguard_jax.toy.tables.defences import write_rows
from crossguard_jax.toy.world.sources import records

FACTORY = "crossguard_jax.toy.tables.rivals:rival_work"


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        title: to show.
        variant: of the configuration by which it is trained; "" where nothing is.
        of: whose model it reads; "" where it has its own, or one that ships.
    """

    title: str
    variant: str = ""
    of: str = ""


ROWS: Mapping[str, Contender] = {
    "base": Contender("Base, taught to refuse by words", "refuses_explicit"),
    "hidden_detect": Contender("HiddenDetect, of the base", of="base"),
    "rcs": Contender("RCS, of the base", of="base"),
    "jaildam": Contender("JailDAM"),
    "explicit_only": Contender("Explicit data only", "explicit_only"),
    "no_benign": Contender("No benign data", "no_benign"),
    "full": Contender("CrossGuard", "tiny"),
    "text_only": Contender("CrossGuard, text alone", of="full"),
    "picture_only": Contender("CrossGuard, picture alone", of="full"),
    "cmai": Contender("CrossGuard + CMAI", "tiny", of="full"),
    "always_unsafe": Contender("Always unsafe"),
}

SETS: Mapping[str, str] = {
    "wrapped": "JailBreakV",
    "keyword_picture": "MM-SafetyBench",
    "implicit_heldout": "SIUO",
    "typographic": "FigStep",
    "explicit_picture": "VLGuard, pictures",
    "explicit_text": "VLGuard, texts",
}
"""The world's source whose rows have a published benchmark's shape, and that benchmark."""

BENIGN = "benign_vqa"

MISSED: Mapping[str, str] = {
    **{f"{name}.asr": title for name, title in SETS.items()},
    "mean.asr": "mean",
}
FLAGGED: Mapping[str, str] = {
    **{f"{name}.fpr": title for name, title in SETS.items()},
    f"{BENIGN}.fpr": "benign questions",
}
RANKED: Mapping[str, str] = {
    "implicit_heldout.auroc": "SIUO's, AUROC",
    "all.auroc": "all, AUROC",
    "all.recall_at_1_fpr": "all, recall at 1% FPR",
    "all.recall_at_5_fpr": "all, recall at 5% FPR",
}
TABLES: Mapping[str, tuple[Mapping[str, str], str]] = {
    "Attack success": (MISSED, "Unsafe rows that get through, in percent"),
    "False alarms": (FLAGGED, "Safe rows that are stopped, in percent"),
    "Ranking": (RANKED, "In percent; ranks, whatever the threshold"),
}

BESIDE = {"implicit_wide", "two_pictures"}
"""Sources whose share plain implicit rows have here."""

DETECTORS = ("hidden_detect", "rcs", "jaildam")

REFUSALS = ("unsafe",)
"""What the base was taught to refuse with."""

CONCEPTS = 64
"""Unsafe texts of training that JailDAM remembers."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and leaves ``rivals.json``, ``rivals.md``, and the first
    seed's test sets in ``tests``.

    Raises:
        UserError: a row that there is not.
    """
    folder, names = Path(args.out), args.only or list(ROWS)
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise UserError(f"--only {', '.join(unknown)}: rows are {', '.join(ROWS)}")
    work = {"rows": args.rows, "steps": args.steps}
    # What others read is made first; a worker that needs what is not there makes it, too.
    todo = sorted(names, key=lambda name: bool(ROWS[name].of))
    if args.jobs > 1:
        for variant in {row.variant for row in ROWS.values() if row.variant and not row.of}:
            write_rows(_guard_config(variant, 0, 1.0).data, folder / "data" / _shelf(variant))
    spec = {"folder": str(folder), **work}
    sweep = Sweep(
        folder, [SweepCell(name, s, work) for s in args.seeds for name in todo], FACTORY, spec
    )
    by_row = cells.of_rows(sweep.run(*cells.workers(args.jobs)))
    results = {name: [_unpooled(cell) for cell in by_row[name]] for name in names}
    for name, rows in benchmarks(args.rows, args.seeds[0], (*SETS, BENIGN)).items():
        write_jsonl(rows, folder / "tests", name)
    command = f"crossguard toy rivals --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    command += f" --steps {args.steps:g}" if args.steps != 1 else ""
    titles = {name: title_of(name, by_row[name]) for name in names}
    pages = [
        cells.shares(head, titles, columns, results, args.seeds, caption)
        for head, (columns, caption) in TABLES.items()
    ]
    columns = {name: title for shown, _ in TABLES.values() for name, title in shown.items()}
    figures = cells.pooled_figures(results, columns)
    cells.leave(folder, "rivals", command, args.seeds, figures, *pages)


def _unpooled(cell: cells.Cell) -> cells.Cell:
    """Areas and means are no shares of rows: over seeds they have no interval of Wilson's."""
    no_shares = [k for k in cell if k.endswith("auroc") or k == "mean.asr"]
    return cell | {k: Estimate.exact(cell[k].value, cell[k].n) for k in no_shares}


def title_of(name: str, of_seeds: Sequence[cells.Cell]) -> str:
    """A row's title; it says of a detector that ranks no better than chance with any seed that it
    is not applicable."""
    tells = any(cell["all.auroc"].low > 0.5 for cell in of_seeds)
    return ROWS[name].title + (", not applicable" if name in DETECTORS and not tells else "")


def rival_work(spec: Mapping[str, Any], folder: str) -> Work:
    """Trains or fits a system, and scores it; see `ShardJob`. A cell's row is a key of `ROWS`; its
    seed is that of all training and of the test sets.

    Args:
        spec: ``folder``, the table's; ``rows`` of each set; ``steps``, a factor on each training's.
        folder: of the figures.
    """
    place, steps = Path(spec["folder"]), float(spec["steps"])

    def measure(cell: SweepCell, own: Path, beat: Beat) -> Figures:
        system = system_of(place, cell.row, cell.seed, steps, beat)
        tests = benchmarks(spec["rows"], cell.seed, (*SETS, BENIGN))
        return evaluate(score_benchmarks(system, tests, cell.name), 0.5)

    return work_of(measure, folder)


def system_of(place: Path, row: str, seed: int, steps: float, beat: Beat) -> System:
    """A row's system, trained or fitted unless an earlier run did.

    Args:
        place: the table's folder.
        row: a key of `ROWS`.
        seed: of the training.
        steps: factor on its length.
        beat: called while another process trains what is needed.
    """
    rival = ROWS[row]
    if row == "always_unsafe":
        return Constant(unsafe=True)
    if row == "jaildam":
        return _jaildam(seed)
    own = place / "models" / f"{row}-{seed}"
    if not rival.of:
        with held(own, beat):
            return _trained(place, own, rival.variant, seed, steps)
    before = system_of(place, rival.of, seed, steps, beat)
    assert isinstance(before, Guard)
    if row == "cmai":
        with held(own, beat):
            return _immunized(place, own, before, seed, steps)
    if row == "hidden_detect":
        images, texts, _, unsafe, others = _fitting_rows(seed)
        rows = images, texts
        return hidden_detect.fit(before, rows, unsafe, others, words=REFUSALS, fpr=FPR)
    if row == "rcs":
        images, texts, sets, unsafe, others = _fitting_rows(seed)
        return rcs.fit(before, (images, texts), sets, unsafe, others, fpr=FPR, seed=seed)
    return HalfBlind(before, row.removesuffix("_only"), identity(before))


def _guard_config(variant: str, seed: int, steps: float) -> Any:
    config = load_config(f"configs/guard.py:{variant}", [f"--config.train.seed={seed}"])
    _shorten(config, steps)
    # The last step is kept of all alike: what is held out of one variant, another learns from.
    config.train.update({"eval_every": 0, "keep_best": ""})
    # No set here has rows of these shapes, which cost a short training most.
    sources = config.data.sources
    with config.unlocked():
        for name in BESIDE & set(sources):
            sources.implicit.weight += sources[name].weight
            del sources[name]
    return config


def _shorten(config: Any, steps: float) -> None:
    config.train.steps = max(int(steps * config.train.steps), config.optim.warmup_steps + 1)


def _shelf(variant: str) -> str:
    """Variants that read the same rows share them; one that filters labels does not."""
    return variant if variant == "no_benign" else "all"


def _trained(place: Path, own: Path, variant: str, seed: int, steps: float) -> Guard:
    model = own / "model"
    if not (model / "guard_config.json").exists():
        config = _guard_config(variant, seed, steps)
        run = train_guard(config, own / "run", {SOURCE: read}, place / "data" / _shelf(variant))
        run.guard.save_pretrained(model)
    return Guard.from_pretrained(model)


def _immunized(place: Path, own: Path, guard: Guard, seed: int, steps: float) -> System:
    model = own / "model"
    if not (model / FILE).exists():
        config = load_config("configs/cmai.py:tiny", [f"--config.train.seed={seed}"])
        _shorten(config, steps)
        config.model.path = str(guard.folder)
        done = immunize(config, own / "run", {SOURCE: read}, place / "data" / "cmai")
        save_immunized(cast(Immunized, done), model)
    return load(model)


def _fitting_rows(seed: int) -> tuple[list[Any], list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, texts, which set, whether unsafe, and positions held out for the cut: rows that a
    rival's users would have, explicit ones and benign ones, of validation."""
    names = ("explicit_text", "explicit_picture", "typographic", BENIGN)
    rows = [(i, r) for i, name in enumerate(names) for r in records(name, "val", 256, seed)]
    return (
        [record.images for _, record in rows],
        [record.text for _, record in rows],
        np.array([i for i, _ in rows]),
        np.array([record.label == "unsafe" for _, record in rows]),
        held_out(len(rows), seed),
    )


def _jaildam(seed: int) -> System:
    images, texts, _, unsafe, others = _fitting_rows(seed)
    safe = np.flatnonzero(~unsafe)
    drawn = records("explicit_text", "train", 8 * CONCEPTS, seed)
    concepts = list(dict.fromkeys(r.text for r in drawn if r.label == "unsafe"))[:CONCEPTS]
    benign = [images[i] for i in safe], [texts[i] for i in safe]
    places = np.flatnonzero(np.isin(safe, others))
    clip = load_clip("toy://clip", "float32")
    return jaildam.fit(clip, Settings(), concepts, benign, places, fpr=FPR, seed=seed)
