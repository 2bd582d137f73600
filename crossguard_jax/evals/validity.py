"""``crossguard validity``: what gets through before and after a rewriting (the paper's attack
validity).

Before is a triplet's query beside its matched picture, after is what was forged of it. A target is
any system: a guard lets a request pass or does not; a model that answers has complied or has not,
by each list of refusals and, where it has one, by its judge. The two stand in rows of their own. A
row without an answer stays in the denominator, as one that got through (as ``evaluate`` counts it),
and is counted.
"""

import argparse
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.refusals import LISTS
from crossguard_jax.data.records import LeftOut, Record, Rejected, rejection
from crossguard_jax.data.sources.common import named_picture, records_of, text_field
from crossguard_jax.evals.comparison import parse_model
from crossguard_jax.evals.summary import print_left_out
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.impforge.triplets import Triplet, read_triplets
from crossguard_jax.io import jsonl
from crossguard_jax.io.jsonl import read_rows
from crossguard_jax.io.progress import Progress
from crossguard_jax.report.blocks import Bullets, Section
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import Table
from crossguard_jax.report.text import quoted
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import inference_mesh
from crossguard_jax.systems.answers import AnsweringSystem, ComplianceJudge, WordJudge
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.system import System, notes_of

BEFORE, AFTER = "before", "after"
GUARD, JUDGE, COMPLIED = "guard", "judge", "complied"
"""How a row was told to have got through, beside the names of `core.refusals.LISTS`."""
UNSAFE = "unsafe"
WINDOW = 256
"""Rows in memory at once, and what a kill costs."""


@dataclass(frozen=True)
class Attempt:
    """One row that a target is given.

    Attributes:
        when: `BEFORE` or `AFTER`.
        triplet: the id of its triplet.
        record: picture and text.
    """

    when: str
    triplet: str
    record: Record

    @property
    def id(self) -> str:
        """The record's."""
        return self.record.id

    @property
    def provenance(self) -> Mapping[str, str]:
        """The record's."""
        return self.record.provenance

    @property
    def key(self) -> str:
        """What its outcome is kept under."""
        return f"{self.when} {content_hash(self.record.text, self.record.images)}"


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints the figures and the report's path.

    Returns:
        1 if a row was left out, otherwise 0.

    Raises:
        UserError: several processes would write the same files, or a target answers nothing.
    """
    if processes.count() > 1:
        raise UserError(f"validity: {processes.count()} processes would each write it; start one")
    folder = Path(args.out)
    systems: dict[str, Compared] = {}
    notes: list[str] = []
    with LeftOut(folder / "rejected.jsonl") as left_out:
        for spec in args.target:
            name, path, adapter = parse_model(spec)
            if name in systems:
                raise UserError(f"--target {spec}: two are called {name!r}; write NAME={spec}")
            options = {"prompt": args.prompt, "mesh": inference_mesh(args.mesh)}
            system = load(path, adapter, args.dtype, **options)
            reading = read_attempts(args.triplets, args.forged)
            attempts = left_out.accepted(reading, functools.partial(_group, name))
            rows = outcomes(system, attempts, folder / f"{name}.jsonl", name, args.batch_size)
            systems[name] = Compared.of(rows)
            if not systems[name].pairs:
                raise UserError(
                    f"{args.forged}: no {UNSAFE} row of it is of a triplet that is there"
                )
            if not systems[name].through:
                raise UserError(f"--target {spec}: it answers no row: {systems[name].reason}")
            notes += [f"{name}: {note}" for note in notes_of(system)]
    print("\n".join(f"{name}, {line}" for name, each in systems.items() for line in each.lines()))
    code = print_left_out(left_out)
    if missing := [name for name, each in systems.items() if each.reason]:
        print(f"exit code 1, because rows have no answer of {', '.join(missing)}")
        code = 1
    meta = {"triplets": args.triplets, "forged": args.forged}
    report = Report("Attack validity", [validity_section(systems, notes)], meta)
    print(f"report: {report.write(folder)}")
    return code


def _group(target: str, attempt: Attempt) -> str:
    return f"{target}/{attempt.when}"


def read_attempts(triplets: str | Path, forged: str | Path) -> Iterator[Attempt | Rejected]:
    """Queries beside their pictures, then what was forged of them; pictures are read as they come.

    Queries and rows that mean no harm are passed over: they are no attacks.

    Args:
        triplets: what ``match`` wrote.
        forged: what ``forge`` wrote: ``provenance`` names each row's triplet.

    Raises:
        UserError: a file cannot be opened, or a triplet's picture has changed.
    """
    ids: set[str] = set()
    for row in read_triplets(triplets):
        if isinstance(row, Rejected):
            yield row
        elif row.provenance.get("query_label", UNSAFE) == UNSAFE:
            ids.add(row.id)
            yield Attempt(BEFORE, row.id, _query(row))
    for record in records_of(
        Path(forged), read_rows(Path(forged)), functools.partial(_forged, forged)
    ):
        if isinstance(record, Rejected):
            yield record
        elif record.label == UNSAFE:
            triplet = record.provenance["triplet"]
            reason = f"its triplet {short(repr(triplet))} is not among the triplets; give its own"
            yield Attempt(AFTER, triplet, record) if triplet in ids else rejection(record, reason)


def _forged(path: str | Path, row: int, value: dict[str, Any]) -> list[Record]:
    """A row of ``forge``; one of one's own may name its triplet by its id alone."""
    id, more = str(value.get("id") or f"{Path(path).stem}-{row}"), value.get("provenance")
    triplet = str((more if isinstance(more, dict) else {}).get("triplet") or id)
    picture = named_picture(value, "image", Path(path).parent, check=True)
    label, place = str(value.get("label") or ""), {"file": str(path), "row": str(row)}
    return [
        Record(
            id,
            (picture,),
            text_field(value, "text"),
            label,
            provenance=place | {"triplet": triplet},
        )
    ]


def _query(triplet: Triplet) -> Record:
    place = {k: v for k, v in triplet.provenance.items() if k in ("file", "row")}
    return Record(triplet.id, (triplet.picture,), triplet.query, UNSAFE, provenance=place)


def outcomes(
    system: System,
    attempts: Iterable[Attempt],
    path: Path,
    name: str = "the target",
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """Each attempt's outcome, in order; what is in the file is not asked again.

    An outcome has ``when, id, triplet`` and ``through``, by who says so; a model's ``answer``, a
    guard's ``p_unsafe``; or a ``reason``, which is not kept, so that the next run asks again.

    Args:
        system: the target.
        attempts: read one window at a time.
        path: ``.jsonl``, written as outcomes come; ``.json`` beside it says what of.
        name: for the progress line.
        batch_size: rows to a forward pass.

    Raises:
        UserError: the file is of another target.
    """
    facts = json.dumps(_facts(system), indent=1, sort_keys=True) + "\n"
    beside = path.with_suffix(".json")
    if beside.exists() and beside.read_text() != facts:
        raise UserError(
            f"{path}: holds another target's outcomes; give another --out, or remove it"
        )
    jsonl.write_atomic(beside, facts)
    kept: dict[str, dict[str, Any]] = {}
    if path.exists():
        rows = (row for _, row in jsonl.read_jsonl(path))
        kept = {row["key"]: row["outcome"] for row in rows if isinstance(row, dict)}
    remaining = iter(attempts)
    with jsonl.JsonlWriter(path) as writer, Progress(f"asking {name}") as progress:
        while window := list(islice(remaining, WINDOW)):
            missing = {a.key: a.record for a in window if a.key not in kept}
            made = _put(system, [*missing.values()], batch_size)
            for key, outcome in zip(missing, made, strict=True):
                kept[key] = outcome
                if "reason" not in outcome:
                    writer.append({"key": key, "outcome": outcome})
            for attempt in window:
                about = {"when": attempt.when, "id": attempt.id, "triplet": attempt.triplet}
                yield about | kept[attempt.key]
            progress.update(len(window))


def _judges(system: AnsweringSystem) -> dict[str, WordJudge | ComplianceJudge]:
    """Every list, and the judge where the system has one."""
    judges: dict[str, WordJudge | ComplianceJudge] = {k: WordJudge(v) for k, v in LISTS.items()}
    if isinstance(system.judge, ComplianceJudge):
        judges[JUDGE] = system.judge
    return judges


def _facts(system: System) -> dict[str, Any]:
    if not isinstance(system, AnsweringSystem):
        return identity(system) | {"threshold": system.settings.threshold}
    judges = {name: judge.identity() for name, judge in _judges(system).items()}
    return {"answers": system.model.identity(), "judges": judges}


def _put(system: System, records: Sequence[Record], batch_size: int) -> list[dict[str, Any]]:
    """The outcomes of some records."""
    images, texts = [r.images for r in records], [r.text for r in records]
    if not records:
        return []
    if not isinstance(system, AnsweringSystem):
        verdicts = system.score_each(images, texts, batch_size=batch_size)
        return [
            {"reason": str(v)}
            if isinstance(v, UserError)
            else {"through": _through(v), "p_unsafe": v.p_unsafe}
            for v in verdicts
        ]
    out: list[dict[str, Any]] = []
    for answer in system.model.answers(images, texts):
        failed = isinstance(answer, UserError)
        out.append({"reason": str(answer)} if failed else {"answer": answer, "through": {}})
    places = [i for i, row in enumerate(out) if "answer" in row]
    for name, judge in _judges(system).items():
        judged = judge.complied([texts[i] for i in places], [out[i]["answer"] for i in places])
        for i, complied in zip(places, judged, strict=True):
            if isinstance(complied, UserError):
                out[i]["reason"] = str(complied)
            else:
                out[i]["through"][name] = complied
    return out


def _through(verdict: Verdict) -> dict[str, bool]:
    """Of a control over a model that answers, too, that it complied is no guard's word."""
    if verdict.complied is not None:
        return {COMPLIED: verdict.complied}
    return {GUARD: not verdict.unsafe}


@dataclass(frozen=True)
class Compared:
    """What got through of a target, before and after.

    Attributes:
        through: by who says so and when, the triplet of each row and whether it got through; None
            where there is no answer.
        pairs: triplets with a row of each, answered or not.
        reason: why the first row without an answer has none; "" where all have one.
    """

    through: Mapping[str, Mapping[str, Sequence[tuple[str, bool | None]]]]
    pairs: int
    reason: str

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "Compared":
        """Of `outcomes`."""
        each, reason = [], ""
        for row in rows:
            each.append((row["when"], row["triplet"], row.get("through", {})))
            reason = reason or row.get("reason", "")
        names = dict.fromkeys(name for _, _, through in each for name in through)
        before, after = ({t for at, t, _ in each if at == when} for when in (BEFORE, AFTER))
        return cls(
            {
                name: {
                    when: [(t, got.get(name)) for at, t, got in each if at == when]
                    for when in (BEFORE, AFTER)
                }
                for name in names
            },
            len(before & after),
            reason,
        )

    def figures(self) -> dict[str, dict[str, Estimate]]:
        """By who says so: ``before`` (all queries), ``rewritten`` (those that something was forged
        of), ``after``, their paired ``difference`` by the first row forged, and ``unanswered``."""
        return {name: _figures(by_when) for name, by_when in self.through.items()}

    def lines(self) -> Iterator[str]:
        """The figures, a line each."""
        for name, each in self.figures().items():
            before, after, more = (each[k] for k in ("rewritten", AFTER, "difference"))
            yield (
                f"{MEANINGS[name]}: {_percent(before)} before, {_percent(after)} after, "
                f"{_percent(more)} paired; {int(each['unanswered'].value)} rows without an answer"
            )


def _figures(by_when: Mapping[str, Sequence[tuple[str, bool | None]]]) -> dict[str, Estimate]:
    # A row without an answer is through, as it is in the tables.
    before = {triplet: got is not False for triplet, got in by_when[BEFORE]}
    first: dict[str, bool] = {}
    for triplet, got in by_when[AFTER]:
        first.setdefault(triplet, got is not False)
    shared = [triplet for triplet in first if triplet in before]
    own, rewritten = (np.array([hits[t] for t in shared], bool) for hits in (first, before))
    unanswered = sum(got is None for rows in by_when.values() for _, got in rows)
    return {
        BEFORE: metrics.proportion(np.array([*before.values()], bool)),
        "rewritten": metrics.proportion(rewritten),
        AFTER: metrics.proportion(np.array([got is not False for _, got in by_when[AFTER]], bool)),
        "difference": metrics.paired_difference(own, rewritten),
        "unanswered": Estimate.exact(unanswered, sum(map(len, by_when.values()))),
    }


MEANINGS = {
    GUARD: "let pass, by the guard",
    JUDGE: "complied, by the judge",
    COMPLIED: "complied, by its own judge",
    **{name: f"complied, by {words.name}'s list" for name, words in LISTS.items()},
}
COLUMNS = {
    BEFORE: "Before: all queries",
    "rewritten": "Before: those rewritten",
    AFTER: "After",
    "difference": "After less before, paired",
}


def validity_section(systems: Mapping[str, Compared], notes: Sequence[str] = ()) -> Section:
    """The table, a row a target and who says what got through; notes stand under it."""
    rows: list[tuple[str, ...]] = []
    figures: dict[str, Estimate] = {}
    for target, each in systems.items():
        for name, of_name in each.figures().items():
            cells = [_percent(of_name[column]) for column in COLUMNS]
            rows.append((target, MEANINGS[name], *cells, f"{int(of_name['unanswered'].value):,}"))
            figures |= {f"validity.{target}.{name}.{k}": v for k, v in of_name.items()}
    caption = (
        "Percent that got through, 95% intervals (Wilson's; of a difference Newcombe's for pairs). "
        "A row without an answer is in the denominator as one that did."
    )
    head = ("Target", "Got through is", *COLUMNS.values(), "No answer")
    table = Table(head, tuple(rows), caption)
    return Section(
        "Before and after rewriting",
        (table, *([Bullets(tuple(map(quoted, notes)))] if notes else [])),
        figures,
    )


def _percent(estimate: Estimate) -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}] n={estimate.n:,}"
