"""``crossguard toy table``: what each part of CrossGuard buys, in the small world."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import blanked, write_jsonl
from crossguard_jax.evals.benchmarks import evaluate
from crossguard_jax.evals.scoring import score_benchmarks
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report import drawing, plots
from crossguard_jax.runtime.shards import Beat, Work
from crossguard_jax.sweeps.cells import Figures, Sweep, SweepCell, work_of
from crossguard_jax.toy.study import BENCHMARKS, SHAPES, SOURCE, benchmarks, read
from crossguard_jax.toy.tables import cells as tables
from crossguard_jax.toy.tables.defences import write_rows

THRESHOLD = 0.5
FACTORY = "crossguard_jax.toy.tables.guards:guard_work"
TESTS = (*BENCHMARKS, *SHAPES)


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
    "wrapped.asr": "ASR, inside a jailbreak",
    "keyword_picture.asr": "ASR, keyword pictures",
    "implicit.fpr": "FPR, known pairs",
    "implicit_heldout.fpr": "FPR, new pairs",
    "benign_vqa.fpr": "FPR, benign questions",
    "wrapped.fpr": "FPR, inside a jailbreak",
    "keyword_picture.fpr": "FPR, keyword pictures",
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
    """The verb's work: prints the table, and leaves ``table.json`` and ``table.md``, ``table.png``
    where the rows that it shows were made, and the first seed's test sets in ``tests``, for
    ``evaluate``."""
    folder = Path(args.out)
    work = {"rows": args.rows}
    cells = [SweepCell(name, s, work) for name in args.only or ROWS for s in args.seeds]
    spec = {"folder": str(folder), "rows": args.rows}
    if args.jobs > 1:
        for data, variant in (("all", "tiny"), ("no_benign", "no_benign")):
            write_rows(load_config(f"configs/guard.py:{variant}").data, folder / "data" / data)
    results = tables.of_rows(Sweep(folder, cells, FACTORY, spec).run(*tables.workers(args.jobs)))
    for name, records in benchmarks(args.rows, args.seeds[0], TESTS).items():
        write_jsonl(records, folder / "tests", name)
    command = f"crossguard toy table --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    titles = {name: row.title for name, row in ROWS.items()}
    caption = f"Percent at threshold {THRESHOLD:g}"
    page = tables.shares("Guard", titles, COLUMNS, results, args.seeds, caption)
    figures = tables.pooled_figures(results, COLUMNS)
    tables.leave(folder, "table", command, args.seeds, figures, page)
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


def guard_work(spec: Mapping[str, Any], folder: str) -> Work:
    """Trains and scores a guard; see `ShardJob`. A cell's row is a key of `ROWS`; its seed is that
    of the adapter's start, of the order of the data and of the test sets.

    Args:
        spec: ``folder``, the table's, and ``rows`` of each implicit test set.
        folder: of the figures.
    """
    place = Path(spec["folder"])

    def measure(cell: SweepCell, own: Path, beat: Beat) -> Figures:
        row = ROWS[cell.row]
        override = [f"--config.train.seed={cell.seed}", f"--config.data.blank={row.blank}"]
        config = load_config(f"configs/guard.py:{row.variant}", override)
        # Variants that read the same rows share them; one that filters labels does not.
        data = place / "data" / (cell.row if cell.row == "no_benign" else "all")
        guard = train_guard(config, own, {SOURCE: read}, data).guard
        tests = {
            source: [blanked(record, row.blank) for record in records]
            for source, records in benchmarks(spec["rows"], cell.seed, TESTS).items()
        }
        return evaluate(score_benchmarks(guard, tests, cell.name), THRESHOLD)

    return work_of(measure, folder)
