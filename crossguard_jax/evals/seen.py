"""Rows that a system was trained on: known by its lists, and apart from all others."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from crossguard_jax.data.sources.catalogue import CATALOGUE
from crossguard_jax.data.sources.reading import row_name
from crossguard_jax.evals.benchmarks import TRAINED_ON, ScoredRows
from crossguard_jax.hf.trained import TRAINING_DATA, read_training_data
from crossguard_jax.io import files
from crossguard_jax.report.blocks import Section
from crossguard_jax.report.tables import Table

Keys = set[tuple[str, str]]
"""Rows by benchmark and id."""


def learned_from(*folders: str | Path) -> set[str]:
    """The contents and the names of the rows that a model was trained on, by the lists beside the
    cards of a merged model's folder, or of a base's and an adapter's.

    Raises:
        UserError: a list is damaged.
    """
    return set().union(*(_learned(folder, _stamp(folder)) for folder in {str(f) for f in folders}))


@lru_cache(maxsize=16)
def _learned(folder: str, stamp: str) -> frozenset[str]:
    """Of one folder, read once for all the systems that are made of it."""
    rows = read_training_data(folder)
    return frozenset({row.content for row in rows} | {row_name(row.id) for row in rows})


def _stamp(folder: str) -> str:
    path = Path(folder) / TRAINING_DATA
    return files.stamp(path) if path.exists() else ""


def seen_rows(learned: Collection[str], contents: Mapping[tuple[str, str], str]) -> Keys:
    """The rows that a system was trained on: by their content, and, in published sets, whose rows
    have one name wherever they are read, by that.

    Args:
        learned: contents and names of what it was trained on.
        contents: the content of each row (`hf.trained.content_hash`), by benchmark and id.
    """
    return {
        key
        for key, content in contents.items()
        if content in learned
        or (key[1].partition("-")[0] in CATALOGUE and row_name(key[1]) in learned)
    }


def apart(systems: Mapping[str, ScoredRows], keys: Keys) -> dict[str, ScoredRows]:
    """The systems' scores with these rows under a benchmark of their own."""
    return {
        name: replace(
            scores,
            benchmark=np.array(
                [key[0] + TRAINED_ON * (key in keys) for key in scores.keys()], dtype=np.str_
            ),
        )
        for name, scores in systems.items()
    }


def seen_sections(seen: Mapping[str, Keys], contents: Collection[tuple[str, str]]) -> list[Section]:
    """Which rows the systems say that they were trained on, as a warning; prints it, too.

    Args:
        seen: of each system, the rows.
        contents: all rows.
    """
    rows = []
    totals = Counter(benchmark for benchmark, _ in contents)
    for name, keys in seen.items():
        for benchmark, n in sorted(Counter(benchmark for benchmark, _ in keys).items()):
            total = f"{totals[benchmark]:,}"
            print(
                f"{name} was trained on {n:,} of the {total} rows of {benchmark}: they are apart "
                "from the others, and in no figure of all"
            )
            rows.append((name, benchmark, f"{n:,} of {total}"))
    if not rows:
        return []
    caption = (
        "By the lists of training rows beside the models' cards; figures on these prove little. "
        "For every system they are a benchmark of their own, which no figure of all takes in."
    )
    return [
        Section(
            "Rows that a system was trained on",
            (Table(("System", "Benchmark", "Rows"), tuple(rows), caption),),
        )
    ]
