"""How long a system takes for a row, alone and in batches: measured once, and kept."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import Record
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.runtime import processes
from crossguard_jax.systems.store import request_key
from crossguard_jax.systems.system import System


@dataclass(frozen=True)
class Speed:
    """What timing a system gave.

    Attributes:
        seconds: of each row by itself, in order.
        batch_seconds: of the same rows in batches.
        batch_size: of those.
        device: what computed, as JAX names it.
        rows: a hash of the rows, in their order.
    """

    seconds: tuple[float, ...]
    batch_seconds: float
    batch_size: int
    device: str
    rows: str

    def figures(self) -> dict[str, Estimate]:
        """``p50`` and ``p99`` in milliseconds, the quantiles that were measured, and
        ``rows_per_second`` in batches."""
        n = len(self.seconds)
        p50, p99 = 1e3 * np.quantile(self.seconds, (0.5, 0.99), method="inverted_cdf")
        return {
            "speed.p50_ms": Estimate.exact(p50, n),
            "speed.p99_ms": Estimate.exact(p99, n),
            "speed.rows_per_second": Estimate.exact(n / max(self.batch_seconds, 1e-9), n),
        }


def measured(
    system: System, records: Sequence[Record], batch_size: int, path: Path | None
) -> Speed | None:
    """A system's speed over some rows, as it was kept where it was measured alike on them before.

    Every row is scored once before anything is timed, so that nothing compiles meanwhile.

    Args:
        system: any.
        records: rows that it can score; those that it cannot are not timed.
        batch_size: rows to a forward pass.
        path: where the speed is kept; None keeps nothing.

    Returns:
        None where it can score none of the rows, or an endpoint answers.
    """
    device, rows = jax.devices()[0].device_kind, _hash(records)
    kept = processes.by_first(lambda: _read(path))
    if kept and (kept.batch_size, kept.device, kept.rows) == (batch_size, device, rows):
        return kept
    if getattr(system, "remote", False):
        return None
    images, texts = [r.images for r in records], [r.text for r in records]
    first = system.score_each(images, texts, batch_size=batch_size)
    good = [i for i, verdict in enumerate(first) if not isinstance(verdict, UserError)]
    images, texts = [images[i] for i in good], [texts[i] for i in good]
    if not good:
        return None
    seconds = []
    for i in range(len(good)):
        for _ in range(2):  # a row alone may be another program than a batch
            began = time.perf_counter()
            system.score_each(images[i : i + 1], texts[i : i + 1], batch_size=1)
            took = time.perf_counter() - began
        seconds.append(took)
    began = time.perf_counter()
    system.score_each(images, texts, batch_size=batch_size)
    speed = Speed(tuple(seconds), time.perf_counter() - began, batch_size, device, rows)
    if path is not None:
        processes.by_first(lambda: write_atomic(path, json.dumps(asdict(speed)) + "\n"))
    return speed


def _hash(records: Sequence[Record]) -> str:
    return hashlib.sha256("\n".join(map(request_key, records)).encode()).hexdigest()


def _read(path: Path | None) -> Speed | None:
    try:
        kept = json.loads(path.read_text()) if path else None
        return Speed(**kept | {"seconds": tuple(kept["seconds"])}) if kept else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
