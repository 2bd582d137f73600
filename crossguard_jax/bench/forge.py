"""``crossguard bench forge``: ImpForge's own work beside what people would use for it.

A PPO iteration against TRL, the overlap reward against loops, retrieval against faiss, each
interleaved; and the shares of an iteration's parts. TRL lives in an environment of its own, whose
Python is named by ``--trl-python``; without it that one measurement is left out, and says so.
"""

import argparse
import tempfile
from pathlib import Path

import jax

from crossguard_jax.bench import anatomy, overlap, ppo, retrieval
from crossguard_jax.bench.results import Measurements
from crossguard_jax.core.errors import UserError

TRL = "trl==1.12.0"
WITHOUT_TRL = f"""The PPO iteration against TRL was left out. It wants an environment of its own:
  python -m venv runs/bench/trl
  runs/bench/trl/bin/pip install torch==2.13.0 {TRL} peft
and run this again with --trl-python runs/bench/trl/bin/python."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and writes ``bench_forge.json``."""
    try:
        import torch
    except ImportError:
        raise UserError("torch is not installed: pip install -r requirements-dev.txt") from None
    faiss = retrieval.load_faiss()
    torch.set_num_threads(args.threads)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "faiss": faiss.__version__}
    measurements = Measurements(Path(args.out) / "bench_forge.json", args.threads, versions)
    if args.trl_python:
        with tempfile.TemporaryDirectory() as scratch:
            figures = ppo.against_trl(
                Path(scratch), args.trl_python, args.batch, args.threads, args.runs
            )
        measurements.add("ppo", figures, ppo.shown(figures))
    figures = anatomy.anatomy(args.batch, args.runs)
    measurements.add("anatomy", figures, anatomy.shown(figures))
    figures = overlap.overlap(ppo.CONFIG, args.batch, args.runs)
    measurements.add("overlap", figures, overlap.shown(figures))
    # A search takes minutes, and wavers less than what takes seconds.
    runs = max(1, args.runs // 3)
    figures = retrieval.retrieval(args.vectors, args.queries, args.threads, runs)
    measurements.add("retrieval", figures, retrieval.shown(figures))
    if not args.trl_python:
        print(WITHOUT_TRL)
