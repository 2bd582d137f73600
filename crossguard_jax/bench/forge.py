"""``crossguard bench forge``: ImpForge's own work beside what people would use for it.

A PPO iteration against TRL, the overlap reward against loops, retrieval against faiss, each
interleaved; and the shares of an iteration's parts. TRL lives in an environment of its own, whose
Python is named by ``--trl-python``; without it that one measurement is left out, and says so.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.bench.anatomy import anatomy
from crossguard_jax.bench.overlap import overlap
from crossguard_jax.bench.ppo import CONFIG, against_trl
from crossguard_jax.bench.retrieval import KS, load_faiss, retrieval
from crossguard_jax.core.errors import UserError
from crossguard_jax.io.jsonl import write_atomic

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
    faiss = load_faiss()
    torch.set_num_threads(args.threads)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "faiss": faiss.__version__}
    found: dict[str, Any] = {}
    if args.trl_python:
        with tempfile.TemporaryDirectory() as scratch:
            found["ppo"], theirs = against_trl(
                Path(scratch), args.trl_python, args.batch, args.threads, args.runs
            )
        versions |= {f"{name} (TRL's side)": version for name, version in theirs.items()}
    found["anatomy"] = anatomy(args.batch, args.runs)
    found["overlap"] = overlap(CONFIG, args.batch, args.runs)
    # A search takes minutes, and wavers less than what takes seconds.
    found["retrieval"] = retrieval(args.vectors, args.queries, args.threads, max(1, args.runs // 3))
    document = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{args.threads} threads for torch and faiss",
        "versions": versions,
        **found,
    }
    write_atomic(Path(args.out) / "bench_forge.json", json.dumps(document, indent=2) + "\n")
    print(table(found))
    if not args.trl_python:
        print(f"\n{WITHOUT_TRL}")


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown; a measurement that was left out has no row."""
    rows = []
    if ppo := found.get("ppo"):
        floor = f"{_seconds(ppo['floor_seconds'])}, {ppo['gflop']:.0f} GFLOP"
        rows.append(_row("PPO iteration", "TRL", ppo["seconds"]["trl"], ppo, floor))
    reward = found["overlap"]
    floor = f"{_seconds(reward['floor_seconds'])}, {reward['kilobytes']:.0f} kB"
    for name, title in (("loop", "a loop, CLIP a token"), ("cached", "a loop, vectors kept")):
        one = reward | reward[name]
        rows.append(_row("overlap reward", title, one["seconds"][name], one, floor))
    search = found["retrieval"]
    floor = f"{_seconds(search['floor_seconds'])}, {search['gflop']:.0f} GFLOP"
    work = f"{search['queries']:,} queries, {search['vectors']:,} vectors"
    for k in KS:
        one = search[f"top_{k}"]
        rows.append(_row(f"top-{k}: {work}", "faiss flat", one["seconds"]["faiss"], one, floor))
    parts = found["anatomy"]
    shares = ", ".join(
        f"{name} {share:.0%} ({_seconds(parts['seconds'][name])})"
        for name, share in parts["share"].items()
    )
    head = (
        "| work | instead | theirs | this package | ratio (low to high) | floor |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    return "\n".join((*head, *rows, "", f"An iteration with the real rewards: {shares}."))


def _row(work: str, title: str, theirs: float, one: dict[str, Any], floor: str) -> str:
    r = one["ratio"]
    return (
        f"| {work} | {title} | {_seconds(theirs)} | {_seconds(one['seconds']['jax'])} "
        f"| {r['median']:.3g} ({r['low']:.3g} to {r['high']:.3g}) | {floor} |"
    )


def _seconds(x: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x / 1e-6:.3g} us"
