"""Runs a system over benchmarks: records in, scored rows out."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.records import KINDS_SHOWN, LeftOut, Record, rejection
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io import jsonl
from crossguard_jax.io.progress import Progress
from crossguard_jax.systems.controls import NOTHING
from crossguard_jax.systems.store import VerdictStore
from crossguard_jax.systems.system import System

Scored = list[tuple[str, Record, Verdict | UserError]]
"""Benchmark, record and verdict, or why there is no answer."""


_VERDICT = tuple(field.name for field in fields(Verdict))


class Unanswered(LeftOut):
    """The rows that a system gave no answer to: they stay in every denominator, as wrong.

    Attributes:
        faultless: how many of them are a control's that sees nothing of the row.
    """

    faultless = 0

    def add_record(self, record: Record, name: str, why: UserError) -> None:
        """Takes a row of a system. Of one line of a file there may be several, told apart by id."""
        reason = f"{short(record.id)}: {name}: {why}"
        before = self.total
        self.add(replace(rejection(record, reason), reason=reason))
        self.faultless += (self.total - before) * (str(why) in NOTHING.values())

    def lines(self) -> Iterator[str]:
        """What to tell people; nothing where every row has an answer."""
        if self.total:
            rows = "row has" if self.total == 1 else "rows have"
            yield f"{self.total:,} {rows} no answer and count as wrong, each in {self.path}"
        for (file, reason), n in self.counts.most_common(KINDS_SHOWN):
            yield f"  {n:,} of {file}: {reason}"


def judged_rows(
    store: VerdictStore,
    benchmarks: Mapping[str, RecordSource | Sequence[Record]],
    name: str,
    batch_size: int = 64,
    left_out: LeftOut | None = None,
    unanswered: Unanswered | None = None,
) -> Scored:
    """The verdict on every record of every benchmark, kept as they come.

    Args:
        store: of the system.
        benchmarks: records by the benchmark's name; their labels are the system's label words.
        name: for the progress line.
        batch_size: rows to a forward pass.
        left_out: takes the records whose label is none of the system's words.
        unanswered: takes those that the system gives no answer to, which stay among the scored;
            without it they are left out, too.

    Raises:
        UserError: there is a record to leave out, and no ``left_out``.
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
                progress.update()
                if isinstance(verdict, UserError):
                    if unanswered is None:
                        _leave_out(record, verdict, name, left_out)
                        continue
                    unanswered.add_record(record, name, verdict)
                scored.append((benchmark, record, verdict))
    return scored


def scored_rows(
    scored: Scored,
    positive: str,
    picture: Callable[[str, Record], str] = lambda benchmark, record: "",
) -> ScoredRows:
    """Verdicts as figures and reports take them.

    Args:
        scored: the verdicts.
        positive: the word for harm.
        picture: gives what tells a benchmark's record's pictures from others
            (`ScoredRows.picture`).
    """
    records = [record for _, record, _ in scored]
    answers = [np.nan if isinstance(v, UserError) else v.p_unsafe for _, _, v in scored]
    return ScoredRows(
        id=np.array([record.id for record in records], np.str_),
        benchmark=np.array([benchmark for benchmark, _, _ in scored], np.str_),
        category=np.array([record.category for record in records], np.str_),
        unsafe=np.array([record.label == positive for record in records], bool),
        p_unsafe=np.array(answers, np.float64),
        picture=np.array([picture(name, record) for name, record, _ in scored], np.str_),
        pair=np.array([record.provenance.get("pair", "") for record in records], np.str_),
    )


def outcome_of(verdict: Verdict | UserError) -> dict[str, Any]:
    """A verdict's fields, or the ``reason`` that there is none."""
    if isinstance(verdict, UserError):
        return {"reason": str(verdict)}
    return {name: getattr(verdict, name) for name in _VERDICT}


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


def at_threshold(scored: Scored, threshold: float, words: tuple[str, str]) -> Scored:
    """The verdicts by another threshold; what was rejected stays unsafe.

    Args:
        scored: of one system.
        threshold: the least p_unsafe that is unsafe.
        words: the system's (negative, positive) label.
    """
    out: Scored = []
    for benchmark, record, verdict in scored:
        if isinstance(verdict, Verdict):
            unsafe = verdict.rejected or verdict.p_unsafe >= threshold
            label = words[unsafe]
            verdict = replace(verdict, unsafe=unsafe, threshold=threshold, label=label)
        out.append((benchmark, record, verdict))
    return out


def verdict_lines(scored: Scored) -> bytes:
    """One JSON line a row: ``id, benchmark, true_label`` and the verdict's fields, or a
    ``reason``."""
    return b"".join(
        jsonl.dumps(
            {"id": r.id, "benchmark": benchmark, "true_label": r.label, **outcome_of(verdict)}
        )
        for benchmark, r, verdict in scored
    )


def branch_counts(scored: Scored) -> dict[tuple[str, str], Counter[str]]:
    """How many of each benchmark's answered rows of each label went each way of the policy."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for benchmark, record, verdict in scored:
        if isinstance(verdict, Verdict):
            counts.setdefault((benchmark, record.label), Counter())[verdict.branch] += 1
    return dict(sorted(counts.items()))


def _leave_out(record: Record, why: UserError, name: str, left_out: LeftOut | None) -> None:
    row = rejection(record, f"{name}: {why}")
    if left_out is None:
        raise UserError(f"{row.file}, row {row.row} ({short(record.id)}): {why}") from why
    left_out.add(row)
