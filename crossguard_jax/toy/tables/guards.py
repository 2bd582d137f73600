"""``crossguard toy table``: what each part of CrossGuard buys, in the small world."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import blanked
from crossguard_jax.evals.benchmarks import evaluate
from crossguard_jax.evals.scoring import score_benchmarks
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report import drawing, plots
from crossguard_jax.toy.study import SOURCE, benchmarks, read
from crossguard_jax.toy.tables import cells

THRESHOLD = 0.5


@dataclass(frozen=True)
class GuardRow:
    """One guard of the table: a variant of ``configs/guard.py``, perhaps with one input blanked."""

    title: str
    variant: str
    blank: str = ""


ROWS: Mapping[str, GuardRow] = {
    "full": GuardRow("Full mixture, LoRA on both towers", "tiny"),
    "explicit_only": GuardRow("Explicit data only", "explicit_only"),
    "no_benign": GuardRow("No benign data", "no_benign"),
    "vision_lora": GuardRow("LoRA on the picture tower only", "vision_lora"),
    "language_lora": GuardRow("LoRA on the language model only", "language_lora"),
    "text_only": GuardRow("Control: picture blanked", "tiny", "picture"),
    "picture_only": GuardRow("Control: text blanked", "tiny", "text"),
}

COLUMNS: Mapping[str, str] = {
    "implicit.asr": "ASR, known pairs",
    "implicit_heldout.asr": "ASR, new pairs",
    "explicit_text.asr": "ASR, explicit text",
    "implicit.fpr": "FPR, known pairs",
    "implicit_heldout.fpr": "FPR, new pairs",
    "benign_vqa.fpr": "FPR, benign questions",
    "implicit.accuracy": "accuracy, known pairs",
    "implicit_heldout.accuracy": "accuracy, new pairs",
}
"""Figures of ``evals.benchmarks`` that the table shows, with their headings (all in percent)."""

DRAWN: Mapping[str, str] = {
    "full": "full mixture",
    "explicit_only": "no implicit rows",
    "no_benign": "no safe rows",
}
"""Rows that the picture shows, by what they learned from."""

BARS: Mapping[str, str] = {
    "implicit.asr": "harm missed: known pairs",
    "implicit_heldout.asr": "harm missed: new pairs",
    "implicit.fpr": "false alarms: known pairs",
    "implicit_heldout.fpr": "false alarms: new pairs",
}
"""Figures that it shows, by what they are called there."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and leaves ``table.json`` and ``table.md``, and
    ``table.png`` where the rows that it shows were made."""
    folder = Path(args.out)
    results = {
        name: [run_cell(folder, name, seed, args.rows) for seed in args.seeds]
        for name in args.only or ROWS
    }
    command = f"crossguard toy table --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    titles = {name: row.title for name, row in ROWS.items()}
    caption = f"Percent at threshold {THRESHOLD:g}"
    page = cells.shares("Guard", titles, COLUMNS, results, args.seeds, caption)
    figures = cells.pooled_figures(results, COLUMNS)
    cells.leave(folder, "table", command, args.seeds, figures, page)
    if DRAWN.keys() <= results.keys():
        write_atomic(folder / "table.png", drawing.png(picture(figures)))


def picture(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """What three guards get wrong, from the figures of ``table.json``."""
    return plots.rate_bars(
        {
            title: {bar: Estimate.from_dict(figures[f"{row}.{name}"]) for name, bar in BARS.items()}
            for row, title in DRAWN.items()
        },
        "Wrong verdicts (%)",
    )


def run_cell(folder: Path, name: str, seed: int, rows: int) -> cells.Cell:
    """Trains and scores one cell, or reads what an earlier run found.

    Args:
        folder: the table's.
        name: a key of `ROWS`.
        seed: of the adapter's start, the order of the data and the test sets.
        rows: rows of each implicit test set.
    """
    row, own = ROWS[name], folder / "cells" / f"{name}-{seed}"

    def make() -> Mapping[str, Estimate]:
        override = [f"--config.train.seed={seed}", f"--config.data.blank={row.blank}"]
        config = load_config(f"configs/guard.py:{row.variant}", override)
        # Variants that read the same rows share them; one that filters labels does not.
        data = folder / "data" / (name if name == "no_benign" else "all")
        guard = train_guard(config, own, {SOURCE: read}, data).guard
        tests = {
            source: [blanked(record, row.blank) for record in records]
            for source, records in benchmarks(rows, seed).items()
        }
        return evaluate(score_benchmarks(guard, tests, f"{name}, seed {seed}"), THRESHOLD)

    return cells.cell(own / f"figures-{rows}.json", make)
