"""Runs a system over benchmarks: records in, scored rows out."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import LeftOut, Record, rejection
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io import jsonl
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import processes
from crossguard_jax.systems.load import System
from crossguard_jax.systems.store import VerdictStore

Scored = list[tuple[str, Record, Verdict]]
"""Benchmark, record and verdict."""


def judged_rows(
    store: VerdictStore,
    benchmarks: Mapping[str, RecordSource | Sequence[Record]],
    name: str,
    batch_size: int = 64,
    left_out: LeftOut | None = None,
) -> Scored:
    """The verdict on every record of every benchmark.

    Args:
        store: of the system.
        benchmarks: records by the benchmark's name; their labels are the system's label words.
        name: for the progress line.
        batch_size: rows to a forward pass.
        left_out: takes the records that are of no use: the system cannot score them, or their
            label is none of its words.

    Raises:
        UserError: there is such a record, and no ``left_out``.
    """
    prompt = store.system.settings.prompt
    words = (prompt.negative, prompt.positive)
    scored: Scored = []
    total = sum(len(records) for records in benchmarks.values())
    with Progress(f"scoring with {name}", total) as progress:

        def usable(source: RecordSource | Sequence[Record]) -> Iterator[Record]:
            for i in range(len(source)):
                record = source[i]
                if record.label in words:
                    yield record
                    continue
                progress.update()
                expected = " or ".join(map(repr, words))
                reason = f"label {short(repr(record.label))} is not {expected}; mend it"
                _leave_out(record, UserError(reason), name, left_out)

        for benchmark, records in benchmarks.items():
            for record, verdict in store.verdicts(usable(records), batch_size=batch_size):
                if isinstance(verdict, UserError):
                    _leave_out(record, verdict, name, left_out)
                else:
                    scored.append((benchmark, record, verdict))
                progress.update()
    return scored


def scored_rows(scored: Scored, positive: str) -> ScoredRows:
    """Verdicts as figures and reports take them; ``positive`` is the word for harm."""
    return ScoredRows.from_rows(
        {
            "id": record.id,
            "benchmark": benchmark,
            "category": record.category,
            "label": ("safe", "unsafe")[record.label == positive],
            "p_unsafe": verdict.p_unsafe,
        }
        for benchmark, record, verdict in scored
    )


def score_benchmarks(
    system: System,
    benchmarks: Mapping[str, RecordSource | Sequence[Record]],
    name: str = "guard",
    batch_size: int = 64,
    left_out: LeftOut | None = None,
) -> ScoredRows:
    """As `judged_rows`, of a system in memory whose verdicts nobody keeps."""
    scored = judged_rows(VerdictStore(None, system), benchmarks, name, batch_size, left_out)
    return scored_rows(scored, system.settings.prompt.positive)


def write_verdicts(scored: Scored, path: str | Path) -> None:
    """One JSON line a verdict: ``id, benchmark, true_label`` and the verdict's fields.

    Of several processes the first writes.
    """
    lines = (
        jsonl.dumps({"id": r.id, "benchmark": benchmark, "true_label": r.label, **asdict(verdict)})
        for benchmark, r, verdict in scored
    )
    processes.by_first(lambda: jsonl.write_atomic(path, b"".join(lines)))


def branch_counts(scored: Scored) -> dict[tuple[str, str], Counter[str]]:
    """How many of each benchmark's rows of each label went each way of the policy."""

    def of(row: tuple[str, Record, Verdict]) -> tuple[str, str]:
        return row[0], row[1].label

    ordered = sorted(scored, key=of)
    return {
        key: Counter(verdict.branch for _, _, verdict in rows)
        for key, rows in itertools.groupby(ordered, key=of)
    }


def _leave_out(record: Record, why: UserError, name: str, left_out: LeftOut | None) -> None:
    row = rejection(record, f"{name}: {why}")
    if left_out is None:
        raise UserError(f"{row.file}, row {row.row} ({short(record.id)}): {why}") from why
    left_out.add(row)
