"""Runs a guard over benchmarks: records in, scored rows out."""

from collections.abc import Mapping, Sequence

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.guard.guard import Guard
from crossguard_jax.io.progress import Progress

WINDOW = 1_024
"""Rows scored at once; the memory that pictures take is bounded by it."""


def score_benchmarks(
    guard: Guard,
    benchmarks: Mapping[str, RecordSource | Sequence[Record]],
    name: str = "guard",
    batch_size: int = 64,
    truncate: bool = True,
) -> ScoredRows:
    """Scores every record of every benchmark.

    Args:
        guard: the system.
        benchmarks: records by the benchmark's name; their labels are the guard's label words.
        name: for the progress line.
        batch_size: rows to a forward pass.
        truncate: cut texts that do not fit.

    Raises:
        UserError: a record without a label, or one that the guard refuses.
    """
    words = guard.settings.prompt
    rows = []
    total = sum(len(records) for records in benchmarks.values())
    with Progress(f"scoring with {name}", total) as progress:
        for benchmark, records in benchmarks.items():
            for start in range(0, len(records), WINDOW):
                window = [records[i] for i in range(start, min(start + WINDOW, len(records)))]
                verdicts = guard.score(
                    [r.image for r in window],
                    [r.text for r in window],
                    batch_size=batch_size,
                    truncate=truncate,
                )
                for record, verdict in zip(window, verdicts, strict=True):
                    if record.label not in (words.negative, words.positive):
                        raise UserError(
                            f"{benchmark}: row {record.id!r} has the label {record.label!r}; "
                            f"wanted {words.negative!r} or {words.positive!r}"
                        )
                    unsafe = record.label == words.positive
                    rows.append(
                        {
                            "id": record.id,
                            "benchmark": benchmark,
                            "category": record.category,
                            "label": "unsafe" if unsafe else "safe",
                            "p_unsafe": verdict.p_unsafe,
                        }
                    )
                progress.update(len(window))
    return ScoredRows.from_rows(rows)
