"""``crossguard toy tasks``: captions and retrieval, of models as they are and immunized.

A LLaVA that describes pictures and a CLIP that finds their captions, undefended, with FARE's tower
and with all of CMAI (`configs/cmai.py`), by the same rows and attacks. CMAI's rows with its check
are attacked by who knows of it; without it, its model alone is measured.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from crossguard_jax.cmai.folders import CHECK, FILE, is_immunized
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import load_config
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.tasks.attack import Attack
from crossguard_jax.evals.tasks.evaluate import Asking, evaluate_tasks
from crossguard_jax.evals.tasks.rows import Benchmark
from crossguard_jax.report.blocks import Section
from crossguard_jax.report.report import Report
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.world.examples import to_record
from crossguard_jax.toy.world.sources import examples
from crossguard_jax.toy.world.vqa import caption

TASKS: Mapping[str, str] = {"captions": "toy://llava", "retrieval": "toy://clip"}
"""What is asked, and of which model."""

SYSTEMS: Mapping[str, str] = {"fare": "fare", "cmai": "tiny"}
"""What is trained, and by which variant of the task's configuration."""

CAPTIONS = 5
RADII = (4 / 255, 8 / 255)
ATTACK = Attack(RADII, name="selective", steps=10, restarts=1)


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the figures, and leaves a report a seed."""
    for seed in args.seeds:
        folder = Path(args.out) / str(seed)
        with LeftOut(folder / "rejected.jsonl") as left_out:
            sections = [
                _measured(folder, task, seed, args.steps, args.rows, left_out)
                for task in args.only or TASKS
            ]
        meta = {"rows": args.rows, "seed": seed, "steps": args.steps, "attack": vars(ATTACK)}
        page = Report("Tasks", sections, meta).write(folder)
        for section in sections:
            for name, figure in section.figures.items():
                interval = f"[{figure.low:.4f}, {figure.high:.4f}]"
                print(f"{name} {figure.value:.4f} {interval} n={figure.n}")
        print(f"report: {page}")


def rows(n: int, seed: int = 0) -> list[Record]:
    """Held-out pictures, each with what five people would say of it."""
    rng = np.random.default_rng(seed)
    records = []
    for example in examples("captions", "test", n, seed):
        assert example.scene is not None
        captions = [caption(rng, example.scene) for _ in range(CAPTIONS)]
        record = to_record(example)
        provenance = {**record.provenance, "captions": "\n".join(captions)}
        records.append(Record(record.id, record.images, captions[0], provenance=provenance))
    return records


def short(task: str, variant: str, seed: int, factor: float) -> ConfigDict:
    """A configuration with ``factor`` times its steps, each small enough for one core."""
    name = f"{task}_{variant}"
    config = load_config(f"configs/cmai.py:{name}", [f"--config.train.seed={seed}"])
    steps = max(int(factor * config.train.steps), config.optim.warmup_steps + 1)
    config.train.update({"steps": steps, "save_every": steps, "batch_size": 16})
    config.cmcv.train.batch_size = 32
    config.mbat.steps = 2
    return config


def _measured(
    folder: Path, task: str, seed: int, factor: float, n: int, left_out: LeftOut
) -> Section:
    """The section of a task; models that an earlier run trained are taken as they are."""
    models = [f"none={TASKS[task]}"]
    for name, variant in SYSTEMS.items():
        own = folder / task / name
        if not is_immunized(own / "model"):
            done: Any = immunize(short(task, variant, seed, factor), own, {SOURCE: read})
            done.save(own / "model")
        models.append(f"{name}={own / 'model'}")
    alone = folder / task / "alone"
    if not alone.is_dir():
        without = shutil.ignore_patterns(FILE, CHECK)
        shutil.copytree(folder / task / "cmai" / "model", alone, ignore=without)
    models.append(f"cmai_alone={alone}")
    asking = Asking(question="{text}", caption="describe the picture.", caption_tokens=40)
    benchmarks = {task: Benchmark("captions", rows(n, seed))}
    return evaluate_tasks(models, benchmarks, left_out, ATTACK, asking)
