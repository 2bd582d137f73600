"""``crossguard evaluate``: guards over labelled data, and the report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, accepted, blanked
from crossguard_jax.evals.benchmarks import slug
from crossguard_jax.evals.guard_report import Judged, guard_sections
from crossguard_jax.evals.systems import score_benchmarks
from crossguard_jax.guard.guard import Guard
from crossguard_jax.io.jsonl import JsonlWriter
from crossguard_jax.report.report import Report


def main(args: argparse.Namespace) -> None:
    """The verb's work; prints the overall figures and the report's path."""
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    tests = read_benchmarks(args.data, folder / "rejected.jsonl")
    tests = {k: [blanked(r, args.blank) for r in rows] for k, rows in tests.items()}
    systems = {}
    for spec in args.model:
        name, path, adapter = parse_model(spec)
        guard = Guard.from_pretrained(path, adapter, args.dtype, prompt=args.prompt)
        if name in systems:
            raise UserError(f"--model: two systems are called {name!r}; write NAME=FOLDER")
        systems[name] = score_benchmarks(guard, tests, name, args.batch_size, args.truncate)
    judged = Judged(systems, float(args.threshold))
    texts = {(name, r.id): (r.image, r.text) for name, rows in tests.items() for r in rows}
    meta = {"models": args.model, "data": args.data, "threshold": args.threshold}
    sections = guard_sections(judged, lambda b, i: texts[b, i])
    page = Report("Guards compared", sections, meta).write(folder)
    for name, figures in judged.results.items():
        for measure in ("asr", "fpr", "accuracy", "auroc"):
            if (figure := figures.get(f"all.{measure}")) is not None and figure.n:
                interval = f"[{figure.low:.4f}, {figure.high:.4f}]"
                print(f"{name} {measure} {figure.value:.4f} {interval} n={figure.n}")
    print(f"report: {page}")


def parse_model(spec: str) -> tuple[str, str, str | None]:
    """``[NAME=]FOLDER[+ADAPTER]`` to a dotted name, a folder and an adapter folder."""
    name, equals, rest = spec.partition("=")
    if not equals:
        name, rest = Path(spec.partition("+")[0]).name, spec
    path, _, adapter = rest.partition("+")
    return slug(name), path, adapter or None


def read_benchmarks(specs: Sequence[str], rejects: Path) -> dict[str, list[Record]]:
    """Labelled records by benchmark.

    Args:
        specs: ``[NAME=]READER:PATH[:SPLIT]`` with a reader of `data.sources`, or ``FILE.jsonl``,
            whose rows are grouped by their ``source`` field.
        rejects: takes the rows that could not be read.

    Raises:
        UserError: a spec that is neither, or no good row at all.
    """
    tests: dict[str, list[Record]] = {}
    rejects.unlink(missing_ok=True)
    with JsonlWriter(rejects) as writer:
        for spec in specs:
            name, equals, rest = spec.partition("=")
            reader, path, split = _parse_data(rest if equals else spec)
            options = {"split": split} if split else {}
            for record in accepted(sources.read(reader, path, **options), writer):
                tests.setdefault(name if equals else record.source or reader, []).append(record)
    if not tests:
        raise UserError(f"{', '.join(specs)}: no good row; see {rejects}")
    return tests


def _parse_data(spec: str) -> tuple[str, str, str]:
    reader, colon, rest = spec.partition(":")
    if not colon:
        return "table", spec, ""
    path, _, split = rest.partition(":")
    return reader, path, split
