"""``crossguard quickstart``: the whole of CrossGuard in the small world, in minutes.

Trains the guard on the full mixture and on explicit data alone, scores the held-out sets with
both and with the base they came from, and writes a report. What it leaves is a contract:
``report.html``, ``report.md`` and ``report.json``; ``models/NAME/``, plain Hub folders;
``data/SPLIT.jsonl`` with the pictures beside it.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from crossguard_jax.core.config import load_config
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record, write_jsonl
from crossguard_jax.evals.guard_report import Judged, guard_sections
from crossguard_jax.evals.report import Report
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.mixture import open_sources
from crossguard_jax.guard.recipe import load_base, train_guard
from crossguard_jax.hf.export import ModelCard
from crossguard_jax.toy.study import BENCHMARKS, SOURCE, benchmarks, read, score_all
from crossguard_jax.train.loop import read_metrics

SYSTEMS = {
    "guard.full": ("guard", "tiny", "Guard, full mixture"),
    "guard.explicit_only": ("guard_explicit_only", "explicit_only", "Guard, explicit data only"),
    "base": ("base", "", "Base model, untrained as a guard"),
}
"""Dotted name -> (folder under models/, variant of configs/guard.py, name to show)."""

DATA = (
    "Rows of the small world (household pictures drawn by a program, questions from templates): "
    "implicit, explicit and typographic requests and benign questions, drawn anew by anyone."
)


def main(args: argparse.Namespace) -> None:
    """The verb's work."""
    print(f"report: {run(Path(args.out), args.rows)}")


def run(folder: Path, rows: int, overrides: Sequence[str] = ()) -> Path:
    """Runs or resumes the quickstart in ``folder``; returns the report's path.

    Args:
        folder: takes everything; a run that was killed goes on in it.
        rows: rows of each implicit test set.
        overrides: ``--config.FIELD=VALUE``, for both trained guards.
    """
    began = time.monotonic()
    tests = benchmarks(rows)
    guards, losses, seconds = {}, {}, {}
    for name, (model, variant, _) in SYSTEMS.items():
        start = time.monotonic()
        config = load_config(
            f"configs/guard.py:{variant}" if variant else "configs/guard.py", overrides
        )
        if variant:
            run_folder = folder / "train" / model
            guards[name] = train_guard(
                config, run_folder, {SOURCE: read}, folder / "datasets"
            ).guard
            losses[name] = _losses(run_folder)
        else:
            mesh = make_mesh(**config.mesh)
            guards[name] = load_base(config, mesh, {**DEFAULT_RULES, **config.axis_rules})
        seconds[name] = round(time.monotonic() - start, 1)
    scores = score_all(guards, tests)
    judged = Judged(scores, titles={k: v[2] for k, v in SYSTEMS.items()} | dict(BENCHMARKS))
    _export(folder, guards, judged)
    _write_data(folder / "data", folder / "datasets", tests, overrides)
    texts = {(name, r.id): (r.image, r.text) for name, rows in tests.items() for r in rows}
    sections = guard_sections(judged, lambda b, i: texts[b, i], losses)
    seconds["everything"] = round(time.monotonic() - began, 1)
    meta = {
        "command": f"crossguard quickstart --out {folder} --rows {rows}",
        "seconds": seconds,
        "threshold": judged.threshold,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "device": str(jax.devices()[0].device_kind),
    }
    return Report("CrossGuard in the small world", sections, meta).write(folder)


def _losses(run_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    logged = [(row["step"], row["loss"]) for row in read_metrics(run_folder) if "loss" in row]
    return np.array([s for s, _ in logged]), np.array([v for _, v in logged])


def _export(folder: Path, guards: dict[str, Guard], judged: Judged) -> None:
    for name, guard in guards.items():
        metrics = {
            key: estimate.value
            for key, estimate in judged.results[name].items()
            if key.split(".")[-1] in ("asr", "fpr") and ".category." not in key
        }
        card = ModelCard(base="the small LLaVA of crossguard_jax", data=DATA, metrics=metrics)
        guard.save_pretrained(
            folder / "models" / SYSTEMS[name][0], card=replace(card, license="apache-2.0")
        )


def _write_data(
    folder: Path, datasets: Path, tests: dict[str, list[Record]], overrides: Sequence[str]
) -> None:
    """``train``, ``val`` and ``test`` as JSON lines with pictures beside them."""
    config = load_config("configs/guard.py:tiny", overrides)
    opened: dict[str, dict[str, Any]] = {
        "train": open_sources(config.data.sources, datasets, {SOURCE: read}),
        "val": open_sources(config.data.validation, datasets / "validation", {SOURCE: read}),
        "test": tests,
    }
    for split, sources in opened.items():
        if not (folder / f"{split}.jsonl").exists() or split == "test":
            write_jsonl(_all(sources), folder, split)


def _all(sources: dict[str, Any]) -> Iterator[Record]:
    source: RecordSource
    for source in sources.values():
        for i in range(len(source)):
            yield source[i]
