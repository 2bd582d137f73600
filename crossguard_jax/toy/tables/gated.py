"""``crossguard toy gate``: forged rows with the gate and without, by the world's own truth.

The rows without it are the same run's: what its rewards let pass. Beside the gate as it is stands
one that reads no caption, so that all it knows of a picture is what the small LLaVA answers.

With ``--rewriter`` and ``--sentence`` a real language model rewrites. The world's grammar reads few
of its sentences: then what the gate dropped and why, and ``review.html``, are what tells.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core import diversity
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate, proportion
from crossguard_jax.impforge.commands import ForgeRun, make_gate
from crossguard_jax.impforge.forge import CANDIDATES
from crossguard_jax.impforge.gate.gate import VERDICTS, Gate, OpenGate, Verdicts
from crossguard_jax.impforge.sift import ForgeSettings, sift
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.impforge.twins import TWIN
from crossguard_jax.io import jsonl
from crossguard_jax.systems.load import identified
from crossguard_jax.toy.forging import Matched, forge_world, meanings, truth_figures
from crossguard_jax.toy.tables import cells

ROWS: Mapping[str, str] = {
    "no_gate": "Without the gate",
    "gate": "With it",
    "pixels": "With it, captions unread",
}

COLUMNS: Mapping[str, str] = {
    "implicit": "harm in neither part alone",
    "unsafe_alone": "text unsafe alone",
    "same_intent": "intent kept",
    "gibberish": "gibberish",
    "twins_harmless": "twins harmless",
    "yield": "rows kept",
    "category_entropy": "category entropy",
}


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and leaves ``gate.json`` and ``gate.md``."""
    folder = Path(args.out)
    names = args.only or list(ROWS)
    variant, models = _models(args)
    of_seeds = [
        _forged(folder / str(seed), args.rows, seed, variant, models) for seed in args.seeds
    ]
    results = {name: [figures[name] for figures in of_seeds] for name in names}
    command = f"crossguard toy gate --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    if models:
        command += " --rewriter FOLDER --sentence FOLDER"
        for seed in args.seeds:
            print((folder / str(seed) / "forged" / "data_card.md").read_text())
    caption = (
        f"Percent of the rows labelled unsafe that {args.rows:,} queries were forged into, a twin "
        "for each; twins of those labelled safe, rows kept of those without the gate, entropy of "
        "its largest"
    )
    page = cells.shares("Rows", ROWS, COLUMNS, results, args.seeds, caption)
    cells.leave(folder, "gate", command, args.seeds, cells.pooled_figures(results, COLUMNS), page)


def _models(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The variant of the configuration, and what of it a user's own models change."""
    if not args.rewriter and not args.sentence:
        return "tiny", []
    if not (args.rewriter and args.sentence):
        raise UserError("toy gate: give --rewriter and --sentence together, or neither")
    return "instruct", [
        f"--config.rewriter.path={args.rewriter}",
        f"--config.rewards.semantic.path={args.sentence}",
    ]


def _forged(
    folder: Path, queries: int, seed: int, variant: str, models: list[str]
) -> dict[str, cells.Cell]:
    """One seed's run and its three cells, or what an earlier run found."""
    opened: list[tuple[Any, Matched, ForgeRun]] = []

    def run() -> tuple[Any, Matched, ForgeRun]:
        if not opened:
            config = load_config(
                f"configs/impforge.py:{variant}",
                [f"--config.ppo.seed={seed}", f"--config.forge.seed={seed}", *models],
            )
            opened.append((config, *forge_world(config, folder, queries, seed)))
        return opened[0]

    figures: dict[str, cells.Cell] = {}
    for name in ROWS:
        path = folder / f"figures-{name}.json"
        figures[name] = cells.cell(path, lambda name=name: _measure(folder, *run(), name))
    return figures


def _measure(
    folder: Path, config: Any, matched: Matched, run: ForgeRun, name: str
) -> dict[str, Estimate]:
    by_id = {t.id: t for t in run.triplets}
    kept, without = (_kept(folder, config, run, by_id, which) for which in (name, "no_gate"))
    unsafe, safe = (
        meanings([by_id[id] for id in rows], list(rows.values()), matched)
        for rows in (
            {id: text for id, text in kept.items() if id.endswith(TWIN) is twin}
            for twin in (False, True)
        )
    )
    categories = [by_id[id].category for id in kept if not id.endswith(TWIN)]
    entropy = diversity.entropy(categories).normalized
    return {
        **truth_figures(unsafe),
        "twins_harmless": proportion(np.array([not m.risky_together for m in safe])),
        "yield": proportion(np.isin(list(without), list(kept))),
        "category_entropy": Estimate.exact(entropy, len(categories)),
    }


def _kept(
    folder: Path, config: Any, run: ForgeRun, by_id: Mapping[str, Triplet], name: str
) -> dict[str, str]:
    """The texts that become rows, by their triplets, of the candidates that the run wrote."""
    rewards = run.rewriter.rewards
    own = folder / {"gate": "forged"}.get(name, name)
    gate: Gate = OpenGate()
    if name != "no_gate":
        settings = config.gate.copy_and_resolve_references()
        settings.local.captions = name != "pixels"
        gate = make_gate(settings, rewards, folder / "forged" / "judged", identified)
    rows = [v for _, v in jsonl.read_jsonl(folder / "forged" / CANDIDATES) if isinstance(v, dict)]
    labels = {id: "safe" if id.endswith(TWIN) else "unsafe" for id in by_id}
    sifted = sift(
        rows,
        by_id,
        labels,
        ForgeSettings(**config.forge.to_dict()),
        rewards.embed,
        Verdicts(gate, own / VERDICTS).of,
    )
    return {row["triplet"]: row["text"] for row in sifted.kept}
