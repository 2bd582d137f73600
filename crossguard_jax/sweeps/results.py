"""What verbs leave in their folders, as figures by dotted name."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.io.jsonl import read_jsonl

REPORT, CARD, METRICS = "report.json", "data_card.json", "metrics.jsonl"


def figures_of(folder: Path) -> dict[str, Estimate]:
    """A verb's figures: its report's, or those of what it trained and forged.

    A report's keep their names and intervals. A run's are the last of each metric that was logged
    (``eval.auroc``), a rewriter's with ``rewriter.`` before it; a forged set's are of its card
    (``forged.kept.unsafe``). A metric that is no number is left out.
    """
    if (report := folder / REPORT).exists():
        entries = json.loads(report.read_bytes())
        return {name: Estimate.from_dict(e) for name, e in entries.items() if name != "meta"}
    figures = dict(_metrics(folder / METRICS))
    figures |= {f"rewriter.{k}": v for k, v in _metrics(folder / "rewriter" / METRICS)}
    if (card := folder / CARD).exists():
        shown = {k: json.loads(card.read_bytes()).get(k, {}) for k in ("kept", "diversity")}
        figures |= {f"forged.{name}": value for name, value in _numbers(shown)}
    return figures


def _metrics(log: Path) -> Iterator[tuple[str, Estimate]]:
    if not log.exists():
        return
    last: dict[str, Any] = {}
    for _, row in read_jsonl(log):
        if isinstance(row, Mapping):
            last |= {k: v for k, v in row.items() if k != "step"}
    yield from _numbers({name.replace("/", "."): value for name, value in last.items()})


def _numbers(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Estimate]]:
    for name, inner in value.items():
        here = f"{path}{name}"
        if isinstance(inner, Mapping):
            yield from _numbers(inner, f"{here}.")
        elif isinstance(inner, int | float) and math.isfinite(inner):
            yield here, Estimate.exact(inner)
