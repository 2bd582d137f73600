"""What papers print, as data, each figure with its source: rows of other people's runs.

They are shown marked, beside ours, and never pooled with them: other rows, other judges, other
thresholds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossguard_jax.core.metrics import Estimate, mean_of, wilson_interval

CROSSGUARD = "CrossGuard, arXiv 2510.17687, its main table"
PAPER_MEAN = "paper"
"""What stands for a benchmark in the name of a mean over all sets of a printed row."""
HOLISAFE = "HoliSafe-Bench's paper, its SSU slice"


@dataclass(frozen=True)
class PrintedRow:
    """A system's row of a paper's table.

    Attributes:
        name: part of a dotted name.
        title: the system, as the paper calls it.
        answering: a model that answers: what it complied with; else what a guard let pass.
        asr: percent, by set and perhaps subset ("vlguard/unsafes").
        rows: of each, how many rows the percent is of; 0 where the paper does not say.
        source: which table of which paper.
    """

    name: str
    title: str
    answering: bool
    asr: Mapping[str, float]
    rows: Mapping[str, int]
    source: str

    def estimate(self, key: str) -> Estimate:
        """A cell, with Wilson's interval where it is a count of its rows."""
        value, n = self.asr[key] / 100, self.rows.get(key, 0)
        hits = self.hits(key)
        low, high = (float("nan"),) * 2 if hits is None else wilson_interval(hits, n)
        return Estimate(value, low, high, n)

    def hits(self, key: str) -> int | None:
        """How many of its rows a cell counts; None where no number of them rounds to it."""
        n = self.rows.get(key, 0)
        hits = round(self.asr[key] / 100 * n)
        return hits if n and abs(100 * hits / n - self.asr[key]) <= 0.00501 else None


_SETS = ("jailbreakv", "mm_safetybench", "siuo", "figstep", "vlguard/unsafes")
_ROWS = dict(zip(_SETS, (280, 520, 167, 500, 442), strict=True))


def _main(name: str, title: str, answering: bool, *asr: float) -> PrintedRow:
    return PrintedRow(name, title, answering, dict(zip(_SETS, asr, strict=True)), _ROWS, CROSSGUARD)


def _holisafe(name: str, title: str, asr: float) -> PrintedRow:
    return PrintedRow(f"holisafe_{name}", title, True, {"holisafe/SSU": asr}, {}, HOLISAFE)


PRINTED: Sequence[PrintedRow] = (
    _main("llava_1_5_7b", "LLaVA-1.5-7B", True, 51.43, 28.85, 95.81, 62.60, 46.38),
    _main("qwen2_5_vl_7b", "Qwen2.5-VL-7B", True, 2.14, 10.00, 41.56, 24.20, 9.73),
    _main("gpt_4o", "GPT-4o", True, 6.08, 16.15, 48.92, 1.60, 6.11),
    _main("claude_3_5_sonnet", "Claude-3.5-Sonnet", True, 5.00, 13.08, 23.95, 13.00, 5.21),
    _main("llavaguard", "LlavaGuard", False, 90.71, 83.08, 90.42, 90.80, 32.58),
    _main("llama_guard3_vision", "Llama-Guard3-Vision", False, 34.29, 66.92, 89.82, 50.40, 74.89),
    _main("hiddendetect", "HiddenDetect", False, 4.64, 8.65, 44.91, 72.20, 26.02),
    _main("jaildam", "JailDAM", False, 32.50, 16.54, 81.44, 6.00, 15.38),
    _main("crossguard", "CrossGuard", False, 0.72, 0.38, 5.39, 0.21, 7.24),
    _holisafe("llava_1_5_7b", "LLaVA-1.5-7B", 85.0),
    _holisafe("gpt_4o", "GPT-4o", 44.8),
    _holisafe("claude_3_5_sonnet", "Claude-3.5-Sonnet", 29.2),
    _holisafe("safellava_7b", "SafeLLaVA-7B", 4.3),
)
REMARKS: Mapping[str, str] = {
    "llavaguard": "its prompt holds its policy and the picture alone, so that it cannot see danger "
    "in the text: 80 to 90% gets through by construction where that is",
    "shieldgemma": "it cannot take the user's text at all",
}
"""What is to be said of a system's printed rows."""


def printed_results(
    origins: Mapping[str, tuple[str, str]],
) -> tuple[dict[str, dict[str, Estimate]], dict[str, str], list[str]]:
    """The printed rows that have a cell on benchmarks that we have, as results of systems.

    Args:
        origins: by a benchmark's dotted name, its set and subset.

    Returns:
        Figures by ``printed.NAME``, titles of those, and lines on the sources and on cells that no
        count of the rows gives.
    """
    results: dict[str, dict[str, Estimate]] = {}
    titles: dict[str, str] = {}
    odd: list[str] = []
    sources: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for benchmark, (name, subset) in origins.items():
        places.setdefault(f"{name}/{subset}", benchmark)
        places.setdefault(name, benchmark)
    # Of MM-SafetyBench's three pictures the paper does not say which; others use this one.
    if "mm_safetybench/SD_TYPO" in places:
        places["mm_safetybench"] = places["mm_safetybench/SD_TYPO"]
    for row in PRINTED:
        measure = "complied" if row.answering else "asr"
        keys = [key for key in row.asr if key in places]
        if not keys:
            continue
        system = f"printed.{row.name}"
        cells = {f"{places[key]}.{measure}": row.estimate(key) for key in keys}
        if len(keys) == len(row.asr) > 1:
            cells[f"{PAPER_MEAN}.{measure}"] = mean_of([*cells.values()])
        results[system] = cells
        titles[system] = f"{row.title} (printed)"
        sources.setdefault(row.source, []).append(row.title)
        odd += [
            f"{row.title} on {key}: {row.asr[key]:g}%, of {row.rows[key]:,}"
            for key in keys
            if key in row.rows and row.hits(key) is None
        ]
    lines = [f"{source}: {', '.join(dict.fromkeys(rows))}" for source, rows in sources.items()]
    if odd:
        lines.append(
            "No whole number of rows gives these, so that rows were perhaps dropped, and they have "
            f"no interval: {'; '.join(odd)}"
        )
    remarked = {
        r.title: REMARKS[r.name]
        for r in PRINTED
        if f"printed.{r.name}" in results and r.name in REMARKS
    }
    return results, titles, lines + [f"{title}: {what}" for title, what in remarked.items()]
