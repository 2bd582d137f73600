"""Runs a guard over benchmarks: records in, scored rows out."""

from collections.abc import Mapping, Sequence

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import LeftOut, Record, rejection
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
    left_out: LeftOut | None = None,
) -> ScoredRows:
    """Scores every record of every benchmark.

    Args:
        guard: the system.
        benchmarks: records by the benchmark's name; their labels are the guard's label words.
        name: for the progress line.
        batch_size: rows to a forward pass.
        left_out: takes the records that are of no use: the guard cannot score them, or their label
            is none of its words.

    Raises:
        UserError: there is such a record, and no ``left_out``.
    """
    prompt = guard.settings.prompt
    words = (prompt.negative, prompt.positive)
    rows = []
    total = sum(len(records) for records in benchmarks.values())
    with Progress(f"scoring with {name}", total) as progress:
        for benchmark, records in benchmarks.items():
            for start in range(0, len(records), WINDOW):
                window = [records[i] for i in range(start, min(start + WINDOW, len(records)))]
                labelled = [record for record in window if record.label in words]
                for record in window:
                    if record.label not in words:
                        expected = " or ".join(map(repr, words))
                        reason = f"label {short(repr(record.label))} is not {expected}; mend it"
                        _leave_out(record, UserError(reason), name, left_out)
                verdicts = guard.score_each(
                    [record.images for record in labelled],
                    [record.text for record in labelled],
                    batch_size=batch_size,
                )
                for record, verdict in zip(labelled, verdicts, strict=True):
                    if isinstance(verdict, UserError):
                        _leave_out(record, verdict, name, left_out)
                        continue
                    rows.append(
                        {
                            "id": record.id,
                            "benchmark": benchmark,
                            "category": record.category,
                            "label": ("safe", "unsafe")[record.label == prompt.positive],
                            "p_unsafe": verdict.p_unsafe,
                        }
                    )
                progress.update(len(window))
    return ScoredRows.from_rows(rows)


def _leave_out(record: Record, why: UserError, name: str, left_out: LeftOut | None) -> None:
    row = rejection(record, f"{name}: {why}")
    if left_out is None:
        raise UserError(f"{row.file}, row {row.row} ({short(record.id)}): {why}") from why
    left_out.add(row)
