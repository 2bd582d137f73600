"""What ``evaluate`` makes of judged rows: the report, its tables for other programs, and a summary.

Where the verdicts come from, rows in memory or shards, is the caller's.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.data.sources.reading import SourceRows, subset_of
from crossguard_jax.evals import paper_report
from crossguard_jax.evals.benchmarks import TRAINED_ON, ScoredRows, slug
from crossguard_jax.evals.comparison import Evaluation
from crossguard_jax.evals.examples import Lookup
from crossguard_jax.evals.guard_report import Judged, guard_sections
from crossguard_jax.evals.scoring import (
    Scored,
    Unanswered,
    at_threshold,
    branch_counts,
    verdict_lines,
)
from crossguard_jax.evals.seen import Keys, apart
from crossguard_jax.evals.speed import Speed
from crossguard_jax.evals.system_pages import (
    Explained,
    library_versions,
    rows_hashes,
    run_section,
    system_pages,
)
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report.blocks import Bullets, Section
from crossguard_jax.report.exports import write_tables
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import Table
from crossguard_jax.report.text import quoted
from crossguard_jax.systems.tally import BRANCHES


@dataclass(frozen=True)
class JudgedSystem:
    """What one system says of all rows.

    Attributes:
        scored: row by row.
        scores: the same in columns.
        threshold: its own.
        words: its (negative, positive) label.
        remarks: what it says of itself.
        learned: contents and names of the rows that it was trained on.
        speed: None where it was not timed.
        store_name: what its verdicts are called in a store (`systems.store.store_name`).
        costs: what asking it has cost, in words.
    """

    scored: Scored
    scores: ScoredRows
    threshold: float
    words: tuple[str, str]
    remarks: Sequence[str] = ()
    learned: AbstractSet[str] = frozenset()
    speed: Speed | None = None
    store_name: str = ""
    costs: Sequence[str] = ()

    @property
    def answering(self) -> bool:
        """Whether it is a model that answers, by its verdicts."""
        verdicts = (verdict for _, _, verdict in self.scored if isinstance(verdict, Verdict))
        return any(getattr(verdict, "complied", None) is not None for verdict in verdicts)


@dataclass(frozen=True)
class Findings:
    """What a report is made of.

    Attributes:
        comparison: what was asked for.
        judgements: by the system's name.
        seen: rows that a system was trained on.
        origins: see `paper_report.Origins`.
        titles: of benchmarks, by dotted name.
        failed: why systems have no row in the table, by name.
        lookup: gives a row's picture and text, by its benchmark as it was read, and its id.
        contents: the content of each row (`hf.trained.content_hash`), by the same.
        explained: see `system_pages`.
    """

    comparison: Evaluation
    judgements: Mapping[str, JudgedSystem]
    seen: Keys
    origins: paper_report.Origins
    titles: Mapping[str, str]
    failed: Mapping[str, str]
    lookup: Lookup
    contents: Mapping[tuple[str, str], str]
    explained: Explained | None = None

    @cached_property
    def judged(self) -> Judged:
        """The systems on the rows that all of them have, those that one was trained on apart."""
        scores = in_common({name: each.scores for name, each in self.judgements.items()})
        named, given = self.comparison.named, self.comparison.threshold
        own = {name: each.threshold for name, each in self.judgements.items()}
        threshold = given if isinstance(given, float) else own[named]
        cuts = own if given == "own" else {}
        cuts |= {s.name: s.threshold for s in self.comparison.systems if s.threshold is not None}
        systems = {s.name: s.title for s in self.comparison.systems if s.title}
        return Judged(
            apart(scores, self.seen),
            threshold,
            {**systems, **self.titles},
            {name: cut for name, cut in cuts.items() if name in scores and cut != threshold},
            frozenset(name for name, each in self.judgements.items() if each.answering),
            named,
        )

    def facts(self) -> dict[str, dict[str, str]]:
        """What was run, by the system's name."""
        return {
            spec.name: {
                "from": spec.path + (f" + {spec.adapter}" if spec.adapter else ""),
                "prompt": spec.prompt or "its own",
                "threshold": f"{self.judged.cut(spec.name):g}",
                "hash": self.judgements[spec.name].store_name,
                **({"cost": "; ".join(costs)} if costs else {}),
            }
            for spec in self.comparison.systems
            if spec.name in self.judgements
            for costs in [self.judgements[spec.name].costs]
        }

    def threshold_line(self) -> str:
        """Which threshold holds, where systems have different ones and none was given."""
        own = {name: each.threshold for name, each in self.judgements.items()}
        named, given = self.comparison.named, self.comparison.threshold
        others = [f"{n} has {v:g}" for n, v in own.items() if v != own[named]]
        if given != "named" or not others:
            return ""
        return (
            f"threshold {own[named]:g}, {named}'s own, for all ({', '.join(others)}); "
            "--threshold sets another"
        )


def in_common(systems: Mapping[str, ScoredRows]) -> dict[str, ScoredRows]:
    """The systems' scores of the rows that all of them have, which are all rows whose label is one
    of each system's words; those without an answer among them."""
    keys = set.intersection(*(set(scores.keys()) for scores in systems.values()))
    return {
        name: scores.take(np.array([key in keys for key in scores.keys()], bool))
        for name, scores in systems.items()
    }


def origins_of(tests: Mapping[str, Sequence[Record]]) -> dict[str, tuple[str, str]]:
    """See `paper_report.Origins`."""
    first = {slug(name): rows[0] for name, rows in tests.items() if rows}
    return {name: (row.id.partition("-")[0], subset_of(row)) for name, row in first.items()}


def report(
    shown: Findings, folder: Path, apart_rows: tuple[LeftOut, Unanswered], more: Sequence[Section]
) -> Path:
    """Writes the report with its tables, and every system's verdicts as it counts them; returns
    the page.

    Args:
        shown: what it is made of.
        folder: where.
        apart_rows: rows that were left out, and those without an answer.
        more: sections about rows and sets.
    """
    comparison, judged, facts = shown.comparison, shown.judged, shown.facts()
    for name, each in shown.judgements.items():
        counted = at_threshold(each.scored, judged.cut(name), each.words)
        write_atomic(folder / f"{name}.verdicts.jsonl", verdict_lines(counted))

    def lookup(benchmark: str, row_id: str) -> tuple[bytes | None, str]:
        return shown.lookup(benchmark.removesuffix(TRAINED_ON), row_id)

    sections = guard_sections(judged, lookup)
    beside = [
        paper_report.printed(judged, shown.origins) if comparison.published else None,
        _clustered(judged, comparison),
        paper_report.twins(judged),
        paper_report.over_refusal(judged, shown.origins),
        paper_report.no_answers(judged),
        _speed(shown),
        paper_report.remarks(
            judged, {name: each.remarks for name, each in shown.judgements.items()}
        ),
        _failed_section(shown.failed),
    ]
    sections += [section for section in beside if section is not None]
    scored = {name: each.scored for name, each in shown.judgements.items()}
    sections += [*policy_sections(scored), *more, *left_out_sections(apart_rows[0])]
    sections.append(run_section(judged, facts, shown.contents))
    meta = {**comparison.meta, "threshold": judged.threshold, "thresholds": dict(judged.thresholds)}
    meta |= {"systems": facts, "rows": rows_hashes(judged.systems[judged.main], shown.contents)}
    meta |= {"versions": library_versions()}
    pages = system_pages(judged, lookup, facts, comparison.seed, shown.explained)
    made = Report("Guards compared", sections, meta, pages)
    page = made.write(folder)
    write_tables(sections, made.figures(), folder)
    return page


def _clustered(judged: Judged, comparison: Evaluation) -> Section | None:
    if not comparison.samples:
        return None
    return paper_report.clustered(judged, comparison.samples, comparison.seed)


def _speed(shown: Findings) -> Section | None:
    if not shown.comparison.speed_rows:
        return None
    judged = shown.judgements.items()
    speeds = {name: each.speed.figures() if each.speed else {} for name, each in judged}
    return paper_report.speed(speeds, shown.judged.titles)


def _failed_section(failed: Mapping[str, str]) -> Section | None:
    if not failed:
        return None
    lines = tuple(f"**{quoted(name)}**: {quoted(reason)}" for name, reason in failed.items())
    return Section("Systems that failed", (Bullets(lines),))


def print_report(shown: Findings, apart_rows: tuple[LeftOut, Unanswered], page: Path) -> int:
    """Prints the overall figures, what was left out, and where the report is; the exit code."""
    if line := shown.threshold_line():
        print(line)
    for name, figures in shown.judged.results.items():
        for measure in ("asr", "fpr", "complied", "refused", "accuracy", "auroc"):
            if (figure := figures.get(f"all.{measure}")) is not None and figure.n:
                print(f"{name} {measure} {_figure_text(figure)}")
    left_out, unanswered = apart_rows
    code = print_left_out(unanswered)
    code = print_summary(left_out, page) or code
    if shown.failed:
        print(f"exit code 1, because of what failed: {', '.join(shown.failed)}")
    return code or int(bool(shown.failed))


def _figure_text(figure: Estimate) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}] n={figure.n}"


def policy_sections(judgements: Mapping[str, Scored]) -> list[Section]:
    """What the systems' policies did, by benchmark and label; nothing where none did anything."""
    rows = []
    for name, scored in judgements.items():
        for (benchmark, label), counts in branch_counts(scored).items():
            total = counts.total()
            rows += [
                (name, benchmark, label, BRANCHES[branch], f"{n:,} of {total:,}")
                for branch, n in sorted(counts.items())
                if branch != "accept"
            ]
    if not rows:
        return []
    caption = "Rows that a policy did not let its model decide alone, of all of that label."
    table = Table(("System", "Benchmark", "Label", "What", "Rows"), tuple(rows), caption)
    return [Section("What the policy did", (table,))]


def data_sections(readings: Sequence[SourceRows]) -> list[Section]:
    """What was read of published sets, and their licences; nothing where there are none."""
    lines = tuple(quoted(line) for reading in readings for line in reading.lines())
    return [Section("The data sets", (Bullets(lines),))] if lines else []


def left_out_sections(left_out: LeftOut) -> list[Section]:
    """What a report says of the rows that it is not about; nothing where there are none."""
    if not left_out.total:
        return []
    rows = tuple((reason, file, f"{n:,}") for (file, reason), n in left_out.counts.most_common())
    table = Table(("Why", "of", "rows"), rows, f"Each by itself is in {left_out.path.name}.")
    return [Section("Rows left out", (table,))]


def print_summary(left_out: LeftOut, page: Path, faultless: Collection[str] = ()) -> int:
    """Prints what was left out and where the report is; returns the exit code.

    Args:
        left_out: the rows.
        page: the report.
        faultless: reasons, by kind, that are no fault of a row's.
    """
    code = print_left_out(left_out, faultless)
    print(f"report: {page}")
    return code


def print_left_out(left_out: LeftOut, faultless: Collection[str] = ()) -> int:
    """Prints what was left out; returns the exit code. ``faultless`` is as in `print_summary`."""
    for line in left_out.lines():
        print(line)
    faults = sum(n for (_, reason), n in left_out.counts.items() if reason not in faultless)
    if isinstance(left_out, Unanswered):
        faults -= left_out.faultless
    if faults:
        what = "have no answer" if isinstance(left_out, Unanswered) else "were left out"
        print(f"exit code 1, because rows {what}")
    return int(faults > 0)
