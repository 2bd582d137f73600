"""What ``evaluate`` compares, on what, and how: from flags, from a configuration, or from both."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.resampling import DEFAULT_SAMPLES
from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import slug
from crossguard_jax.systems import kinds

EXPORTS = ("inspect", "guardbench")
"""What rows and verdicts may be written for, beside the tables' CSV and LaTeX."""
RULES = ("named", "own")
"""Whose threshold holds where none is given: the named system's for all, or each one's own."""


@dataclass(frozen=True)
class ComparedSystem:
    """A row of the tables.

    Attributes:
        name: dotted, in lower case.
        path: a folder, or what else `systems.load` takes.
        adapter: a PEFT adapter over it.
        title: what it is called in front of people; "" is its name.
        threshold: the least p_unsafe that is unsafe; None is by the comparison's rule.
        prompt: a prompt's name; None is what the folder says.
    """

    name: str
    path: str
    adapter: str | None = None
    title: str = ""
    threshold: float | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class ComparedData:
    """Labelled rows of one set.

    Attributes:
        spec: ``[NAME=]READER:PATH[:SPLIT]`` or ``FILE.jsonl``.
        title: what the benchmark is called in front of people; "" is its name.
        limit: rows at most, drawn by the comparison's seed; 0 is all.
        per_category: of each category at most; 0 is all.
    """

    spec: str
    title: str = ""
    limit: int = 0
    per_category: int = 0

    def drawn(self, records: Sequence[Record], seed: int) -> list[Record]:
        """The rows that are taken, in their order."""
        order = np.random.default_rng([seed, 31]).permutation(len(records)).tolist()
        if self.per_category:
            # In the drawn order still, so that a limit cuts no category away.
            places: dict[str, list[int]] = {}
            for i in order:
                places.setdefault(records[i].category, []).append(i)
            taken = {i for rows in places.values() for i in rows[: self.per_category]}
            order = [i for i in order if i in taken]
        return [records[i] for i in sorted(order[: self.limit or None])]


@dataclass(frozen=True)
class Evaluation:
    """Systems over benchmarks.

    Attributes:
        systems: the rows.
        data: what they are judged on.
        named: the system that the report is about, and that all others are compared with.
        threshold: of all systems that have none of their own here: a number, or one of `RULES`.
        samples: of the bootstrap by picture; 0 draws none.
        seed: of the bootstrap, and of what is drawn.
        speed_rows: rows that each system is timed on, one by one; 0 times none.
        published: show the figures that papers print beside ours.
        missing_pictures: see `data.sources.downloads.MISSING_PICTURES`; None is the readers' own.
        exports: some of `EXPORTS`.
        meta: what the report says of how it was asked for.
    """

    systems: tuple[ComparedSystem, ...]
    data: tuple[ComparedData, ...]
    named: str
    threshold: float | str = "named"
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    speed_rows: int = 0
    published: bool = True
    missing_pictures: str | None = None
    exports: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"--model: two systems are called {name!r}; write NAME=FOLDER")
        if self.named not in names:
            raise UserError(
                f"named {self.named!r} is none of the systems ({', '.join(names)}); name one"
            )
        if unknown := sorted(set(self.exports) - set(EXPORTS)):
            raise UserError(f"exports {unknown[0]!r}: choose among {', '.join(EXPORTS)}")


def comparison_of(args: argparse.Namespace) -> Evaluation:
    """What the command line asks for: its ``--model`` and ``--data`` come after those of its
    ``--config``, where it has one.

    Raises:
        UserError: no system, no data, or a value that is none.
    """
    config = args.config
    if config is not None:
        _check_counts(config)
    systems = [] if config is None else [*_systems(config.systems)]
    data = [] if config is None else [*_data(config)]
    systems += [parse_system(spec, args.prompt) for spec in args.model or ()]
    data += [ComparedData(spec) for spec in told_apart(args.data or ())]
    if not systems or not (data or args.shards):
        what = "system" if not systems else "benchmark"
        raise UserError(f"{getattr(args, 'spec', 'evaluate')}: no {what} is on; switch one on")
    options: dict[str, Any] = {"named": systems[0].name}
    if config is not None:
        options |= {
            "named": config.named or systems[0].name,
            "threshold": _threshold(config.threshold),
            "samples": config.bootstrap.samples,
            "seed": config.bootstrap.seed,
            "speed_rows": config.speed_rows,
            "published": config.published,
            "missing_pictures": config.missing_pictures,
            "exports": tuple(config.exports),
        }
    flags = {
        "threshold": args.threshold,
        "missing_pictures": args.missing_pictures,
        "speed_rows": args.speed_rows,
        "exports": tuple(args.export) if args.export else None,
    }
    options |= {name: value for name, value in flags.items() if value is not None}
    meta = {
        "models": [f"{s.name}={s.path}" + (f"+{s.adapter}" if s.adapter else "") for s in systems],
        "data": args.shards or [each.spec for each in data],
    }
    return Evaluation(tuple(systems), tuple(data), meta=meta, **options)


def told_apart(specs: Sequence[str]) -> list[str]:
    """Data of the command line, where splits of one set that have no names are named after
    themselves: rows of two are never pooled."""
    splits: dict[str, set[str]] = {}
    parsed = []
    for spec in specs:
        name, rest = kinds.named(spec)
        reader, _, where = rest.partition(":")
        parsed.append((name, reader, where.partition(":")[2]))
        if not name:
            splits.setdefault(reader, set()).add(parsed[-1][2])
    return [
        f"{reader}_{split}={spec}" if split and not name and len(splits[reader]) > 1 else spec
        for spec, (name, reader, split) in zip(specs, parsed, strict=True)
    ]


def parse_model(spec: str) -> tuple[str, str, str | None]:
    """``[NAME=]FOLDER[+ADAPTER]`` to a dotted name, a folder (or ``KIND:WHAT``, see
    `systems.kinds`) and an adapter folder."""
    name, rest = kinds.named(spec)
    name = name or kinds.name_of(spec.partition("+")[0])
    path, _, adapter = rest.partition("+")
    return slug(name), path, adapter or None


def parse_system(spec: str, prompt: str | None = None) -> ComparedSystem:
    """A system of the command line."""
    name, path, adapter = parse_model(spec)
    return ComparedSystem(name, path, adapter, prompt=prompt)


def _systems(config: Any) -> Iterable[ComparedSystem]:
    for name, each in _placed(config):
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise UserError(f"systems.{name}: a system's name is lower case, digits and _; mend it")
        if not each.path:
            raise UserError(
                f"systems.{name}: has no path; give it, --config.systems.{name}.path=FOLDER, or "
                f"leave it out, --config.systems.{name}.on=false"
            )
        yield ComparedSystem(
            name, each.path, each.adapter or None, each.title, each.threshold, each.prompt or None
        )


def _placed(entries: Any) -> list[tuple[str, Any]]:
    """What is on, in order."""
    on = [(name, each) for name, each in entries.items() if each.on]
    return sorted(on, key=lambda entry: (entry[1].place, entry[0]))


def _data(config: Any) -> Iterable[ComparedData]:
    for name, each in _placed(config.benchmarks):
        path = each.path or str(Path(config.folder) / each.folder)
        if not Path(path).exists():
            raise UserError(
                f"benchmarks.{name}: {path} is not there; give its folder, "
                f"--config.benchmarks.{name}.path=FOLDER, or leave it out, "
                f"--config.benchmarks.{name}.on=false"
            )
        split = f":{each.split}" if each.split else ""
        spec = f"{name}={each.reader}:{path}{split}"
        yield ComparedData(spec, each.title, each.limit, each.per_category)


_MOST = ("limit", "per_category")


def _check_counts(config: Any) -> None:
    benchmarks = [(f"benchmarks.{name}", each) for name, each in _placed(config.benchmarks)]
    counts = [(name, each, count) for name, each in benchmarks for count in _MOST]
    for name, section, count in [*counts, ("bootstrap", config.bootstrap, "samples")]:
        if section[count] < 0:
            raise UserError(f"{name}.{count} {section[count]}: give 0 or more")
    if config.speed_rows < 0:
        raise UserError(f"speed_rows {config.speed_rows}: give 0 or more")


def _threshold(given: str) -> float | str:
    if given in RULES:
        return given
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"threshold {given!r}: give {', '.join(RULES)}, or a number from 0 to 1")
    return value
