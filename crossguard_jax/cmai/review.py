"""The queue for human review: one JSON line a request, durable."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.io.jsonl import JsonlWriter


class ReviewQueue:
    """Appends requests to a file so that neither a kill nor a power cut loses one it has taken.

    Example:
        >>> with ReviewQueue("runs/review.jsonl") as queue:
        ...     queue.add([{"id": "a", "score": 0.12, "reason": "S_c 0.12 is below 0.3"}])
    """

    def __init__(self, path: str | Path):
        # Rows come in batches, and each batch waits for the disk once.
        self._writer = JsonlWriter(path, sync_seconds=math.inf)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, and returns when they are on the disk."""
        for row in rows:
            self._writer.append(row)
        self._writer.sync()

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        self._writer.close()

    def __enter__(self) -> "ReviewQueue":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
