"""Rows of tasks: a picture, what is asked of it, and what people answered or said of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import UInt8

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tasks import normalize_answer
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected, accepted
from crossguard_jax.evals.benchmarks import slug
from crossguard_jax.io.jsonl import JsonlWriter

KINDS = {"vqav2": "vqa", "table": "vqa", "coco_captions": "captions", "karpathy": "captions"}
"""What each reader's rows are for."""

PEOPLE = 10
"""Answers of a VQA row; an only answer counts as theirs all."""


@dataclass(frozen=True)
class Benchmark:
    """Rows of one kind: ``vqa`` (answers in the provenance's ``answers``, one a line, or one in
    ``answer``) or ``captions`` (in the provenance's ``captions``, one a line)."""

    kind: str
    records: Sequence[Record]


@dataclass(frozen=True)
class Item:
    """A row that can be asked: its picture's grey levels, and what people answered or said."""

    record: Record
    references: tuple[str, ...]
    levels: UInt8[np.ndarray, "3 X X"]


def read_benchmarks(
    specs: Sequence[str], rejects: JsonlWriter, limit: int | None = None
) -> dict[str, Benchmark]:
    """Benchmarks by dotted name.

    Args:
        specs: ``[NAME=]READER:PATH[:SPLIT]`` with a reader of `KINDS`. A table's ``label`` is the
            one right answer to its ``text``.
        rejects: takes the rows that could not be read.
        limit: so many rows of each: of VQAv2 drawn at random, of others the first ones.

    Raises:
        UserError: another reader, two benchmarks of one name, or one without a good row.
    """
    found: dict[str, Benchmark] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        reader, _, where = (rest if equals else spec).partition(":")
        path, _, split = where.partition(":")
        if reader not in KINDS or not path:
            raise UserError(f"--data {spec}: give READER:PATH with READER {', '.join(KINDS)}")
        options: dict[str, Any] = {"split": split} if split else {}
        if reader == "vqav2":
            options |= {"limit": limit}
        rows = accepted(sources.read(reader, path, **options), rejects)
        records = list(islice(rows, limit))
        if reader == "table":
            records = [_labelled(record) for record in records]
        name = slug(name if equals else reader)
        if name in found:
            raise UserError(f"--data: two data sets are called {name!r}; write NAME=READER:PATH")
        if not records:
            raise UserError(f"--data {spec}: no good row; see {rejects.path}")
        found[name] = Benchmark(KINDS[reader], records)
    return found


def _labelled(record: Record) -> Record:
    return replace(record, provenance={**record.provenance, "answer": record.label})


def references(kind: str, provenance: Mapping[str, str]) -> tuple[str, ...]:
    """What people answered or said.

    Raises:
        UserError: nothing.
    """
    field = {"vqa": "answers", "captions": "captions"}[kind]
    if written := provenance.get(field):
        return tuple(written.split("\n"))
    if kind == "vqa" and (answer := normalize_answer(provenance.get("answer", ""))):
        return (answer,) * PEOPLE
    raise UserError(f"the row has no {field} to compare with; add some or drop it")


def usable(
    benchmark: Benchmark, levels_of: Callable[[bytes, str], np.ndarray], rejects: JsonlWriter
) -> list[Item]:
    """The rows that have all that is needed; the others are written to ``rejects``.

    Args:
        benchmark: the rows.
        levels_of: a picture and what to call it, to grey levels / 255, [3, X, X].
        rejects: takes ``file, row, reason``.
    """

    def item(record: Record) -> Item | Rejected:
        try:
            if record.image is None:
                raise UserError("the row has no picture; give it one or drop it")
            said = references(benchmark.kind, record.provenance)
            levels = np.round(255 * levels_of(record.image, record.id)).astype(np.uint8)
            return Item(record, said, levels)
        except UserError as error:
            return rejected(record, str(error))

    return list(accepted(map(item, benchmark.records), rejects))


def rejected(record: Record, reason: str) -> Rejected:
    """A record that turned out to be of no use."""
    at = record.provenance
    return Rejected(at.get("file", record.source), int(at.get("row", 0)), f"{record.id}: {reason}")
