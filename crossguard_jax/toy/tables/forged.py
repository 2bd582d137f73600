"""``crossguard toy forged``: a guard of forged data, with benign twins and without.

The guards see no label that the world's own tables gave to an implicit row. Beside the usual test
sets stands one that was rewritten: held-out queries, harmful and harmless, in the rewriter's words.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import evaluate
from crossguard_jax.evals.scoring import score_benchmarks
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.impforge.commands import ForgeRun, read_twins
from crossguard_jax.toy.forging import QUERIES, forge_world, match_world, meanings
from crossguard_jax.toy.study import SOURCE, benchmarks, read
from crossguard_jax.toy.tables import cells

THRESHOLD = 0.5
REWRITTEN = "rewritten"

ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "forged": ("Forged rows and benign twins", ()),
    "no_twins": ("Forged rows alone", ("unsafe",)),
}
"""By name: the title, and the implicit labels kept."""

COLUMNS: Mapping[str, str] = {
    "implicit.asr": "ASR, known pairs",
    "implicit_heldout.asr": "ASR, new pairs",
    f"{REWRITTEN}.asr": "ASR, rewritten",
    "implicit.fpr": "FPR, known pairs",
    "implicit_heldout.fpr": "FPR, new pairs",
    f"{REWRITTEN}.fpr": "FPR, rewritten",
    "benign_vqa.fpr": "FPR, benign questions",
}


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and leaves ``forged.json`` and ``forged.md``."""
    folder = Path(args.out)
    results = {
        name: [run_cell(folder, name, seed, args.rows) for seed in args.seeds]
        for name in args.only or ROWS
    }
    command = f"crossguard toy forged --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    titles = {name: title for name, (title, _) in ROWS.items()}
    caption = f"Percent at threshold {THRESHOLD:g}, guards trained on {QUERIES:,} queries forged"
    page = cells.shares("Guard", titles, COLUMNS, results, args.seeds, caption)
    figures = cells.pooled_figures(results, COLUMNS)
    cells.leave(folder, "forged", command, args.seeds, figures, page)


def run_cell(folder: Path, name: str, seed: int, rows: int) -> cells.Cell:
    """Trains and scores one guard, or reads what an earlier run found.

    Args:
        folder: the table's.
        name: a key of `ROWS`.
        seed: of queries, pictures, rewriter, forge, guard and test sets.
        rows: rows of each implicit test set, and held-out queries to rewrite.
    """
    own = folder / "cells" / f"{name}-{seed}"

    def make() -> Mapping[str, Estimate]:
        forge = folder / "forges" / str(seed)
        config = load_config(
            "configs/impforge.py:tiny",
            [f"--config.ppo.seed={seed}", f"--config.forge.seed={seed}"],
        )
        _, run = forge_world(config, forge, QUERIES, seed)
        guard_config = load_config("configs/guard.py:forged", [f"--config.train.seed={seed}"])
        implicit = guard_config.data.sources.implicit
        implicit.path = str(forge / "forged" / "train.jsonl")
        implicit.labels = ROWS[name][1]
        guard = train_guard(guard_config, own, {SOURCE: read}).guard
        tests = benchmarks(rows, seed) | {REWRITTEN: _rewritten(config, forge, run, rows, seed)}
        return evaluate(score_benchmarks(guard, tests, f"{name}, seed {seed}"), THRESHOLD)

    return cells.cell(own / f"figures-{rows}.json", make)


def _rewritten(config: Any, forge: Path, run: ForgeRun, n: int, seed: int) -> list[Record]:
    """Held-out queries, half of them harmless, rewritten; those whose intent was kept."""
    matched = match_world(config, forge / "test", "test", n // 2, n, seed)
    triplets = matched.read()
    twins = read_twins(config, triplets, matched.harmless, forge / "test")
    every = [*triplets, *twins]
    texts = run.rewriter.write(every, jax.random.key(seed), run.trained).texts
    return [
        Record(t.id, (t.picture,), text, label, t.category, REWRITTEN)
        for t, text, label, meant in zip(
            every,
            texts,
            ["unsafe"] * len(triplets) + ["safe"] * len(twins),
            meanings(every, texts, matched),
            strict=True,
        )
        if meant.same_intent
    ]
