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
from crossguard_jax.data.records import LeftOut, Record, rejection
from crossguard_jax.data.sources.catalogue import tested_split
from crossguard_jax.evals.benchmarks import slug
from crossguard_jax.systems.kinds import named

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
    specs: Sequence[str], left_out: LeftOut, limit: int | None = None
) -> dict[str, Benchmark]:
    """Benchmarks by dotted name.

    Args:
        specs: ``[NAME=]READER:PATH[:SPLIT]`` with a reader of `KINDS`. A table's ``label`` is the
            one right answer to its ``text``.
        left_out: takes the rows that could not be read.
        limit: so many rows of each, drawn at random.

    Raises:
        UserError: another reader, two benchmarks of one name, or one without a good row.
    """
    benchmarks: dict[str, Benchmark] = {}
    for spec in specs:
        name, rest = named(spec)
        reader, _, where = rest.partition(":")
        path, _, split = where.partition(":")
        split = split or tested_split(reader, path)
        if reader not in KINDS or not path:
            raise UserError(f"--data {spec}: give READER:PATH with READER {', '.join(KINDS)}")
        options: dict[str, Any] = {"split": split} if split else {}
        if limit is not None:
            options["seed"] = 0
        name = slug(name or reader)
        rows = left_out.accepted(sources.read(reader, path, **options), lambda row, name=name: name)
        if name in benchmarks:
            raise UserError(f"--data: two data sets are called {name!r}; write NAME=READER:PATH")
        records = list(islice(rows, limit))
        if reader == "table":
            records = [_labelled(record) for record in records]
        if not records:
            raise UserError(f"--data {spec}: no good row; see {left_out.path}")
        benchmarks[name] = Benchmark(KINDS[reader], records)
    return benchmarks


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
    benchmark: Benchmark, levels_of: Callable[[bytes, str], np.ndarray], left_out: LeftOut
) -> list[Item]:
    """The rows that have all that is needed.

    Args:
        benchmark: the rows.
        levels_of: a picture and what to call it, to grey levels / 255, [3, X, X].
        left_out: takes the other rows.
    """
    items = []
    for record in benchmark.records:
        try:
            if record.image is None:
                raise UserError("the row has no picture; give it one or drop it")
            if benchmark.kind == "vqa" and not record.text.strip():
                raise UserError("the question is empty; write it or drop the row")
            answers = references(benchmark.kind, record.provenance)
            levels = np.round(255 * levels_of(record.image, "the picture")).astype(np.uint8)
            items.append(Item(record, answers, levels))
        except UserError as error:
            left_out.add(rejection(record, str(error)))
    return items
