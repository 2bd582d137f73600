"""``crossguard quickstart``: CrossGuard, ImpForge and CMAI in the small world, in minutes.

Matches queries with pictures and forges the implicit rows, trains the guard on the full mixture,
immunizes it, scores the held-out sets with both, with a guard of explicit data alone and with the
base they came from, attacks the guard before and after, and writes a report. What it leaves is a
contract: ``report.html``, ``report.md`` and ``report.json``; ``models/NAME/``, plain Hub folders;
``forge/forged/train.jsonl`` with its data card; ``data/SPLIT.jsonl`` with the pictures beside it.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from crossguard_jax.cmai.folders import save_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import load_config
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, make_mesh
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record, write_jsonl
from crossguard_jax.evals.forge_report import Rewrite, forge_section
from crossguard_jax.evals.guard_report import Judged, guard_sections
from crossguard_jax.evals.robustness.report import robustness_section
from crossguard_jax.evals.robustness.systems import attack_records
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.mixture import open_sources
from crossguard_jax.guard.recipe import load_base, train_guard
from crossguard_jax.hf.export import ModelCard
from crossguard_jax.io import jsonl
from crossguard_jax.nn import lora
from crossguard_jax.report.blocks import Section
from crossguard_jax.report.report import Report
from crossguard_jax.toy.forging import forge_world, meanings, truth_figures
from crossguard_jax.toy.study import BENCHMARKS, SOURCE, benchmarks, read, score_all
from crossguard_jax.toy.tables.defences import held_out
from crossguard_jax.train.loop import read_metrics

SYSTEMS = {
    "guard.full": ("guard", "forged", "Guard"),
    "guard.immunized": ("guard_immunized", "", "Guard, immunized"),
    "guard.explicit_only": ("guard_explicit_only", "explicit_only", "Explicit data only"),
    "base": ("base", "", "Base model"),
}
"""Dotted name -> (folder under models/, variant of configs/guard.py, name to show)."""

_PLAIN = "explicit and typographic requests, benign questions"
_FORGED = f"implicit requests that ImpForge forged, {_PLAIN}"
_WORLD = (
    "Rows of the small world (household pictures drawn by a program, questions from templates): "
    "{}. Made anew by anyone."
)
DATA = {
    "guard.full": _WORLD.format(_FORGED),
    "guard.immunized": _WORLD.format(f"{_FORGED}; the same under attack"),
    "guard.explicit_only": _WORLD.format(_PLAIN),
    "base": "Captions, questions and lettering of the small world; no row says what is safe.",
}
"""Dotted name -> what the model learned from, for its card."""

SHORTER, QUERIES = ("--config.ppo.iterations=10", "--config.forge.samples=1"), 1_000
"""A smaller forge than the table's: the rewriter has learned what it will after ten iterations, and
all but a few of its texts pass."""

SOURCES = tuple(
    f"--config.data.sources.{name}.limit={limit}"
    for name, limit in {
        "explicit_text": 3_072,
        "explicit_picture": 1_536,
        "picture_only": 768,
        "talk": 768,
        "typographic": 1_536,
        "benign_vqa": 3_072,
    }.items()
)
"""About as many rows as training reads; the same for the guard and its immunization, so that they
are drawn and written once."""

ROOM = "--config.data.max_length=44"
"""Few texts of the small world need more, and every column costs."""

SMALLER = (
    "--config.train.steps=600",
    "--config.train.keep_best=",
    ROOM,
    *SOURCES,
)
"""A guard of fewer rows than the table's: 24,000, not 60,000. The last step is kept of all guards
alike: forged rows cannot say which is best, and a control is not judged by what it never saw."""

SHIPPED = Path(__file__).parent / "adapters"
"""Adapters that are not trained unless ``--from-scratch`` says so: controls, which say nothing of
the forge."""

IMMUNIZE = (
    "--config.cmcv.train.steps=100",
    "--config.attack.epsilons=(0.0, 0.031372549, 0.125490196)",
    ROOM,
    *SOURCES,
)
"""A check that learns for less long than the table's; attacks at 0, 8 and 32 of 255 grey levels;
and the guard's own sources."""

ATTACKED = 64
"""Rows that are attacked."""


def main(args: argparse.Namespace) -> None:
    """The verb's work."""
    print(f"report: {run(Path(args.out), args.rows, from_scratch=args.from_scratch)}")


def run(
    folder: Path,
    rows: int,
    overrides: Sequence[str] = (),
    forge_overrides: Sequence[str] = (),
    queries: int = QUERIES,
    immunize_overrides: Sequence[str] = (),
    attacked: int = ATTACKED,
    from_scratch: bool = False,
) -> Path:
    """Runs or resumes the quickstart in ``folder``; returns the report's path.

    Args:
        folder: takes everything; a run that was killed goes on in it.
        rows: rows of each implicit test set.
        overrides: ``--config.FIELD=VALUE``, for both trained guards.
        forge_overrides: the same for the forge.
        queries: queries that mean harm, to forge from.
        immunize_overrides: the same for CMAI and the attacks on it.
        attacked: rows that are attacked.
        from_scratch: train also what is shipped.
    """
    began = time.monotonic()
    seconds: dict[str, float] = {}
    forged = _forge(folder / "forge", queries, forge_overrides)
    seconds["forge"] = round(time.monotonic() - began, 1)
    tests = benchmarks(rows)
    guards, immunized, losses = _make_systems(
        folder, overrides, immunize_overrides, from_scratch, seconds
    )
    start = time.monotonic()
    attacks = _attack(folder, guards["guard.full"], immunized, attacked, immunize_overrides)
    seconds["attacks"] = round(time.monotonic() - start, 1)
    scores = score_all(guards, tests)
    shipped = set(SYSTEMS) - set(losses) - {"guard.immunized"}
    titles = {k: f"{v[2]} (shipped)" if k in shipped else v[2] for k, v in SYSTEMS.items()}
    judged = Judged(scores, titles=titles | dict(BENCHMARKS))
    _export(folder, guards, immunized, judged)
    _write_data(folder, tests, overrides)
    texts = {(name, r.id): (r.image, r.text) for name, rows in tests.items() for r in rows}
    sections = guard_sections(judged, lambda b, i: texts[b, i], losses)
    sections[-1:-1] = [forged, attacks]
    seconds["everything"] = round(time.monotonic() - began, 1)
    meta = {
        "command": f"crossguard quickstart --out {folder} --rows {rows}",
        "seconds": seconds,
        "made": {name: "shipped" if name in shipped else "trained here" for name in SYSTEMS},
        "threshold": judged.threshold,
    }
    title = "CrossGuard in the small world"
    return Report(title, sections, meta | _machine()).write(folder)


def _make_systems(
    folder: Path,
    overrides: Sequence[str],
    immunize_overrides: Sequence[str],
    from_scratch: bool,
    seconds: dict[str, float],
) -> tuple[dict[str, Guard], Immunized, dict[str, Any]]:
    """The guards of `SYSTEMS`, the immunized one with its check, and the losses of those trained
    here; ``seconds`` is told how long each took."""
    guards: dict[str, Guard] = {}
    losses: dict[str, Any] = {}
    for name, (model, variant, _) in SYSTEMS.items():
        start = time.monotonic()
        config, run_folder = _config(variant or "tiny", folder, overrides), folder / "train" / model
        if name == "guard.immunized":
            guards["guard.full"].save_pretrained(folder / "models" / "guard")
            immunized = _immunize(folder, run_folder, immunize_overrides)
            guards[name] = immunized.guard
        elif not variant:
            guards[name] = _untrained(config)
        elif (SHIPPED / model).is_dir() and not from_scratch:
            guards[name] = _shipped(config, SHIPPED / model)
        else:
            trained = train_guard(config, run_folder, {SOURCE: read}, folder / "datasets")
            guards[name], losses[name] = trained.guard, _losses(run_folder)
        seconds[name] = round(time.monotonic() - start, 1)
    return guards, immunized, losses


def _machine() -> dict[str, str]:
    """What else a run's figures and its time depend on."""
    return {
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "device": str(jax.devices()[0].device_kind),
    }


def _config(variant: str, folder: Path, overrides: Sequence[str]) -> Any:
    config = load_config(f"configs/guard.py:{variant}", [*SMALLER, *overrides])
    if variant == "forged":
        config.data.sources.implicit.path = str(folder / "forge" / "forged" / "train.jsonl")
    return config


def _placed(config: Any) -> tuple[Mesh, Rules]:
    return make_mesh(**config.mesh), {**DEFAULT_RULES, **config.axis_rules}


# All guards are built alike, also the untrained one, so that they run as one compiled program.


def _shipped(config: Any, folder: Path) -> Guard:
    mesh, rules = _placed(config)
    return Guard.from_pretrained(folder, mesh=mesh, rules=rules, remat=config.model.remat)


def _untrained(config: Any) -> Guard:
    """The base with an adapter that does nothing yet."""
    base, own = load_base(config, *_placed(config)), config.lora
    model = lora.attach(base.model, own.targets, own.rank, own.alpha, jax.random.key(0))
    return Guard(model, base.folder, base.settings, base.mesh, base.rules)


def _forge(folder: Path, queries: int, overrides: Sequence[str]) -> Section:
    """Forges the implicit rows, and says what came of it."""
    config = load_config("configs/impforge.py:tiny", [*SHORTER, *overrides])
    matched, run = forge_world(config, folder, queries)
    forged, by_id = folder / "forged", {t.id: t for t in matched.read()}
    rows = [v for _, v in jsonl.read_jsonl(forged / "train.jsonl") if isinstance(v, dict)]
    unsafe = [row for row in rows if row["label"] == "unsafe"]
    truths = meanings([by_id[r["id"]] for r in unsafe], [r["text"] for r in unsafe], matched)
    picked = np.random.default_rng(0).permutation(len(rows))[:8]
    shown = [
        Rewrite((forged / r["image"]).read_bytes(), r["provenance"]["query"], r["text"], r["label"])
        for r in (rows[i] for i in picked)
    ]
    learned = read_metrics(forged / "rewriter")
    return forge_section(run.forged, learned, shown, truth_figures(truths))


def _immunize(folder: Path, run_folder: Path, overrides: Sequence[str]) -> Immunized:
    """CMAI on the guard of forged data, its implicit rows forged too."""
    config = _immunizing(folder, overrides)
    done = immunize(config, run_folder, {SOURCE: read}, folder / "datasets")
    return cast(Immunized, done)


def _immunizing(folder: Path, overrides: Sequence[str]) -> Any:
    config = load_config("configs/cmai.py:forged", [*IMMUNIZE, *overrides])
    config.model.path = str(folder / "models" / "guard")
    config.data.sources.implicit.path = str(folder / "forge" / "forged" / "train.jsonl")
    return config


def _attack(
    folder: Path, guard: Guard, immunized: Immunized, rows: int, overrides: Sequence[str]
) -> Section:
    """Both guards under the same attacks."""
    config, records = _immunizing(folder, overrides).attack, held_out("guard", rows)
    systems = {"guard.immunized": immunized, "guard.full": Immunized.of(guard)}
    results = {
        name: attack_records(
            config, system, records, folder / "attacks" / SYSTEMS[name][0], convergence=False
        )
        for name, system in systems.items()
    }
    return robustness_section(results, {name: SYSTEMS[name][2] for name in results})


def _losses(run_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    logged = [(row["step"], row["loss"]) for row in read_metrics(run_folder) if "loss" in row]
    return np.array([s for s, _ in logged]), np.array([v for _, v in logged])


def _export(folder: Path, guards: dict[str, Guard], immunized: Immunized, judged: Judged) -> None:
    for name, guard in guards.items():
        metrics = {
            key: estimate.value
            for key, estimate in judged.results[name].items()
            if key.split(".")[-1] in ("asr", "fpr") and ".category." not in key
        }
        card = ModelCard(base="the small LLaVA of crossguard_jax", data=DATA[name], metrics=metrics)
        place, card = folder / "models" / SYSTEMS[name][0], replace(card, license="apache-2.0")
        if name == "guard.immunized":
            save_immunized(immunized, place, card)
        else:
            guard.save_pretrained(place, card=card)


def _write_data(folder: Path, tests: dict[str, list[Record]], overrides: Sequence[str]) -> None:
    """``train``, ``val`` and ``test`` as JSON lines with pictures beside them."""
    config, datasets = _config("forged", folder, overrides), folder / "datasets"
    held = load_config("configs/guard.py:explicit_only", overrides).data.validation
    opened: dict[str, dict[str, Any]] = {
        "train": open_sources(config.data.sources, datasets, {SOURCE: read}),
        "val": open_sources(held, datasets / "val", {SOURCE: read}),
        "test": tests,
    }
    for split, rows in opened.items():
        if not (folder / "data" / f"{split}.jsonl").exists() or split == "test":
            write_jsonl(_all(rows), folder / "data", split)


def _all(by_name: dict[str, Any]) -> Iterator[Record]:
    source: RecordSource
    for source in by_name.values():
        for i in range(len(source)):
            yield source[i]
