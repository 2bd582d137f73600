"""``crossguard bench attacks``: what attacks and training against them cost.

PGD against torchattacks, a picture for many prompts against a copy for each, a text's candidates
behind a cached prompt against full forward passes, MBAT's step against a clean one. Everything is
compiled beforehand and timed apart, both sides are checked to find the same, and then interleaved.
The model is the one of the guard's bench, or made from it.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.bench import attacks_mbat, attacks_pgd, attacks_text, attacks_universal
from crossguard_jax.bench.attacks_mbat import step_costs
from crossguard_jax.bench.attacks_pgd import against_torchattacks
from crossguard_jax.bench.attacks_text import candidates_behind_prefix, shorter
from crossguard_jax.bench.attacks_universal import mostly_tower, universal
from crossguard_jax.bench.base import make_folder
from crossguard_jax.bench.results import Measurements
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import load_model
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
    versions = {"jax": jax.__version__, "torch": torch.__version__}
    measurements = Measurements(Path(args.out) / "bench_attacks.json", args.threads, versions)
    with tempfile.TemporaryDirectory() as scratch:
        for name, measure, shown in _measures(make_folder(Path(scratch)), args.batch, args.runs):
            if name.split(":")[0] in (args.only or NAMES):
                measurements.add(name, figures := measure(), shown(figures))


def _measures(
    folder: Path, batch: int, runs: int
) -> Iterator[tuple[str, Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]]:
    """Name, measurement and table of each; what stands before a colon is of `NAMES`."""
    model = load_model(folder)
    assert isinstance(model, Llava)
    yield "pgd", lambda: against_torchattacks(folder, model, batch, runs), attacks_pgd.shown
    yield "universal:guard", lambda: universal(model, PROMPTS, runs), attacks_universal.shown
    yield (
        "universal:mostly_tower",
        lambda: universal(mostly_tower(model), PROMPTS, runs),
        attacks_universal.shown,
    )
    yield (
        "text",
        lambda: candidates_behind_prefix(shorter(model), CANDIDATES, runs),
        attacks_text.shown,
    )
    yield "mbat", lambda: step_costs(model, batch, KS, runs), attacks_mbat.shown
