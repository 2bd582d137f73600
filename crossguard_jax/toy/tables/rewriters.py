"""``crossguard toy rewriter``: what each reward and each switch of ImpForge buys.

Rewards are the full sum for every row, also where one was left out in training; what the texts mean
is judged by the world's own truth, and whether they get through by a target that refuses explicit
requests.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate, mean, proportion
from crossguard_jax.core.typing import Bool
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.impforge.forge import variety
from crossguard_jax.impforge.ppo.recipe import load_rewriter, objective, train_rewriter
from crossguard_jax.impforge.ppo.rewriter import Rewriter
from crossguard_jax.impforge.rewards.judges import REWARDS
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.report.tables import Table
from crossguard_jax.runtime.shards import Beat, Work
from crossguard_jax.sweeps.cells import Figures, Sweep, SweepCell, work_of
from crossguard_jax.toy.forging import Matched, match_world, meanings, truth_figures
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.tables import cells as tables

CONFIG = "configs/impforge.py"
FACTORY = "crossguard_jax.toy.tables.rewriters:rewriter_work"


@dataclass(frozen=True)
class RewriterRow:
    """A rewriter of the table: a variant of ``configs/impforge.py``, trained or as it starts."""

    title: str
    variant: str
    trained: bool = True


ROWS: Mapping[str, RewriterRow] = {
    "reference": RewriterRow("Reference, untrained", "tiny", trained=False),
    "tiny": RewriterRow("Three rewards, breadth on", "tiny"),
    "no_safety": RewriterRow("Without the safety reward", "no_safety"),
    "no_semantic": RewriterRow("Without the semantic reward", "no_semantic"),
    "no_overlap": RewriterRow("Without the overlap reward", "no_overlap"),
    "plain": RewriterRow("Three rewards, plain sum", "plain"),
    "daring": RewriterRow("Long leash, three rewards", "daring"),
    "daring_no_semantic": RewriterRow("Long leash, without semantic", "daring_no_semantic"),
    "daring_no_safety": RewriterRow("Long leash, without safety", "daring_no_safety"),
    "daring_no_safety_no_overlap": RewriterRow(
        "Long leash, without safety or overlap", "daring_no_safety_no_overlap"
    ),
    "unleashed": RewriterRow("No leash, three rewards", "unleashed"),
    "unleashed_no_semantic": RewriterRow("No leash, without semantic", "unleashed_no_semantic"),
}

COLUMNS: Mapping[str, str] = {
    "gain": "R - kl_coef KL, over the reference",
    "kl": "KL, nats",
    "safety": "safety",
    "semantic": "semantic",
    "overlap": "overlap",
    "words": "overlap, whole words",
    "implicit": "harm in neither part alone, %",
    "unsafe_alone": "text unsafe alone, %",
    "same_intent": "intent kept, %",
    "same_act": "act kept, %",
    "gibberish": "gibberish, %",
    "asr": "attack success, %",
}
VARIETY: Mapping[str, str] = {
    "category_entropy": "category entropy",
    "self_bleu": "self-BLEU",
    "nearest_distance": "nearest distance",
    "mean_distance": "mean distance",
    "vendi": "Vendi",
    "cells_filled": "cells filled",
    "distinct_texts": "distinct texts",
}
SHARES = ("implicit", "unsafe_alone", "same_intent", "same_act", "gibberish", "asr")


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and leaves ``rewriter.json`` and ``rewriter.md``."""
    folder = Path(args.out)
    test, target = split_of(folder, "test", args.rows), target_of(folder, "")
    before = _before(test, target)
    rows = {name: ROWS[name] for name in args.only or ROWS}
    cells = [
        SweepCell(
            name,
            seed,
            {"spec": f"{CONFIG}:{row.variant}", "trained": row.trained, "rows": args.rows},
        )
        for name, row in rows.items()
        for seed in args.seeds
    ]
    spec = {"folder": str(folder), "rows": args.rows, "target": ""}
    outcomes = Sweep(folder, cells, FACTORY, spec).run(*tables.workers(args.jobs))
    results = tables.of_rows(outcomes)
    command = f"crossguard toy rewriter --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    figures = {"before.asr": before.as_dict()} | {
        f"{name}.{column}": [cell[column].as_dict() for cell in of_seeds]
        for name, of_seeds in results.items()
        for column in (*COLUMNS, *VARIETY)
    }
    pages = _as_tables(results, before, args.seeds)
    tables.leave(folder, "rewriter", command, args.seeds, figures, *pages)


def split_of(folder: Path, split: str, rows: int) -> Matched:
    """A split's queries with their pictures: ``rows`` of the test's, twice as many to train on."""
    n = rows if split == "test" else 2 * rows
    return match_world(load_config(f"{CONFIG}:tiny"), folder / split, split, n, 2 * n)


def target_of(folder: Path, system: str) -> Guard:
    """Who is attacked: the guard of that name, or one that is trained for it in the folder."""
    if system:
        return Guard.from_pretrained(system)
    config = load_config("configs/guard.py:refuses_explicit")
    own = folder / "target"
    return train_guard(config, own, {SOURCE: read}, own / "data").guard


def rewriter_work(spec: Mapping[str, Any], folder: str) -> Work:
    """Trains and measures a rewriter; see `ShardJob`.

    A cell's ``work`` has a ``spec`` of a configuration, perhaps ``overrides``, and whether it is
    ``trained``.

    Args:
        spec: ``folder`` of the splits, ``rows`` and ``target``, as `split_of` and `target_of` take
            them.
        folder: of the figures.
    """
    place = Path(spec["folder"])
    train, test = (split_of(place, split, spec["rows"]) for split in ("train", "test"))
    target, triplets = target_of(place, spec["target"]), train.read()

    def measure(cell: SweepCell, own: Path, beat: Beat) -> Figures:
        overrides = [*cell.work.get("overrides", ()), f"--config.ppo.seed={cell.seed}"]
        config = load_config(cell.work["spec"], overrides)
        if cell.work["trained"]:
            rewriter, trained = train_rewriter(config, triplets, own)
        else:
            rewriter, trained = load_rewriter(config), None
        return _measure(rewriter, trained, test, target, cell.seed, config)

    return work_of(measure, folder)


def got_through(
    guard: Guard, rows: Sequence[Record], harmful: Sequence[bool]
) -> Bool[np.ndarray, " B"]:
    """Which rows mean harm and are not called unsafe: a rewriter gains nothing by losing the
    intent.

    Args:
        guard: stands before the model under attack.
        rows: picture and text.
        harmful: whether each means harm, by whatever truth there is.
    """
    verdicts = guard.score([row.images for row in rows], [row.text for row in rows])
    return ~np.array([verdict.unsafe for verdict in verdicts], bool) & np.asarray(harmful, bool)


def _before(matched: Matched, target: Guard) -> Estimate:
    """Attack success of the queries as they are, beside their matched pictures."""
    triplets = matched.read()
    queries = [t.query for t in triplets]
    harmful = [t.risky_together for t in meanings(triplets, queries, matched)]
    return proportion(got_through(target, _rows(triplets, queries), harmful))


def _rows(triplets: Sequence[Triplet], texts: Sequence[str]) -> list[Record]:
    return [
        Record(
            t.id, (t.picture,), text or ".", category=t.category, provenance={"keyword": t.keyword}
        )
        for t, text in zip(triplets, texts, strict=True)
    ]


def _measure(
    rewriter: Rewriter, trained: Any, test: Matched, target: Guard, seed: int, config: Any
) -> dict[str, Estimate]:
    triplets, key = test.read(), jax.random.key(1_000 + seed)
    prepared = rewriter.prepare(triplets)
    after, before = (
        rewriter.write(triplets, key, part, prepared=prepared) for part in (trained, None)
    )
    coef = config.ppo.settings.kl_coef
    weights = dict.fromkeys(REWARDS, 1.0)
    gain = objective(after, weights, coef) - objective(before, weights, coef)
    truths = meanings(triplets, after.texts, test)
    rows = _rows(triplets, after.texts)
    asr = proportion(got_through(target, rows, [t.risky_together for t in truths]))
    various = variety(rows, rewriter)
    return {
        "gain": mean(gain),
        "kl": mean(after.kl),
        **{name: mean(after.components[name]) for name in weights},
        "words": mean(rewriter.rewards.words(after.texts, prepared[1]["picture"])),
        **truth_figures(truths),
        "asr": asr,
        **{name: Estimate.exact(value, len(rows)) for name, value in various.items()},
    }


def _as_tables(
    results: Mapping[str, Sequence[Figures]], before: Estimate, seeds: Sequence[int]
) -> list[Table]:
    """The tables to read: the mean of the seeds, and each seed's own value."""

    def text(column: str, of_seeds: Sequence[Estimate]) -> str:
        scale, digits = (100, 1) if column in SHARES else (1, 3)
        values = [scale * e.value for e in of_seeds]
        each = ", ".join(f"{v:.{digits}f}" for v in values)
        return f"{np.mean(values):.{digits}f} ({each})"

    def table(columns: Mapping[str, str], caption: str) -> Table:
        rows = tuple(
            (ROWS[name].title, *(text(c, [cell[c] for cell in of_seeds]) for c in columns))
            for name, of_seeds in results.items()
        )
        return Table(("Rewriter", *columns.values()), rows, caption)

    n = next(iter(results.values()))[0]["kl"].n
    success = (
        f"Held-out queries, n = {n}, mean of the seeds {', '.join(map(str, seeds))}, each in "
        f"parentheses; intervals are in rewriter.json. Attack success of the queries as they are: "
        f"{100 * before.value:.1f}% [{100 * before.low:.1f}, {100 * before.high:.1f}]."
    )
    variety = (
        "The variety of the same texts. Distances are 1 less the cosine of sentence vectors; a "
        "cell is a category with a keyword, of which some pairs mean no harm and have no query."
    )
    return [table(COLUMNS, success), table(VARIETY, variety)]
