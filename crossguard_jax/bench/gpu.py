"""``crossguard bench gpu``: the work of a LLaVA-1.5-7B with random weights on one accelerator.

Each side has a process of its own, which takes memory as it needs it, and each row is written as
soon as it is measured: ours in the order of `gpu_sizes.ROWS`, then transformers + PEFT on the same
card. Floors are what must be multiplied at least at the card's own rate on one large product; the
MFU goes by 4N a token (2N without a gradient), N all weights, as is usual.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crossguard_jax.bench.gpu_sizes import ROWS, SIZES
from crossguard_jax.bench.results import Measurements, seconds_text
from crossguard_jax.core.errors import UserError

RIVALS = {"step": "step", "score": "score", "pgd": "pgd", "ppo_2": "generate", "ppo_4": "generate"}
"""The rival's row beside each of ours that has one."""

OURS_SHARE = 0.78
"""Of the minutes, the part in which our side must be through."""

TITLES = {
    "step": "LoRA step",
    "score": "scoring",
    "pgd": "PGD-10",
    "ppo_2": "PPO iteration, 2 epochs",
    "ppo_4": "PPO iteration, 4 epochs",
    "mbat": "MBAT step",
    "prefix": "texts on one picture",
}
HEADINGS = (
    "work",
    "rows",
    "seconds",
    "rows/s",
    "of the matmul rate",
    "MFU (4N)",
    "floor",
    "memory",
    "transformers + PEFT",
)


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints a line a row, then the table; writes ``bench_gpu.json`` and ``.md``.

    Raises:
        UserError: our side ends without having measured anything.
    """
    sizes, out = SIZES[args.size], Path(args.out)
    versions = {name: version(name) for name in ("jax", "flax")}
    measurements = Measurements(out / "bench_gpu.json", args.threads, versions)
    ends = time.monotonic() + 60 * args.minutes
    rows = [row for row in ROWS if args.rows is None or row in args.rows]
    theirs = list(dict.fromkeys(RIVALS[row] for row in rows if row in RIVALS))
    measured: dict[str, dict[str, Any]] = {"ours": {}, "theirs": {}}
    for side, names, share in (("ours", rows, OURS_SHARE), ("theirs", theirs, 1.0)):
        seconds = share * (ends - time.monotonic())
        for figures in _lines(side, names, args.size, args.threads, seconds):
            name = figures.pop("row")
            if name == "card" or "seconds" in figures or name not in measured[side]:
                measured[side][name] = figures
            measurements.add(f"{side}.{name}", figures, f"{side} {name}: {json.dumps(figures)}")
    if not measured["ours"]:
        raise UserError("bench gpu: nothing was measured; what it printed above says why")
    shown = table(measured["ours"], measured["theirs"])
    (out / "bench_gpu.md").write_text(shown + "\n")
    print(f"{sizes.dtype}, {sizes.n_text} text tokens a row\n\n{shown}")


def _lines(
    side: str, rows: list[str], size: str, threads: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """What a side's process prints, as it comes; the process ends after ``seconds`` at the
    latest."""
    order = json.dumps({"sizes": asdict(SIZES[size]), "rows": rows})
    command = [sys.executable, "-m", f"crossguard_jax.bench.gpu_{side}", order]
    limits = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | limits, text=True, bufsize=1
    ) as process:
        timer = threading.Timer(max(seconds, 0.0), process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"row"'):
                    yield json.loads(line)
        finally:
            timer.cancel()
            process.kill()


def table(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Both sides' rows as Markdown, and what there is to say besides."""
    rate = ours["card"]["flops_per_second"]
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    notes = [f"{ours['card']['device']}: {rate / 1e12:.3g} TFLOP/s on one large product."]
    for name, title in TITLES.items():
        figures = ours.get(name)
        if figures is None:
            continue
        if "error" in figures:
            notes.append(f"{title}: {figures['error']}")
            continue
        seconds, n = figures["seconds"], figures["rows"]
        if "shares" in figures:
            parts = (f"{kind} {part:.0%}" for kind, part in figures["shares"].items())
            notes.append(f"{title}: {', '.join(parts)}.")
        lines.append(
            (
                title,
                str(n),
                seconds_text(seconds),
                f"{n / seconds:.3g}",
                f"{figures['flops'] / seconds / rate:.0%}",
                f"{figures['nominal_flops'] / seconds / rate:.0%}",
                f"{seconds_text(figures['flops'] / rate)}, {figures['flops'] / 1e12:.3g} TFLOP",
                f"{figures['peak_bytes'] / 2**30:.3g} GiB",
                _beside(figures, theirs.get(RIVALS.get(name, ""))),
            )
        )
    if "speedup" in ours.get("prefix", {}):
        p = ours["prefix"]
        notes.append(
            f"{p['rows']} texts on one picture take {p['speedup']:.2f} times as long one by one; "
            f"by FLOPs {p['speedup_by_flops']:.2f}."
        )
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([body, *notes])


def _beside(figures: dict[str, Any], rival: dict[str, Any] | None) -> str:
    """The rival's seconds; beside PPO, of generate() and of one forward pass, and our rollout's."""
    if not rival or "seconds" not in rival:
        return ""
    memory = f", {rival['peak_bytes'] / 2**30:.3g} GiB" if rival["peak_bytes"] else ""
    twice = ", activations twice" if rival.get("checkpointed") else ""
    if "forward_seconds" in rival:
        parts = seconds_text(rival["seconds"]), seconds_text(rival["forward_seconds"])
        rollout = seconds_text(figures["rollout_seconds"])
        return f"generate {parts[0]}, a forward pass {parts[1]} (our rollout {rollout}){memory}"
    ratio = rival["seconds"] / rival["rows"] / (figures["seconds"] / figures["rows"])
    return f"{seconds_text(rival['seconds'])}, {ratio:.2f} times ours{memory}{twice}"
