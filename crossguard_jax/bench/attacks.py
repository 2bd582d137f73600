"""``crossguard bench attacks``: what attacks and training against them cost.

PGD against torchattacks, a picture for many prompts against a copy for each, a text's candidates
behind a cached prompt against full forward passes, MBAT's step against a clean one. Everything is
compiled beforehand and timed apart, both sides are checked to find the same, and then interleaved.
The model is the one of the guard's bench, or made from it.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.bench import guard
from crossguard_jax.bench.attacks_mbat import step_costs
from crossguard_jax.bench.attacks_pgd import against_torchattacks
from crossguard_jax.bench.attacks_text import candidates_behind_prefix, shorter
from crossguard_jax.bench.attacks_universal import mostly_tower, universal
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import load_model
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.nn.llava import Llava

NAMES = ("pgd", "universal", "text", "mbat")
PROMPTS = 16
CANDIDATES = 128
KS = (1, 2, 5, 10)


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and writes ``bench_attacks.json``.

    Raises:
        UserError: torch is not installed, or two sides do not do the same.
    """
    try:
        import torch
    except ImportError:
        raise UserError("torch is not installed: pip install -r requirements-dev.txt") from None
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder, _ = guard._make_folder(Path(scratch))
        found = measured(folder, args.only or NAMES, args.batch, args.runs)
    document = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{args.threads} threads for torch",
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        **found,
    }
    write_atomic(Path(args.out) / "bench_attacks.json", json.dumps(document, indent=2) + "\n")
    print(table(found))


def measured(folder: Path, names: Sequence[str], batch: int, runs: int) -> dict[str, Any]:
    """The figures of the measurements asked for, by `NAMES`."""
    model = load_model(folder)
    assert isinstance(model, Llava)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "pgd": lambda: against_torchattacks(folder, model, batch, runs),
        "universal": lambda: {
            "guard": universal(model, PROMPTS, runs),
            "mostly_tower": universal(mostly_tower(model), PROMPTS, runs),
        },
        "text": lambda: candidates_behind_prefix(shorter(model), CANDIDATES, runs),
        "mbat": lambda: step_costs(model, batch, KS, runs),
    }
    return {name: measures[name]() for name in NAMES if name in names}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown; a measurement that was left out has no row."""
    rows = [
        "| work | instead | theirs | this package | ratio (low to high) | FLOPs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    if pgd := found.get("pgd"):
        seconds, floor = pgd["seconds"], f"{pgd['gflop']:.0f} GFLOP, {pgd['floor_seconds']:.3g} s"
        for name, more in (("", ""), ("_random", ", random start")):
            row = f"PGD-10{more}", "torchattacks", seconds[f"torch{name}"], seconds[f"jax{name}"]
            rows.append(_row(*row, pgd[f"ratio{name}"], floor))
        share, rate = pgd["share"], pgd["share_of_matmul_rate"]
        notes.append(
            f"PGD: {share['gradients']:.0%} of it are its ten gradients, of which forward passes "
            f"{share['forward']:.0%}; {rate['torch']:.0%} and {rate['jax']:.0%} of the matmul "
            f"rate, {pgd['matmul_gflops']:.0f} GFLOP/s."
        )
    for one in found.get("universal", {}).values():
        seconds, n = one["seconds"], one["prompts"]
        for name, title in (("shared", "tower once"), ("prefix", "all up to the prompt once")):
            row = f"{n} prompts, {title}", "a copy each", seconds["repeated"], seconds[name]
            rows.append(_row(*row, one["ratio"][name], f"1 / {one['ratio_of_flops'][name]:.2f}"))
        notes.append(f"{n} prompts: {one['shape']}.")
    if text := found.get("text"):
        seconds, tokens = text["seconds"], text["tokens"]
        title = f"{text['candidates']} candidates, {tokens['suffix']} behind {tokens['prompt']}"
        for name, when in (("cached", "first step"), ("later", "later steps")):
            row = f"{title}, {when}", "full forward", seconds["full"], seconds[name]
            rows.append(_row(*row, text["ratio"][name], f"1 / {text['ratio_of_flops'][name]:.2f}"))
    parts = ["\n".join(rows)] if len(rows) > 2 else []
    if mbat := found.get("mbat"):
        costs = (f"{name[1:]}: {_spread(cost)}" for name, cost in mbat["cost"].items())
        notes.append(
            f"MBAT's step in clean steps of {mbat['seconds']['clean']:.3g} s, by inner steps: "
            f"{', '.join(costs)}. An inner step is {mbat['inner_step']:.2f} and the rest "
            f"{mbat['the_rest']:.2f}; by FLOPs, 1 and 2."
        )
    return "\n\n".join([*parts, *notes])


def _row(
    work: str, title: str, theirs: float, ours: float, ratio: dict[str, float], flops: str
) -> str:
    seconds = f"{theirs:.3g} s | {ours:.3g} s"
    return f"| {work} | {title} | {seconds} | {_spread(ratio)} | {flops} |"


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
