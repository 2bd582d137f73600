"""What a sweep came to: means and intervals over seeds, paired differences to the base."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossguard_jax.core.metrics import DEFAULT_CONFIDENCE, Estimate
from crossguard_jax.sweeps.cells import CellOutcome

HEADLINES = (
    *("*.mean.asr", "*.all.fpr", "*.all.refused", "*.asr", "*.fpr", "*.complied", "*.refused"),
    *("eval.*", "forged.kept.*", "rewriter.eval.*", "rewriter.reward", "rewriter.kl", "*"),
)
"""What a table shows unless it is said: the first of these patterns' figures."""
MOST = 6
"""So many of them."""


@dataclass(frozen=True)
class RowSummary:
    """A row over its seeds.

    Attributes:
        row: its name.
        values: by figure and seed.
        means: by figure; see `over_seeds`.
        differences: to the base, by figure: of each seed that both have, and over those.
        done: seeds that have figures.
        seeds: all.
    """

    row: str
    values: Mapping[str, Mapping[int, Estimate]]
    means: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    done: Sequence[int]
    seeds: Sequence[int]


def summarized(outcomes: Sequence[CellOutcome], base: str) -> list[RowSummary]:
    """Every row over its seeds, in the order in which they come first."""
    by_row: dict[str, dict[int, CellOutcome]] = {}
    for outcome in outcomes:
        by_row.setdefault(outcome.cell.row, {})[outcome.cell.seed] = outcome
    values = {row: _values(of_seeds) for row, of_seeds in by_row.items()}
    summaries = []
    for row, of_seeds in by_row.items():
        own, bases = values[row], values.get(base, {})
        means = {name: over_seeds(list(each.values())) for name, each in own.items()}
        differences = {
            name: over_seeds(_paired(each, bases[name]))
            for name, each in own.items()
            if row != base and name in bases and each.keys() & bases[name].keys()
        }
        done = [seed for seed, outcome in of_seeds.items() if outcome.figures is not None]
        summaries.append(RowSummary(row, own, means, differences, done, list(of_seeds)))
    return summaries


def over_seeds(estimates: Sequence[Estimate], confidence: float = DEFAULT_CONFIDENCE) -> Estimate:
    """The mean of seeds' values, with Student's t interval over them; of one seed what it has.

    ``n`` counts the seeds that have a value. The interval says how a new seed's mean may lie, not
    what other rows would give.
    """
    if len(estimates) == 1:
        return estimates[0]
    values = np.array([e.value for e in estimates if math.isfinite(e.value)])
    if values.size < 2:
        return Estimate.exact(values[0]) if values.size else Estimate.empty()
    from scipy import stats  # takes long to import

    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    reach = float(stats.t.ppf(0.5 + confidence / 2, values.size - 1)) * error
    value = float(values.mean())
    return Estimate(value, value - reach, value + reach, int(values.size))


def headlines(outcomes: Sequence[CellOutcome], patterns: Sequence[str] = ()) -> list[str]:
    """The figures to show: those that match, in the patterns' order; without patterns a few."""
    names = dict.fromkeys(name for each in outcomes for name in each.figures or ())
    ordered = dict.fromkeys(
        name
        for pattern in patterns or HEADLINES
        for name in names
        if fnmatch.fnmatchcase(name, pattern) and (patterns or ".category." not in name)
    )
    return list(ordered)[: None if patterns else MOST]


def _values(of_seeds: Mapping[int, CellOutcome]) -> dict[str, dict[int, Estimate]]:
    """A row's figures by name and seed."""
    values: dict[str, dict[int, Estimate]] = {}
    for seed, outcome in of_seeds.items():
        for name, estimate in (outcome.figures or {}).items():
            values.setdefault(name, {})[seed] = estimate
    return values


def _paired(own: Mapping[int, Estimate], base: Mapping[int, Estimate]) -> list[Estimate]:
    return [Estimate.exact(own[seed].value - base[seed].value) for seed in own if seed in base]
