"""``crossguard toy why``: whether explanations of unsafe verdicts are right, in the small world.

The world knows which thing of a picture decides, what kind of harm a row is of, and that an
implicit row is unsafe in combination only. The guard is quickstart's, so a seed is that of what is
fitted to it and of the test rows.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate, proportion
from crossguard_jax.evals.why import category_figures, fit
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.reasons import Reasons, category_states
from crossguard_jax.guard.why import Explainer
from crossguard_jax.report.heatmaps import Box, patch_box
from crossguard_jax.toy.tables import cells
from crossguard_jax.toy.world.examples import WorldExample, to_record
from crossguard_jax.toy.world.scenes import SIDE, without
from crossguard_jax.toy.world.sources import examples, records

ROWS: Mapping[str, str] = {
    "implicit": "Implicit, known pairs",
    "implicit_heldout": "Implicit, new pairs",
    "explicit_text": "Explicit text",
    "explicit_picture": "Explicit picture",
    "typographic": "Words in the picture",
}
COLUMNS: Mapping[str, str] = {
    "flagged": "flagged",
    "joint": "of those in combination only",
    "joint_of_all": "in combination only, of all unsafe",
    "category": "category right",
}
PLACES: Mapping[str, str] = {
    "peak": "highest patch in the deciding box",
    "occlusion": "by hiding patches, in it",
    "area": "the box's share of the picture",
    "centre": "the picture's centre in it",
}
FITTED: Mapping[str, str] = {
    "accuracy": "category right, rows like those learned from",
    "ece": "ECE of its probability",
    "test_accuracy": "category right, test rows",
    "test_ece": "ECE of its probability, test rows",
    "explicit": "in combination only, of all explicit rows flagged",
}
LEARNED = {name: 1_024 for name in ("implicit", *tuple(ROWS)[2:], "benign_vqa")}
"""Rows of each source that categories and other pictures are from: of training, not of the test."""
GUARD = Path("runs/quickstart/models/guard")
BATCH = 64


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and leaves ``why.json`` and ``why.md``."""
    folder = Path(args.out)
    by_seed = [run_cell(folder, seed, args.rows) for seed in args.seeds]
    results = _picked(by_seed, ROWS, COLUMNS)
    shown = {name: title for name, title in ROWS.items() if name != "explicit_text"}
    places = _picked(by_seed, shown, PLACES)
    whole = {"guard": [{c: cell[c] for c in FITTED} for cell in by_seed]}
    command = f"crossguard toy why --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    caption = "Percent of unsafe rows, of which flagged ones are explained"
    tables = (
        cells.shares("Test rows", ROWS, COLUMNS, results, args.seeds, caption),
        cells.shares("Test rows", shown, PLACES, places, args.seeds, "Percent of flagged rows"),
        cells.shares(
            "Guard", {"guard": "Quickstart's guard"}, FITTED, whole, args.seeds, "Percent"
        ),
    )
    figures = {
        **cells.pooled_figures(results, COLUMNS),
        **cells.pooled_figures(places, PLACES),
        **cells.pooled_figures(whole, FITTED),
    }
    cells.leave(folder, "why", command, args.seeds, figures, *tables)


def _picked(
    by_seed: Sequence[cells.Cell], names: Iterable[str], columns: Iterable[str]
) -> dict[str, list[cells.Cell]]:
    """These figures of these test sets, a cell a seed."""
    return {name: [{c: cell[f"{name}.{c}"] for c in columns} for cell in by_seed] for name in names}


def run_cell(folder: Path, seed: int, rows: int) -> cells.Cell:
    """Fits and measures for one seed, or reads what an earlier run left.

    Args:
        folder: the table's.
        seed: of what is fitted to the guard, and of the test rows.
        rows: rows of each test set, half of them unsafe.

    Raises:
        UserError: there is no guard of quickstart's.
    """
    own = folder / "cells" / str(seed)

    def make() -> Mapping[str, Estimate]:
        if not GUARD.is_dir():
            raise UserError(f"{GUARD}: not there; run crossguard quickstart first")
        return measure(Guard.from_pretrained(GUARD), rows, seed, own / "why")

    return cells.cell(own / f"figures-{rows}.json", make)


def measure(
    guard: Guard, rows: int, seed: int, folder: Path, learned: Mapping[str, int] = LEARNED
) -> dict[str, Estimate]:
    """Fits to the guard what it is explained with, and compares explanations with the truth.

    Args:
        guard: the guard.
        rows: rows of each test set, half of them unsafe.
        seed: of all rows.
        folder: takes what was fitted.
        learned: rows of each source that it is fitted to.
    """
    drawn = [r for name, n in learned.items() for r in records(name, "train", n, 100 + seed)]
    reasons = fit(guard, drawn, seed, BATCH)
    reasons.save(folder)
    figures = {name: Estimate.from_dict(value) for name, value in reasons.figures.items()}
    joint: list[np.ndarray] = []
    p: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for name in ROWS:
        test = [e for e in examples(name, "test", rows, seed) if e.label == "unsafe"]
        of_set, own_joint = _explained(guard, reasons, test)
        figures |= {f"{name}.{column}": estimate for column, estimate in of_set.items()}
        if not name.startswith("implicit"):
            joint.append(own_joint)
        of_kinds = _kinds(guard, reasons, test)
        figures[f"{name}.category"] = category_figures(*of_kinds)["accuracy"]
        p.append(of_kinds[0])
        truth.append(of_kinds[1])
    of_test = category_figures(np.concatenate(p), np.concatenate(truth))
    figures |= {f"test_{name}": estimate for name, estimate in of_test.items()}
    for name in ("ece", "test_ece"):  # no share, so that seeds have a mean and no common interval
        figures[name] = Estimate.exact(figures[name].value, figures[name].n)
    return figures | {"explicit": proportion(np.concatenate(joint))}


def _explained(
    guard: Guard, reasons: Reasons, test: Sequence[WorldExample]
) -> tuple[dict[str, Estimate], np.ndarray]:
    """The figures of one test set but for the category, and which flagged rows are joint."""
    drawn = [to_record(example) for example in test]
    images, texts = [r.images for r in drawn], [r.text for r in drawn]
    verdicts = guard.score(images, texts, batch_size=BATCH)
    explainer = Explainer(guard, guard, reasons, ("halves", "picture"))
    whys = explainer.explain(images, texts, verdicts, BATCH)
    flagged = np.array([why is not None for why in whys])
    joint = np.array([bool(why and why.joint_only) for why in whys])
    figures = {
        "flagged": proportion(flagged),
        "joint": proportion(joint[flagged]),
        "joint_of_all": proportion(joint),
    }
    shown = [
        (example, why.peaks[0])
        for example, why in zip(test, whys, strict=True)
        if why is not None and why.peaks and deciding_box(example) is not None
    ]
    boxes = [box for example, _ in shown if (box := deciding_box(example)) is not None]
    hidden = hidden_peaks(guard, [example for example, _ in shown]) if shown else []
    middle = (SIDE // 2, SIDE // 2, SIDE // 2 + 1, SIDE // 2 + 1)
    for name, places in (
        ("peak", [peak for _, peak in shown]),
        ("occlusion", hidden),
        ("centre", [middle] * len(shown)),
    ):
        inside = [_holds(box, place) for box, place in zip(boxes, places, strict=True)]
        figures[name] = proportion(np.array(inside, bool))
    areas = [(r - left) * (b - top) / SIDE**2 for left, top, r, b in boxes]
    figures["area"] = (
        Estimate.exact(float(np.mean(areas)), len(areas)) if areas else Estimate.empty()
    )
    return figures, joint[flagged]


def deciding_box(example: WorldExample) -> Box | None:
    """The pixels of what decides a row: the hazard, the words, or the thing that is referred to;
    None where the picture decides nothing."""
    scene = example.scene
    if scene is None or example.source == "explicit_text":
        return None
    if scene.words:
        bare = replace(scene, words=())
    else:
        hazard = example.source == "explicit_picture"
        bare = without(scene, 0 if hazard or example.referent is None else example.referent)
    ys, xs = np.nonzero((scene.pixels() != bare.pixels()).any(axis=-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def hidden_peaks(guard: Guard, test: Sequence[WorldExample]) -> list[Box]:
    """The patch without which, median colour in its place, each row's margin is lowest: what the
    maps are compared with."""
    side = round(guard.model.config.vision.n_patches**0.5)
    boxes = [patch_box((SIDE, SIDE), side, divmod(i, side), False) for i in range(side**2)]
    images, texts = [], []
    for example in test:
        pixels = to_pixels(example)
        for left, top, right, bottom in boxes:
            hidden = pixels.copy()
            hidden[top:bottom, left:right] = np.median(pixels.reshape(-1, 3), axis=0)
            images.append(hidden)
            texts.append(example.text)
    p = np.array([v.p_unsafe for v in guard.score(images, texts, batch_size=BATCH)])
    return [boxes[i] for i in p.reshape(len(test), -1).argmin(axis=1)]


def to_pixels(example: WorldExample) -> np.ndarray:
    """The first picture, uint8 [Y, X, 3]."""
    assert example.scene is not None
    return example.scene.pixels()


def _holds(box: Box, place: Box) -> bool:
    """Whether the middle of a place lies in a box."""
    x, y = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def _kinds(
    guard: Guard, reasons: Reasons, test: Sequence[WorldExample]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the kinds of harm [B, K], and which kind each row is of, -1 for another."""
    drawn = [to_record(example) for example in test]
    images, texts = [r.images for r in drawn], [r.text for r in drawn]
    states = category_states(guard, reasons.layers, images, texts, BATCH)
    names = list(reasons.names)
    truth = [names.index(r.category) if r.category in names else -1 for r in drawn]
    p = reasons.probabilities(np.stack([s for s in states if isinstance(s, np.ndarray)]))
    return p, np.array(truth)
