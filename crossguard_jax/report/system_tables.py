"""Tables of systems beyond rates and rankings: tests, intervals by picture, categories, speed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.report.tables import (
    ABSENT,
    Cell,
    Metric,
    Results,
    Table,
    Unit,
    benchmarks_of,
    metric_cell,
    systems_by,
)


def one_system_table(
    system: str, figures: Mapping[str, Estimate], titles: Mapping[str, str] | None = None
) -> Table:
    """One system, a row per benchmark and one for all: its rates, AUROC, and what has no answer."""
    titles = titles or {}
    answers = "all.complied" in figures
    columns: dict[str, tuple[str, Unit]] = {
        "complied" if answers else "asr": ("Complied (%)" if answers else "ASR (%)", "percent"),
        "refused" if answers else "fpr": ("Refused (%)" if answers else "FPR (%)", "percent"),
        "accuracy": ("Accuracy (%)", "percent"),
        "auroc": ("AUROC", "fraction"),
        "no_answer": ("No answer", "plain"),
    }
    names = [*benchmarks_of({system: figures}, "accuracy"), "all"]
    return Table(
        ("Benchmark", *(title for title, _ in columns.values())),
        tuple(
            (
                titles.get(name, name),
                *(
                    metric_cell(system, figures, f"{name}.{measure}", unit, show_n=True)
                    for measure, (_, unit) in columns.items()
                ),
            )
            for name in names
        ),
        "By benchmark, with 95% intervals; AUROC ranks the malicious rows against all benign ones.",
        lead=len(names),
    )


def categories_table(results: Results, titles: Mapping[str, str] | None = None) -> Table:
    """A row per benchmark and category, a column per system: what got through, with its n."""
    titles = titles or {}
    names: dict[tuple[str, str], None] = {}
    for figures in results.values():
        for parts in (name.split(".") for name in figures):
            if len(parts) == 4 and parts[3] in ("asr", "complied"):
                names[parts[0], parts[2]] = None

    def cells(benchmark: str, category: str) -> Iterable[Cell]:
        prefix = f"{benchmark}.category.{category}"
        for system, figures in results.items():
            measure = "complied" if f"{prefix}.complied" in figures else "asr"
            yield metric_cell(system, figures, f"{prefix}.{measure}", "percent", show_n=True)

    answering = any(name.endswith(".complied") for of in results.values() for name in of)
    return Table(
        (
            "Benchmark: category",
            *(
                titles.get(system, system)
                + (" (complied)" if "all.complied" in figures else " (let pass)") * answering
                for system, figures in results.items()
            ),
        ),
        tuple(
            (f"{titles.get(name, name)}: {category.replace('_', ' ')}", *cells(name, category))
            for name, category in names
        ),
        "Malicious rows that got through by category, in percent with 95% intervals.",
    )


def mcnemar_table(differences: Results, titles: Mapping[str, str] | None = None) -> Table:
    """McNemar's exact p of the same comparisons, adjusted over those of a column (Holm)."""
    titles = titles or {}
    ending = "_mcnemar_holm"
    names = dict.fromkeys(
        name for figures in differences.values() for name in figures if name.endswith(ending)
    )
    return systems_by(
        differences,
        list(names),
        titles,
        "McNemar's exact test, two-sided: the chance that two systems that err equally often "
        "differ as one-sidedly as here or more, adjusted by Holm over the rows of each column. n "
        "is of rows on which the two differ.",
        unit="p",
        first_column="First against second",
    )


def rates_table(
    results: Results, names: Sequence[str], titles: Mapping[str, str] | None, caption: str
) -> Table | None:
    """Systems by the dotted names that any of them has; None where none has one."""
    there = [name for name in names if any(name in figures for figures in results.values())]
    return systems_by(results, there, titles or {}, caption) if there else None


def measure_table(
    results: Results,
    measure: str,
    titles: Mapping[str, str] | None,
    caption: str,
    unit: Unit = "percent",
    total: str = "",
) -> Table | None:
    """Systems by benchmarks that have a measure, and a total; None where none has it."""
    names = [f"{name}.{measure}" for name in benchmarks_of(results, measure)]
    if not names:
        return None
    names += [total] if total and len(names) > 1 else []
    return systems_by(results, names, titles or {}, caption, unit)


def printed_table(
    ours: Results, printed: Results, names: Sequence[str], titles: Mapping[str, str], caption: str
) -> Table:
    """Our systems by dotted names, and beneath them what papers print, as they print it."""
    table = systems_by({**ours, **printed}, names, titles, caption)
    rows = [
        tuple(
            replace(cell, unit="printed") if i >= len(ours) and isinstance(cell, Metric) else cell
            for cell in row
        )
        for i, row in enumerate(table.rows)
    ]
    return replace(table, rows=tuple(rows), lead=len(rows))


def by_picture_table(results: Results, titles: Mapping[str, str] | None = None) -> Table:
    """Rates of each benchmark with their bootstrap intervals over whole pictures."""
    measures = [f"{m}_by_picture" for m in ("asr", "fpr", "complied", "refused")]
    names = [f"{name}.{m}" for m in measures for name in benchmarks_of(results, m)]
    return systems_by(
        results,
        names,
        titles or {},
        "ASR and FPR (or what was complied with and refused) in percent, with 95% percentile "
        "intervals of the bootstrap over whole pictures.",
    )


def overall_table(
    results: Results, resampled: Results, titles: Mapping[str, str] | None = None
) -> Table:
    """Systems over all rows: rates, F1, areas, recall at low FPR, calibration."""
    titles = titles or {}
    columns: dict[str, tuple[str, Unit]] = {
        "accuracy": ("Accuracy (%)", "percent"),
        "f1_by_picture": ("F1", "fraction"),
        "auroc_by_picture": ("AUROC", "fraction"),
        "auprc_by_picture": ("AUPRC", "fraction"),
        "recall_at_1_fpr": ("Recall at 1% FPR (%)", "percent"),
        "recall_at_5_fpr": ("Recall at 5% FPR (%)", "percent"),
        "ece": ("ECE (%)", "percent"),
    }
    rows = []
    for system, figures in results.items():
        both = {**figures, **resampled.get(system, {})}
        answers = "all.complied" in figures
        rates = ("all.complied", "all.refused") if answers else ("all.asr", "all.fpr")
        cells = [metric_cell(system, both, name, "percent") for name in rates]
        cells = [ABSENT, ABSENT, *cells] if answers else [*cells, ABSENT, ABSENT]
        more = [
            metric_cell(system, both, f"all.{name}", unit) for name, (_, unit) in columns.items()
        ]
        rows.append((titles.get(system, system), *cells, *more))
    headings = ("ASR (%)", "FPR (%)", "Complied (%)", "Refused (%)")
    shown = [True, True, *[any("all.complied" in f for f in results.values())] * 2]
    keep = [True, *shown, *[True] * len(columns)]
    titled = ("System", *headings, *(title for title, _ in columns.values()))
    return Table(
        tuple(cell for cell, kept in zip(titled, keep, strict=True) if kept),
        tuple(tuple(c for c, kept in zip(row, keep, strict=True) if kept) for row in rows),
        "Over all rows together, which are no fair mixture of anything: F1 and AUPRC move with "
        "the share of malicious rows. Intervals of F1, AUROC and AUPRC are of the bootstrap by "
        "picture.",
    )


def speed_table(results: Results, titles: Mapping[str, str] | None = None) -> Table:
    """Latency of a row by itself, and rows a second in batches."""
    titles = titles or {}
    columns = {
        "speed.p50_ms": "Row alone, p50 (ms)",
        "speed.p99_ms": "p99 (ms)",
        "speed.rows_per_second": "Rows a second, in batches",
    }
    return Table(
        ("System", *columns.values()),
        tuple(
            (
                titles.get(system, system),
                *(metric_cell(system, figures, name, "plain", show_n=True) for name in columns),
            )
            for system, figures in results.items()
        ),
        "Wall clock after a first pass over the same rows; quantiles are of the rows measured, n "
        "of them. Systems behind an endpoint are not timed: their answers are kept.",
    )
