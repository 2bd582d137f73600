"""``crossguard calibrate --as why``: what explanations need of rows with labels."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.comparison import parse_model
from crossguard_jax.evals.evaluate import read_benchmarks
from crossguard_jax.evals.summary import print_left_out
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.reasons import (
    LEAST,
    Reasons,
    category_states,
    fit_categories,
    spread_layers,
)
from crossguard_jax.guard.why import Scores
from crossguard_jax.systems.load import load
from crossguard_jax.systems.why import fingerprint, guard_inside

OTHERS, CANDIDATES, TEXTS = 16, 48, 48
"""Pictures of benign rows that a text is scored beside; how many they are chosen from, by how many
unsafe rows' texts."""


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints how categories do on rows that nothing was fitted to.

    Returns:
        1 if a row was left out, otherwise 0.

    Raises:
        UserError: the model is a detector, or no benign row has a picture.
    """
    for name in ("concepts", "words", "layer", "fpr"):
        if getattr(args, name) is not None:
            args.usage_error(f"--{name} goes with no --as why")
    folder = Path(args.out)
    with LeftOut(folder / "rejected.jsonl") as left_out:
        benchmarks = read_benchmarks(args.data, left_out)
    records = [record for rows in benchmarks.values() for record in rows]
    _, path, adapter = parse_model(args.model)
    guard = guard_inside(load(path, adapter, args.dtype, prompt=args.prompt))
    if guard is None:
        raise UserError(f"--model {path}: a detector's verdicts have no model's margin to explain")
    reasons = fit(guard, records, args.seed, args.batch_size)
    reasons.save(folder)
    if reasons.names:
        n, figures = len(reasons.names), reasons.figures
        accuracy, ece = (Estimate.from_dict(figures[name]) for name in ("accuracy", "ece"))
        print(f"category: one of {n}, accuracy {_interval(accuracy)}, ECE {_interval(ece)}")
    else:
        print(f"no category has {LEAST} unsafe rows: none will be named")
    code = print_left_out(left_out)
    print(f"for --why: {folder}")
    return code


def fit(guard: Guard, records: Sequence[Record], seed: int = 0, batch_size: int = 16) -> Reasons:
    """Chooses other pictures among benign rows, and learns the categories of the unsafe ones.

    A quarter of the unsafe rows is for the figures alone.

    Args:
        guard: the model.
        records: labelled; rows of no category, and categories of few rows, teach none.
        seed: which rows are what.
        batch_size: rows to a forward pass.

    Raises:
        UserError: no benign row has one picture, or a row cannot be read.
    """
    prompt, rng = guard.settings.prompt, np.random.default_rng(seed)
    benign = [r for r in records if not prompt.target(r.label) and len(r.images) == 1]
    if not benign:
        raise UserError("--data: no benign row with one picture; give some, to set texts beside")
    candidates = [benign[i].images[0] for i in rng.permutation(len(benign))[:CANDIDATES]]
    harmful = [r for r in records if prompt.target(r.label)]
    texts = [harmful[i].text for i in rng.permutation(len(harmful))[:TEXTS]]
    pictures = telling_pictures(guard, candidates, [t for t in texts if t.strip()], batch_size)
    reasons = Reasons(pictures=pictures, guard=fingerprint(guard))
    unsafe = [record for record in harmful if record.category]
    counts = Counter(record.category for record in unsafe)
    names = tuple(sorted(name for name, n in counts.items() if n >= LEAST))
    if not names:
        return reasons
    rows = [unsafe[i] for i in rng.permutation(len(unsafe)) if unsafe[i].category in names]
    layers = spread_layers(guard.model.config.text.num_hidden_layers)
    images, texts = [r.images for r in rows], [r.text for r in rows]
    states = []
    for record, state in zip(
        rows, category_states(guard, layers, images, texts, batch_size), strict=True
    ):
        if isinstance(state, UserError):
            raise UserError(f"{record.id}: {state}") from state
        states.append(state)
    x, y = np.stack(states), np.array([names.index(record.category) for record in rows])
    last = np.arange(len(y)) % 4 == 0
    numbers, temperature = fit_categories(x[~last], y[~last], len(names))
    fitted = replace(reasons, names=names, layers=layers, numbers=numbers, temperature=temperature)
    figures = category_figures(fitted.probabilities(x[last]), y[last])
    return replace(fitted, figures={name: each.as_dict() for name, each in figures.items()})


def telling_pictures(
    system: Scores, candidates: Sequence[bytes], texts: Sequence[str], batch_size: int = 16
) -> tuple[bytes, ...]:
    """The `OTHERS` pictures beside which texts differ most, in order of drawing.

    A picture that decides by itself, such as one with kind words in it, says nothing of a text.

    Args:
        system: gives verdicts.
        candidates: encoded.
        texts: of unsafe rows.
        batch_size: rows to a forward pass.
    """
    if len(candidates) <= OTHERS or not texts:
        return tuple(candidates)
    spread = []
    for picture in candidates:
        each = system.score_each([picture] * len(texts), texts, batch_size=batch_size)
        spread.append(np.std([v.p_unsafe for v in each if not isinstance(v, UserError)]))
    best = np.argsort(-np.array(spread), kind="stable")[:OTHERS]
    return tuple(candidates[i] for i in sorted(best.tolist()))


def category_figures(p: np.ndarray, truth: np.ndarray) -> dict[str, Estimate]:
    """Accuracy, and the calibration of the likeliest category's probability.

    Args:
        p: float [B, K].
        truth: int [B].
    """
    right = p.argmax(axis=1) == truth
    return {
        "accuracy": metrics.proportion(right),
        "ece": metrics.expected_calibration_error(p.max(axis=1), right),
    }


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] n={estimate.n}"
