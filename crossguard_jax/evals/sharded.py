"""``evaluate --shards``: verdicts by whoever works on the shards, figures from the outputs.

No picture and no text is held: of a row there is what its verdict says, and the few rows that a
report shows are read again.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data import sources
from crossguard_jax.data.records import LeftOut, Record, Rejected, blanked, rejection
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.evals.evaluate import in_common, parse_model, report
from crossguard_jax.evals.scoring import Scored, scored_rows, write_verdicts
from crossguard_jax.evals.seen import apart, learned_from, seen_rows, seen_sections
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io.jsonl import RowError, read_jsonl
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.runtime.shards import (
    DEADLINE,
    ShardJob,
    ShardReport,
    read_claim,
    read_manifest,
)
from crossguard_jax.systems.sharded import FACTORY
from crossguard_jax.systems.store import store_folder

_VERDICT = tuple(Verdict.__dataclass_fields__)


def main(args: argparse.Namespace) -> int:
    """The verb's work over a manifest of tables; returns 1 if a row or a shard was left out."""
    if args.on == "array":
        args.usage_error("--on array does parts: score --shards first, then evaluate without it")
    shards, folder = read_manifest(args.shards), Path(args.out)
    judgements: dict[str, Scored] = {}
    systems: dict[str, ScoredRows] = {}
    own: dict[str, float] = {}
    learned: dict[str, set[str]] = {}
    contents: dict[tuple[str, str], str] = {}
    with LeftOut(folder / "rejected.jsonl") as left_out:
        for spec in args.model:
            name, path, adapter = parse_model(spec)
            if name in systems:
                raise UserError(f"--model: two systems are called {name!r}; write NAME=FOLDER")
            job = _job(args, path, adapter, folder / "shards" / name)
            summary = run_shards(job, shards, args.on, args.workers)
            identity, notes = read_claim(job.folder)
            negative, positive = notes["words"]
            verdicts: dict[tuple[str, str], Verdict] = {}
            rows = _rows(job, summary.reports, (negative, positive), verdicts, contents)
            judgements[name] = [
                (record.source, record, verdicts[record.source, record.id])
                for record in left_out.accepted(rows, functools.partial(_group, name))
            ]
            systems[name] = scored_rows(judgements[name], positive)
            own[name] = identity["threshold"]
            learned[name] = learned_from(notes["base"], path, adapter or path)
            if not len(systems[name]):
                raise UserError(f"--model {spec}: it can score no row; see {left_out.path}")
    for name, scored in judgements.items():
        write_verdicts(scored, folder / f"{name}.verdicts.jsonl")
    keys = set.intersection(*(set(scores.keys()) for scores in systems.values()))
    contents = {key: contents[key] for key in sorted(keys)}
    places = {
        (benchmark, record.id): record.provenance
        for benchmark, record, _ in next(iter(judgements.values()))
    }

    def lookup(benchmark: str, id: str) -> tuple[bytes | None, str]:
        at = places[benchmark, id]
        row = int(at["row"])
        (record,) = sources.read("table", at["file"], rows=(row, row))
        if isinstance(record, Rejected):
            return None, record.reason
        record = blanked(record, args.blank)
        return record.image, record.text

    seen = {name: seen_rows(words, contents) for name, words in learned.items()}
    split = apart(in_common(systems, keys), set().union(*seen.values()))
    sections = seen_sections(seen, contents)
    return report(args, left_out, judgements, split, own, sections, lookup)


def _job(args: argparse.Namespace, path: str, adapter: str | None, folder: Path) -> ShardJob:
    options = {"path": path, "adapter": adapter, "dtype": args.dtype, "prompt": args.prompt}
    spec = {
        "load": options | {"noise_seed": args.noise_seed},
        "mesh": args.mesh,
        "store": store_folder(args.store),
        "queue": str(folder.with_suffix(".review.jsonl")),
        "batch_size": args.batch_size,
        "format": "table",
        "options": {},
        "blank": args.blank,
        "described": True,
    }
    deadline = args.deadline or DEADLINE
    return ShardJob(FACTORY, spec, str(folder), deadline=deadline, threads=args.threads)


def _rows(
    job: ShardJob,
    outcomes: Sequence[ShardReport],
    words: tuple[str, str],
    verdicts: dict[tuple[str, str], Verdict],
    contents: dict[tuple[str, str], str],
) -> Iterator[Record | Rejected]:
    """The rows of all outputs as records without text and pictures; those that are of no use as
    `LeftOut` takes them. Of an id's first row it keeps verdict and content by benchmark and id."""
    for outcome in outcomes:
        path = outcome.shard.path
        if outcome.bytes < 0:
            yield Rejected(path, 0, outcome.reason)
            continue
        for _, row in read_jsonl(job.output(outcome.shard)):
            if isinstance(row, RowError):
                raise UserError(f"{job.output(outcome.shard)}: {row.reason}; remove it, run again")
            at = {"file": path, "row": str(row["row"])}
            if "reason" in row:
                yield Rejected(path, row["row"], row["reason"])
                continue
            label, benchmark = row.get("true_label", ""), row["benchmark"]
            record = Record(row["id"], (), "", label, row["category"], benchmark, at)
            if label not in words:
                reason = f"label {short(repr(label))} is not {' or '.join(map(repr, words))}"
                yield rejection(record, f"{reason}; mend it")
                continue
            verdicts.setdefault((benchmark, record.id), _verdict(row))
            contents.setdefault((benchmark, record.id), row["content"])
            yield record


def _group(system: str, record: Record) -> str:
    return f"{system}/{record.source}"


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return Verdict(**{name: row[name] for name in _VERDICT if name in row})
