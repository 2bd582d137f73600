"""A page a system: its figures, the rows that it gets wrong, and what was run on what."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from crossguard_jax.core import metrics
from crossguard_jax.evals.benchmarks import TRAINED_ON, ScoredRows, slug
from crossguard_jax.evals.examples import Lookup, listed
from crossguard_jax.evals.guard_report import Judged
from crossguard_jax.report import system_tables, tables
from crossguard_jax.report.blocks import Bullets, Listing, Section
from crossguard_jax.report.examples import Example
from crossguard_jax.report.report import SubPage
from crossguard_jax.report.tables import Table
from crossguard_jax.report.text import quoted

LISTED = 120
"""Rows that a page lists; the others are in the file of verdicts. Of many systems' pages most of
the time goes into pictures."""
LIBRARIES = ("crossguard-jax", "jax", "jaxlib", "flax", "transformers", "numpy")

Facts = Mapping[str, str]
"""What is known of a system or of a benchmark, by what it is called."""
Explained = Callable[[Sequence[Example]], Sequence[Example]]
"""Gives rows back with what their verdicts rest on."""


def system_pages(
    judged: Judged,
    lookup: Lookup,
    facts: Mapping[str, Facts],
    seed: int = 0,
    explained: Explained | None = None,
) -> dict[str, SubPage]:
    """The pages by the systems' dotted names.

    Args:
        judged: the systems.
        lookup: gives a row's picture and text.
        facts: of each system.
        seed: of which rows are listed where not all are.
        explained: explains the rows that the main system's page lists.
    """
    return {
        name: SubPage(
            judged.title(name),
            [
                _figures(judged, name),
                _rows(judged, name, lookup, seed, explained if name == judged.main else None),
                Section(
                    "What this is",
                    (Bullets(tuple(f"{k}: {quoted(v)}" for k, v in facts[name].items())),),
                ),
            ],
        )
        for name in judged.systems
    }


def _figures(judged: Judged, name: str) -> Section:
    figures = judged.results[name]
    by_category = tables.category_table(name, figures, judged.titles)
    blocks = [system_tables.one_system_table(name, figures, judged.titles)]
    return Section("Figures", (*blocks, *[by_category] * bool(by_category.rows)))


def _rows(
    judged: Judged, name: str, lookup: Lookup, seed: int, explained: Explained | None
) -> Section:
    rows, cut = judged.systems[name], judged.cut(name)
    shown = listed(rows, cut, lookup, LISTED, seed)
    if explained is not None:
        shown = list(explained(shown))
    wrong = int((metrics.flagged(rows.counted, cut) != rows.unsafe).sum())
    wrong_shown = sum(not each.right for each in shown)
    caption = (
        f"Listed are {len(shown):,} of the {len(rows):,} rows: {wrong_shown:,} of the {wrong:,} "
        f"that it gets wrong, and {len(shown) - wrong_shown:,} of the {len(rows) - wrong:,} that "
        "it gets right"
    )
    if len(shown) < len(rows):
        caption += f", drawn evenly over benchmarks and categories (seed {seed})"
    caption += (
        f". The verdict on every row is in `{name}.verdicts.jsonl` beside the report. A row is "
        f"flagged at p(unsafe) {cut:g} or more. Pictures are blurred until they are asked for."
    )
    if explained is not None:
        caption += (
            " Below an unsafe verdict stands what it rests on, where that was fitted; its map is "
            "vermillion where the picture speaks for unsafe and blue where against, with a frame "
            "around the strongest patch."
        )
    return Section("Rows", (Listing(tuple(shown), caption),))


def run_section(
    judged: Judged, systems: Mapping[str, Facts], contents: Mapping[tuple[str, str], str]
) -> Section:
    """What was run, on what.

    Args:
        judged: the systems.
        systems: facts of each, all of the same names.
        contents: of each row, by benchmark as it was read, and id.
    """
    columns = list(dict.fromkeys(name for facts in systems.values() for name in facts))
    beside = Table(
        ("System", *columns),
        tuple(
            (judged.title(name), *(facts.get(c, tables.ABSENT) for c in columns))
            for name, facts in systems.items()
        ),
        "A system's hash is of all that its verdicts depend on but the rows: weights, tokenizer, "
        "prompt, number format. Its verdicts are kept in the store under that name.",
    )
    sets = Table(
        ("Benchmark", "Rows", "Hash"),
        tuple(
            (judged.title(slug(name)), f"{n:,}", digest)
            for name, (n, digest) in rows_hashes(judged.systems[judged.main], contents).items()
        ),
        "A benchmark's hash is of the texts, pictures and labels of its rows, whatever their ids "
        "and their order.",
    )
    versions = Bullets(tuple(f"{name} {v}" for name, v in library_versions().items()))
    return Section("What was run, on what", (beside, sets, versions))


def rows_hashes(
    rows: ScoredRows, contents: Mapping[tuple[str, str], str]
) -> dict[str, tuple[int, str]]:
    """By benchmark as it was read, how many rows there are, and the first 96 bits of the SHA-256
    over their contents and labels, sorted.

    Args:
        rows: those that were judged.
        contents: of each row (`hf.trained.content_hash`), by benchmark as it was read, and id.
    """
    lines: dict[str, list[str]] = {}
    for (benchmark, row_id), unsafe in zip(rows.keys(), rows.unsafe.tolist(), strict=True):
        name = benchmark.removesuffix(TRAINED_ON)
        lines.setdefault(name, []).append(f"{contents[name, row_id]} {int(unsafe)}\n")
    return {
        name: (len(each), hashlib.sha256("".join(sorted(each)).encode()).hexdigest()[:24])
        for name, each in lines.items()
    }


def library_versions() -> dict[str, str]:
    """Of what computed, as it is installed."""
    versions = {"Python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
