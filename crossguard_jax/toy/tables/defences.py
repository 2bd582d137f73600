"""The defences of ``crossguard toy cmai``: each trained on one base, attacked on one set of rows.

Everything is kept in the table's folder and found there again, down to the cell of an attack.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict

from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.kinds import answers_of
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import load_config
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.evals.robustness.probe import Probe, probe
from crossguard_jax.evals.robustness.systems import attack_records, operating_for
from crossguard_jax.guard.augment import TALK
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.mixture import open_sources
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.world.sources import records

TASKS = {"guard": "", "vqa": "vqa_"}
"""A task's name, and what its variants of ``configs/cmai.py`` begin with."""

BASE = "configs/guard.py:tiny"
"""The guards that are immunized."""

TESTS = {
    "guard": {"implicit": 2, "explicit_picture": 1, "benign_vqa": 1},
    "vqa": {"vqa_closed": 1},
}
"""The world's sources of a task's test rows, and their shares."""


@dataclass(frozen=True)
class DefenceRow:
    """One defence.

    Attributes:
        title: to show.
        variant: of ``configs/cmai.py``; "" is no defence at all.
        tasks: that it is made for.
        every_seed: tasks where it is trained with each seed, not with the first one only.
        closely: the first seed's is attacked at all radii of `CLOSELY`, and with twice the steps
            and restarts.
        probed: its check is looked at: what it tells, and what ARM costs.
    """

    title: str
    variant: str
    tasks: tuple[str, ...] = tuple(TASKS)
    every_seed: tuple[str, ...] = ()
    closely: bool = False
    probed: bool = False


ROWS: Mapping[str, DefenceRow] = {
    "iv": DefenceRow(
        "(iv) CMCV + MBAT + ARM", "tiny", every_seed=tuple(TASKS), closely=True, probed=True
    ),
    # Of VQA's model, which ships, there is one.
    "none": DefenceRow("No defence", "", every_seed=("guard",), closely=True),
    "i": DefenceRow("(i) CMCV alone", "cmcv"),
    "ii": DefenceRow("(ii) MBAT alone", "mbat"),
    "iii": DefenceRow("(iii) CMCV + MBAT", "cmcv_mbat", every_seed=tuple(TASKS)),
    "iv_seed": DefenceRow("(iv), the seed's adversary alone", "seed"),
    "iv_evasive": DefenceRow("(iv), the evasive adversary alone", "evasive"),
    "iv_clean": DefenceRow(
        "(iv), the check learns from clean pairs alone", "clean_check", ("guard",), probed=True
    ),
    "pgd_at": DefenceRow("PGD-AT, picture tower", "pgd_at", every_seed=tuple(TASKS)),
    "fare": DefenceRow("FARE, picture tower", "fare", every_seed=("guard",)),
    "e2at": DefenceRow("E2AT-style joint training", "e2at"),
}
"""Three seeds are for the whole, what it is compared with, and the best other defences. What the
check learns from is told apart on the guard."""

COMPARED = 8 / 255
"""The radius of the L-inf ball where all are compared, in units of pixels in [0, 1]."""

CLOSELY = {"linf": (0.0, COMPARED, 32 / 255), "l2": (0.0, 1.0, 8.0)}
"""Radii of each ball where a model is attacked closely. The last is beyond hope."""

TESTED = 1
"""Seed of the rows that the table is about. Settings were chosen with a look at those of seed 0."""

CUT_ROWS = 1_024
"""Clean rows of validation, whose safe half fixes a guard's cuts."""

CLEAN_ROWS = 1_024
"""Rows that are not attacked: what a defence costs there is a few of them."""


@dataclass(frozen=True)
class SeedResult:
    """What one trained model came to.

    Attributes:
        linf, l2: under attack in each ball; no L2, and no radius above `COMPARED`, where a model is
            not attacked closely.
        clean: on rows that nobody attacks.
    """

    linf: Robustness
    l2: Robustness | None
    clean: Robustness


def train_and_attack(
    folder: Path, task: str, name: str, seed: int, first: bool, rows: int
) -> SeedResult:
    """One model of the table: all of it, or what an earlier run left undone.

    Args:
        folder, task, name, seed: see `model_of`.
        first: it is the first seed.
        rows: to attack.
    """
    model, tests = model_of(folder, task, name, seed), held_out(task, rows, TESTED)
    closely = first and ROWS[name].closely
    linf = CLOSELY["linf"] if closely else (0.0, COMPARED)
    if first and ROWS[name].probed:
        probe_model(model, tests)
    return SeedResult(
        attack_model(model, tests, seed, "linf", linf, closely, at_cuts=task == "guard"),
        attack_model(model, tests, seed, "l2", CLOSELY["l2"]) if closely else None,
        clean_model(model, held_out(task, CLEAN_ROWS, TESTED), seed),
    )


@dataclass(frozen=True)
class Model:
    """One trained model of the table.

    Attributes:
        system: what is attacked.
        undefended: the same without a defence, for transfer.
        config: its configuration.
        folder: its own.
    """

    system: Immunized
    undefended: Immunized
    config: Any
    folder: Path


def model_of(folder: Path, task: str, name: str, seed: int) -> Model:
    """Trains one model, or loads what an earlier run trained.

    Args:
        folder: the table's.
        task: a key of `TASKS`.
        name: a key of `ROWS`.
        seed: of the base guard, the adapter, the check and the order of the data.
    """
    variant = TASKS[task] + (ROWS[name].variant or "tiny")
    config = load_config(f"configs/cmai.py:{variant}", [f"--config.train.seed={seed}"])
    if task == "guard":
        config.model.path = str(base_guard(folder, seed))
    data, own = folder / "data" / task, folder / task / f"{name}-{seed}"
    undefended = _undefended(config, data)
    system = undefended
    if ROWS[name].variant:
        system = cast(Immunized, immunize(config, own, {SOURCE: read}, data))
    return Model(system, undefended, config, own)


def attack_model(
    model: Model,
    tests: Sequence[Record],
    seed: int,
    norm: str,
    radii: Sequence[float],
    convergence: bool = False,
    at_cuts: bool = False,
) -> Robustness:
    """The suite against one model, or what an earlier run found.

    Args:
        model: of `model_of`.
        tests: rows to attack.
        seed: the model's.
        norm, radii: of the ball.
        convergence: see `attack_records`.
        at_cuts: of a guard, at its own cuts as well.
    """
    config = model.config.attack.copy_and_resolve_references()
    config.update({"norm": norm, "epsilons": tuple(radii)})
    place = model.folder / f"attack-{norm}-{len(tests)}"
    return attack_records(
        *(config, model.system, tests, place, model.undefended),
        seed=seed,
        convergence=convergence,
        operating=operating_for(config, model.system, cut_rows()) if at_cuts else None,
    )


def cut_rows() -> list[Record]:
    """Clean rows of validation that guards' cuts are chosen by, in the shares of those attacked."""
    shares = TESTS["guard"]
    whole = sum(shares.values())
    return [
        record
        for source, share in shares.items()
        for record in records(source, "val", CUT_ROWS * share // whole)
    ]


def clean_model(model: Model, tests: Sequence[Record], seed: int) -> Robustness:
    """One model on rows that nobody attacks, or what an earlier run found.

    Args:
        model: of `model_of`.
        tests: the rows.
        seed: the model's.
    """
    config = model.config.attack.copy_and_resolve_references()
    name, attack = next(iter(config.attacks.items()))  # at radius 0 there is nothing to search
    with config.unlocked():
        config.update({"epsilons": (0.0,)})
        config.attacks = {name: attack}
    place = model.folder / f"clean-{len(tests)}"
    return attack_records(config, model.system, tests, place, seed=seed, convergence=False)


def probe_model(model: Model, tests: Sequence[Record]) -> Probe:
    """What the check of one model sees of attacks, or what an earlier run found."""
    folder = model.folder / f"probe-{len(tests)}"
    return probe(model.system, tests, model.config.attack, folder)


def held_out(task: str, n: int, seed: int = 0) -> list[Record]:
    """``n`` held-out rows of a task, its sources in their shares; another seed draws others."""
    shares = TESTS[task]
    whole = sum(shares.values())
    return [
        record
        for source, share in shares.items()
        for record in records(source, "test", n * share // whole, seed)
    ]


def write_sources(folder: Path, task: str) -> None:
    """What the runs of a task read: written before several of them start at once."""
    variants = {task: f"configs/cmai.py:{TASKS[task]}tiny"}
    if task == "guard":
        variants["base"] = BASE
    for name, variant in variants.items():
        write_rows(load_config(variant).data, folder / "data" / name)


def write_rows(rows: Any, data: Path) -> None:
    """All that a configuration's ``data`` reads, as datasets in a folder that its runs share."""
    readers = {SOURCE: read}
    open_sources(rows.sources, data, readers)
    open_sources(rows.validation, data / "validation", readers)
    if rows.augment.long:
        open_sources(ConfigDict({TALK: rows.augment.talk}), data, readers)


def base_guard(folder: Path, seed: int) -> Path:
    """A guard to immunize, one a seed, as a plain folder."""
    base = folder / "bases" / f"guard-{seed}"
    done = base / "model" / "guard_config.json"
    if not done.exists():
        config = load_config(BASE, [f"--config.train.seed={seed}"])
        trained = train_guard(config, base, {SOURCE: read}, folder / "data" / "base")
        trained.guard.save_pretrained(base / "model")
    return base / "model"


def _undefended(config: Any, data: Path) -> Immunized:
    labels: tuple[str, ...] = ()
    if config.task.most_common:
        labels = answers_of(config, open_sources(config.data.sources, data, {SOURCE: read}))
    return Immunized.of(Guard.from_pretrained(config.model.path, prompt=config.data.prompt), labels)
