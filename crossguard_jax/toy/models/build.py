"""``crossguard toy build``: trains the small models anew and writes them as Hub folders.

Every training goes through the one loop, so that a build that was killed goes on where it was.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.configs import MODELS, read_config
from crossguard_jax.hf.export import save_model
from crossguard_jax.hf.load import load_model
from crossguard_jax.io import jsonl
from crossguard_jax.nn.clip import ClipConfig
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.toy.models import folders, lessons, measure, pretrain, texts
from crossguard_jax.toy.models.batches import Numbered
from crossguard_jax.toy.world.sources import examples
from crossguard_jax.train.loop import Schedule, train
from crossguard_jax.train.step import init_state, make_step

SEED = 0


@dataclass(frozen=True)
class Lesson:
    """One training run of the build.

    Attributes:
        makes: the folders that come of it.
        steps: optimizer steps of each of its stages; what a stage leaves, the next goes on with.
        learning_rate: the kernels' peak; half of it after the first stage.
        rows: examples that the batches are drawn from; scenes for the base.
    """

    makes: tuple[str, ...]
    steps: tuple[int, ...]
    learning_rate: float
    rows: int


LESSONS: dict[str, Lesson] = {
    "base": Lesson(("clip", "llava"), (2_600, 1_400, 700, 200), 4e-3, 60_000),
    "safety": Lesson(("safety",), (1_000,), 5e-3, 24_000),
    "rewriter": Lesson(("rewriter",), (800,), 5e-3, 24_000),
    "sentence": Lesson(("sentence",), (1_000,), 5e-3, 24_000),
}
WARMUP = 100

Loss = Callable[[Any, Any], tuple[Any, Any]]


def main(args: argparse.Namespace) -> None:
    """Builds the models.

    Args:
        args: ``out`` (a run's folder), ``models`` (where the Hub folders go, by default in
            ``out``), ``only`` (names of lessons, all if empty) and ``steps`` (a factor on every
            stage's length, 1 for the shipped models).
    """
    out = Path(args.out)
    folder = Path(args.models) if args.models else out / "models"
    names = args.only or list(LESSONS)
    for name in names:
        if name not in LESSONS:
            raise UserError(f"--only {name!r}: there are {', '.join(LESSONS)}")
    for name in names:
        _learn(name, LESSONS[name], out, folder, args.steps)
    write_manifest(out, folder)
    print(f"{folder}: {', '.join(sorted(p.parent.name for p in folder.glob('*/config.json')))}")


def _learn(name: str, lesson: Lesson, out: Path, folder: Path, factor: float) -> None:
    """Trains, writes and measures what comes of one lesson, unless that is done already."""
    steps = [max(round(n * factor), WARMUP + 1) for n in lesson.steps]
    note = out / f"{name}.json"
    identity = {"lesson": name, "steps": steps, "rows": lesson.rows, "seed": SEED}
    written = all((folder / part_name / "model.safetensors").exists() for part_name in lesson.makes)
    if written and _done(out, name) and json.loads(note.read_text())["identity"] == identity:
        return
    began = time.monotonic()
    for part_name in lesson.makes:
        folders.write_skeleton(part_name, folder / part_name)
    model, loss, draws = _recipe(name, lesson, folder)
    graphdef, weights = nnx.split(model, graph=False)

    def of_state(state: Any, frozen: Any, batch: Any, key: Any) -> Any:
        return loss(nnx.merge(graphdef, state), batch)

    for stage, (n_steps, draw) in enumerate(zip(steps, draws, strict=True)):
        adam = optimizer(lesson.learning_rate / (2 if stage else 1), n_steps)
        weights = train(
            init_state(weights, adam, SEED),
            make_step(of_state, adam),
            None,
            Numbered(draw, SEED + stage),
            Schedule(n_steps, save_every=200, log_every=50),
            out / "training" / (name if stage == 0 else f"{name}-{stage + 1}"),
            identity=identity,
            name=f"toy {name}, {stage + 1} of {len(steps)}",
        ).trainable
    trained: Any = nnx.merge(graphdef, weights)
    parts: dict[str, Any] = (
        {"clip": trained.clip(), "llava": trained.llava} if name == "base" else {name: trained}
    )
    for part_name, part in parts.items():
        save_model(part, folder / part_name, folder / part_name, dtype="bfloat16")
    minutes = (time.monotonic() - began) / 60
    loaded = {part_name: load_model(folder / part_name) for part_name in lesson.makes}
    note.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"identity": identity, "minutes": round(minutes, 1), "measured": {}}
    for part_name, part in loaded.items():
        record["measured"][part_name] = measure.MEASURES[part_name](part)
    jsonl.write_atomic(note, json.dumps(record, indent=2).encode())


def _recipe(name: str, lesson: Lesson, folder: Path) -> tuple[nnx.Module, Loss, Any]:
    """``(model, loss, draws)`` of a lesson, one draw a stage."""
    key = jax.random.key(SEED)
    if name == "base":
        llava, clip = (read_config(folder / part_name)[1] for part_name in ("llava", "clip"))
        assert isinstance(llava, LlavaConfig) and isinstance(clip, ClipConfig)
        drawn = lessons.Lessons(SEED, lesson.rows)
        draws = [functools.partial(drawn.draw, stage=stage) for stage in range(len(lesson.steps))]
        return pretrain.Base(llava, clip, key), pretrain.base_loss, draws
    family, config = read_config(folder / name)
    model = MODELS[family](config, key)
    if name == "safety":
        judged = examples("text_safety", "train", lesson.rows, SEED)
        return model, texts.causal_loss, [texts.Drawn(judged, texts.safety_rows).draw]
    pairs = examples("paraphrases", "train", lesson.rows, SEED)
    if name == "rewriter":
        return model, texts.causal_loss, [texts.Rewritings(pairs).draw]
    return model, texts.sentence_loss, [texts.Sayings(pairs).draw]


def optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Muon on the kernels (arXiv 2502.16982's scale), AdamW on the rest; warm-up, cosine."""

    def dimensions(weights: Any) -> Any:
        # Kernels are [in, out], with a stack's axis in front where there is one.
        def one(path: Any, x: Any) -> MuonDimensionNumbers | None:
            kernel = "kernel" in jax.tree_util.keystr(path)
            return MuonDimensionNumbers(x.ndim - 2, x.ndim - 1) if kernel else None

        return jax.tree_util.tree_map_with_path(one, weights)

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, WARMUP, steps, 0.02 * peak)

    return muon(
        schedule(learning_rate),
        consistent_rms=0.2,
        weight_decay=0.02,
        adam_b2=0.98,
        adam_learning_rate=schedule(0.6 * learning_rate),
        muon_weight_dimension_numbers=dimensions,
    )


def write_manifest(out: Path, folder: Path) -> None:
    """``manifest.json``: how the folders were made, what they can do, and every file's hash.

    Minutes are of each lesson's last start, with the measuring left out.
    """
    notes = {n: json.loads((out / f"{n}.json").read_text()) for n in LESSONS if _done(out, n)}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    manifest = {
        "command": "crossguard toy build",
        "lessons": {n: note["identity"] for n, note in notes.items()},
        "minutes": {n: note["minutes"] for n, note in notes.items()},
        "measured": {k: v for note in notes.values() for k, v in note["measured"].items()},
        "sha256": {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files},
    }
    jsonl.write_atomic(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def _done(out: Path, name: str) -> bool:
    return (out / f"{name}.json").exists()
