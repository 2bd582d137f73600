"""``crossguard calibrate``: fits a published detector to labelled rows, for `evaluate` and `score`.

Half of the rows choose what the detector is (layers, projection, autoencoder), the benign ones of
the other half where it cuts. No row that it is then judged on should be among them.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.comparison import parse_model
from crossguard_jax.evals.evaluate import read_benchmarks
from crossguard_jax.evals.summary import print_left_out
from crossguard_jax.guard.encoding import Pictures
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.load import folder_name
from crossguard_jax.hf.trained import TrainedRow, content_hash, write_training_data
from crossguard_jax.systems.rivals import hidden_detect, jaildam, rcs
from crossguard_jax.systems.rivals.detector import Detector
from crossguard_jax.systems.rivals.folders import save_detector

KINDS = ("hidden_detect", "rcs", "jaildam")
FPR = 0.05
"""Benign rows above the cut, where nothing else is asked for."""
NOT_APPLICABLE = "not applicable: it ranks held-out rows no better than chance"
ORDERS = 5
"""In which a memory that adapts meets the held-out rows."""


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints where the detector cuts and how it ranks the rows it did not learn.

    Returns:
        1 if a row was left out, otherwise 0.

    Raises:
        UserError: rows of one label alone, arguments of another kind of detector, or whatever the
            detector refuses.
    """
    if args.kind == "why":
        from crossguard_jax.evals import why

        return why.main(args)
    if args.concepts and args.kind != "jaildam" or args.kind == "jaildam" and not args.concepts:
        args.usage_error("--concepts goes with --as jaildam, and that needs it")
    folder = Path(args.out)
    with LeftOut(folder / "rejected.jsonl") as left_out:
        benchmarks = read_benchmarks(args.data, left_out, tested=False)
    records = [record for rows in benchmarks.values() for record in rows]
    sets = np.repeat(np.arange(len(benchmarks)), [len(rows) for rows in benchmarks.values()])
    _, path, adapter = parse_model(args.model)
    held = held_out(len(records), args.seed)
    detector = _fitted(args, path, adapter, records, sets, held)
    name = path if path.startswith("toy://") else folder_name(Path(path).resolve())
    words = detector.settings.prompt
    truth = np.array([words.target(record.label) for record in records], bool)
    figures = detector.figures(*_arrays([records[i] for i in held]), args.batch_size)
    numbers = np.array([np.nan if isinstance(x, UserError) else x for x in figures])
    auroc = metrics.auroc(numbers, truth[held])
    remark = "" if auroc.low > 0.5 else NOT_APPLICABLE
    save_detector(folder, detector, name, adapter or "", remark)
    rows = [TrainedRow(r.id, r.source, content_hash(r.text, r.images)) for r in records]
    write_training_data(folder, rows)
    cut = detector.cut
    print(f"{detector.kind}: cuts at {cut.value:.4g}, {cut.fpr:.0%} of {cut.n} benign rows above")
    print(f"auroc {auroc.value:.4f} [{auroc.low:.4f}, {auroc.high:.4f}] n={auroc.n}, held out")
    if remark:
        print(remark)
    if isinstance(detector, jaildam.JailDam):
        print(
            "".join(f"{line}\n" for line in _adapting(detector, records, truth, held, args)), end=""
        )
    code = print_left_out(left_out)
    print(f"detector: {folder}")
    return code


def _adapting(
    detector: jaildam.JailDam,
    records: Sequence[Record],
    truth: np.ndarray,
    held: np.ndarray,
    args: argparse.Namespace,
) -> Iterator[str]:
    """How its memory does that adapts behind each row, which makes verdicts depend on the order:
    as the paper has it, and as its authors' code does."""
    images, texts = _arrays([records[i] for i in held])
    each = jaildam.embed(detector.clip, images, texts, args.batch_size)
    good = [i for i, row in enumerate(each) if not isinstance(row, UserError)]
    rows = np.stack([row for row in each if not isinstance(row, UserError)])
    unsafe = truth[held][good]
    rng = np.random.default_rng([args.seed, 21])
    orders = [rng.permutation(len(rows)) for _ in range(ORDERS)]
    for form in jaildam.FORMS:
        areas = []
        for order in orders:
            errors = jaildam.adapted_errors(
                detector.memory, detector.autoencoder, rows[order], form
            )
            areas.append(metrics.auroc(np.array([*errors]), unsafe[order]).value)
        yield (
            f"with a memory that adapts ({form}): auroc {np.mean(areas):.4f}, {min(areas):.4f} to "
            f"{max(areas):.4f} over {ORDERS} orders of the rows"
        )


def held_out(n: int, seed: int) -> np.ndarray:
    """Positions of a random half of the rows, in order."""
    return np.sort(np.random.default_rng([seed, 20]).permutation(n)[: n // 2])


def _fitted(
    args: argparse.Namespace,
    path: str,
    adapter: str | None,
    records: Sequence[Record],
    sets: np.ndarray,
    held: np.ndarray,
) -> Detector:
    images, texts = _arrays(records)
    common = {"fpr": FPR if args.fpr is None else args.fpr, "batch_size": args.batch_size}
    if args.kind == "jaildam":
        settings = Settings()
        safe = [i for i, r in enumerate(records) if not settings.prompt.target(r.label)]
        kept = np.isin(safe, held)
        benign = [images[i] for i in safe], [texts[i] for i in safe]
        concepts = read_concepts(args.concepts)
        clip = load_clip(path, args.dtype)
        places = np.flatnonzero(kept)
        return jaildam.fit(clip, settings, concepts, benign, places, seed=args.seed, **common)
    prompt = args.prompt or "short"
    guard = Guard.from_pretrained(path, adapter, args.dtype, prompt=prompt, threshold=0.5)
    unsafe = np.array([guard.settings.prompt.target(record.label) for record in records], bool)
    rows = images, texts
    if args.kind == "hidden_detect":
        words = args.words or hidden_detect.WORDS
        return hidden_detect.fit(guard, rows, unsafe, held, words=words, **common)
    more = {"layer": args.layer, "rule": args.rule, "seed": args.seed}
    return rcs.fit(guard, rows, sets, unsafe, held, **more, **common)


def _arrays(records: Sequence[Record]) -> tuple[list[Pictures], list[str]]:
    return [record.images for record in records], [record.text for record in records]


def read_concepts(path: str | Path) -> list[str]:
    """Unsafe concepts: a text file with one a line, or JSON: a list, or lists by category.

    Raises:
        UserError: the file is neither, or empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--concepts {path}: {error}") from error
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.splitlines()]
        return _some(path, [line for line in lines if line])
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"--concepts {path}: no JSON ({error})") from error
    lists = list(content.values()) if isinstance(content, dict) else [content]
    concepts = [word for each in lists if isinstance(each, list) for word in each]
    if not all(isinstance(word, str) for word in concepts):
        raise UserError(f"--concepts {path}: a concept that is no text; give lists of texts")
    return _some(path, concepts)


def _some(path: Path, concepts: list[str]) -> list[str]:
    if not concepts:
        raise UserError(f"--concepts {path}: no concept in it")
    return concepts
