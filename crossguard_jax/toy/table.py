"""``crossguard toy table``: what each part of CrossGuard buys, in the small world.

Every cell (a row of `ROWS` and a seed) is a training run in a folder of its own and a file of
figures, so the command goes on where it was stopped. A figure of the table pools the rows of all
seeds, with their Wilson interval, and names each seed's own value behind it.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate, wilson_interval
from crossguard_jax.data.records import blanked
from crossguard_jax.evals.benchmarks import evaluate
from crossguard_jax.evals.systems import score_benchmarks
from crossguard_jax.evals.tables import Table as Page
from crossguard_jax.evals.tables import to_markdown
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.toy.study import SOURCE, benchmarks, read

THRESHOLD = 0.5


@dataclass(frozen=True)
class Row:
    """One guard of the table: a variant of ``configs/guard.py``, perhaps with one input blanked."""

    title: str
    variant: str
    blank: str = ""


ROWS: Mapping[str, Row] = {
    "full": Row("Full mixture, LoRA on both towers", "tiny"),
    "explicit_only": Row("Explicit data only", "explicit_only"),
    "no_benign": Row("No benign data", "no_benign"),
    "vision_lora": Row("LoRA on the picture tower only", "vision_lora"),
    "language_lora": Row("LoRA on the language model only", "language_lora"),
    "text_only": Row("Control: picture blanked", "tiny", "picture"),
    "picture_only": Row("Control: text blanked", "tiny", "text"),
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


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and leaves ``table.json`` and ``table.md``."""
    folder = Path(args.out)
    cells: dict[str, list[dict[str, Estimate]]] = {}
    for name in args.only or ROWS:
        cells[name] = [run_cell(folder, name, seed, args.rows) for seed in args.seeds]
    command = f"crossguard toy table --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    page = to_markdown(as_table(cells, args.seeds))
    write_atomic(folder / "table.md", f"`{command}`\n\n{page}\n")
    document = {
        "command": command,
        "seeds": list(args.seeds),
        "figures": {
            f"{name}.{column}": pooled([cell[column] for cell in of_seeds]).as_dict()
            | {"seeds": [cell[column].value for cell in of_seeds]}
            for name, of_seeds in cells.items()
            for column in COLUMNS
        },
    }
    write_atomic(folder / "table.json", json.dumps(document, indent=1) + "\n")
    print(page)


def run_cell(folder: Path, name: str, seed: int, rows: int) -> dict[str, Estimate]:
    """Trains and scores one cell, or reads what an earlier run found.

    Args:
        folder: the table's.
        name: a key of `ROWS`.
        seed: of the adapter's start, the order of the data and the test sets.
        rows: rows of each implicit test set.
    """
    row, cell = ROWS[name], folder / "cells" / f"{name}-{seed}"
    done = cell / f"figures-{rows}.json"
    if not done.exists():
        start = time.monotonic()
        override = [f"--config.train.seed={seed}", f"--config.data.blank={row.blank}"]
        config = load_config(f"configs/guard.py:{row.variant}", override)
        # Variants that read the same rows share them; one that filters labels does not.
        data = folder / "data" / (name if name == "no_benign" else "all")
        guard = train_guard(config, cell, {SOURCE: read}, data).guard
        tests = {
            source: [blanked(record, row.blank) for record in records]
            for source, records in benchmarks(rows, seed).items()
        }
        scores = score_benchmarks(guard, tests, f"{name}, seed {seed}")
        found = {k: v.as_dict() for k, v in evaluate(scores, THRESHOLD).items()}
        write_atomic(done, json.dumps({"seconds": time.monotonic() - start, **found}) + "\n")
    figures = json.loads(done.read_text())
    del figures["seconds"]
    return {k: Estimate.from_dict(v) for k, v in figures.items()}


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One share over the rows of all seeds."""
    n = sum(e.n for e in estimates)
    if not n:
        return Estimate.empty()
    hits = round(sum(e.value * e.n for e in estimates))
    return Estimate(hits / n, *wilson_interval(hits, n), n)


def as_table(cells: Mapping[str, Sequence[Mapping[str, Estimate]]], seeds: Sequence[int]) -> Page:
    """The table to read: pooled percent, interval, and each seed's own value."""

    def text(estimates: Sequence[Estimate]) -> str:
        total = pooled(estimates)
        each = ", ".join(f"{100 * e.value:.1f}" for e in estimates)
        interval = f"[{100 * total.low:.1f}, {100 * total.high:.1f}]"
        return f"{100 * total.value:.1f} {interval} ({each})"

    rows = tuple(
        (ROWS[name].title, *(text([cell[c] for cell in of_seeds]) for c in COLUMNS))
        for name, of_seeds in cells.items()
    )
    caption = (
        f"Percent at threshold {THRESHOLD:g}, all seeds' rows pooled, 95% Wilson interval; in "
        f"parentheses the seeds {', '.join(map(str, seeds))} apart."
    )
    return Page(("Guard", *COLUMNS.values()), rows, caption)
