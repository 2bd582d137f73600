"""The section of a report on tasks: what models do with pictures as they are, and attacked."""

from collections.abc import Mapping

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.figures import level_title
from crossguard_jax.evals.tasks.attack import Attack, Measured, where
from crossguard_jax.evals.tasks.counts import Counts, differences_of
from crossguard_jax.report import plots
from crossguard_jax.report.blocks import Block, Definitions, Plot, Section, Text
from crossguard_jax.report.tables import ABSENT, Cell, Metric, Table

Systems = Mapping[str, Mapping[str, Measured]]
"""By system's dotted name, then by benchmark's."""

_TERMS = {
    "vqa_accuracy": (
        "VQA accuracy",
        "An answer counts by how many of ten people gave it, three or more in full, averaged over "
        "leaving out one of them. The model's answers are normalized first.",
    ),
    "cider": (
        "CIDEr",
        "CIDEr-D: n-grams of one to four words that a caption shares with people's captions, "
        "rare ones counting more. 100 times the value, as is usual.",
    ),
    "bleu4": ("BLEU-4", "Corpus BLEU-4 against all of people's captions, times 100."),
    "image_to_text": (
        "R@k, image to text",
        "Share of pictures that have a caption of their own among the k nearest of all captions.",
    ),
    "text_to_image": (
        "R@k, text to image",
        "Share of captions whose picture is among the k nearest of all (attacked) pictures.",
    ),
    "rejected": (
        "Rejected",
        "Share of rows whose response does not fit its picture by the model's check. Clean, it "
        "counts as no response; an attack whose response is rejected has done no harm, and the row "
        "keeps what the attacker was given before.",
    ),
}
_SHOWN = 6  # rows whose words are shown


def tasks_section(systems: Systems, attack: Attack) -> Section:
    """Figures with intervals, clean and at every radius, bars, and some rows in words.

    Args:
        systems: what was measured, all of it under ``attack``.
        attack: the attack.
    """
    estimates = {
        (system, benchmark): measured.figures()
        for system, benchmarks in systems.items()
        for benchmark, measured in benchmarks.items()
    }
    blocks: list[Block] = [Text(_how(attack)), _terms(estimates), _table(estimates, attack)]
    compared = compare({s: {b: m.counts() for b, m in of.items()} for s, of in systems.items()})
    if compared:
        blocks.append(compared_table(compared, _places(attack)))
    blocks.append(Plot.of("tasks", plots.rate_bars(_bars(estimates, attack), "Percent"), _BARS))
    if attack.epsilons:
        blocks.append(_words(systems, attack))
    everything = {
        f"{system}.{benchmark}.{place}.{name}": estimate
        for (system, benchmark), places in estimates.items()
        for place, figures in places.items()
        for name, estimate in figures.items()
    }
    return Section("Tasks", tuple(blocks), everything | compared)


def compare(systems: Mapping[str, Mapping[str, Mapping[str, Counts]]]) -> Figures:
    """The first system less each other one, paired by row, where both have read the same rows:
    ``ours.minus.plain.captions.linf.8.cider``.

    Args:
        systems: counts by dotted name, benchmark and place.
    """
    compared: Figures = {}
    main, *others = systems
    for other in others:
        for benchmark, places in systems[main].items():
            for place, counts in places.items():
                against = systems[other].get(benchmark, {}).get(place, {})
                same = {k: v for k, v in against.items() if len(v) == len(counts.get(k, ()))}
                for name, estimate in differences_of(counts, same).items():
                    compared[f"{main}.minus.{other}.{benchmark}.{place}.{name}"] = estimate
    return compared


def compared_table(compared: Figures, places: Mapping[str, str]) -> Table:
    """`compare`'s figures, a row a pair and figure.

    Args:
        compared: by name.
        places: titles of the columns, by the names' part.
    """
    rows: dict[str, dict[str, Cell]] = {}
    for metric, estimate in compared.items():
        pair, _, rest = metric.partition(".minus.")
        place = next(p for p in places if f".{p}." in rest)
        before, _, name = rest.partition(f".{place}.")
        title = f"{pair} minus {before.replace('.', ': ', 1)}, {_title(name)}"
        rows.setdefault(title, {})[place] = Metric(metric, estimate, "points", True)
    return Table(
        ("First minus second: task", *places.values()),
        tuple((title, *(cells.get(p, ABSENT) for p in places)) for title, cells in rows.items()),
        "Times 100, paired by row, with 95% intervals: Newcombe's for shares of rows, else the "
        "bootstrap's.",
    )


_Estimates = Mapping[tuple[str, str], Mapping[str, Mapping[str, Estimate]]]
_BARS = "The same figures, without CIDEr, which is no share."


def _how(attack: Attack) -> str:
    if not attack.epsilons:
        return "Answers by greedy decoding. Brackets are 95% intervals."
    radii = ", ".join(level_title(attack.norm, e) for e in attack.epsilons)
    return (
        f"Answers by greedy decoding. Pictures are attacked at the model's resolution, "
        f"{attack.norm} radius {radii}, by `{attack.name}` of {attack.steps} steps and "
        f"{attack.restarts} restart(s) from random points (seed {attack.seed}): the likelihood "
        f"of up to {attack.aims} answers a row is lowered in turn, its own clean one and what most "
        "people said; a retrieved picture's vector is pushed from where it was. Results are "
        "rounded to grey levels and responded to anew, and each row keeps its worst. One attack "
        "alone: the worst case is at least as bad. Brackets are 95% intervals."
    )


def _terms(estimates: _Estimates) -> Definitions:
    there = {name.split(".")[0] for places in estimates.values() for name in places["clean"]}
    return Definitions(tuple(term for name, term in _TERMS.items() if name in there))


def _title(name: str) -> str:
    first, _, k = name.partition(".r")
    return _TERMS[first][0].replace("@k", f"@{k}")


def _places(attack: Attack) -> dict[str, str]:
    """Places of figures, and their titles."""
    radii = {where(attack.norm, e): level_title(attack.norm, e) for e in sorted(attack.epsilons)}
    return {"clean": "clean"} | radii


def _table(estimates: _Estimates, attack: Attack) -> Table:
    places = _places(attack)
    last = list(places)[-1]
    rows: list[tuple[Cell, ...]] = []
    for (system, benchmark), figures in estimates.items():
        for name, estimate in figures["clean"].items():
            at = f"{system}.{benchmark}"
            cells: list[Cell] = [f"{system}: {benchmark}, {_title(name)}", str(estimate.n)]
            for place in places:
                cells.append(Metric(f"{at}.{place}.{name}", figures[place][name]))
            if attack.epsilons:
                change = f"{name}_difference"
                cells.append(Metric(f"{at}.{last}.{change}", figures[last][change], "points"))
            rows.append(tuple(cells))
    changes = (f"{places[last]} less clean",) if attack.epsilons else ()
    return Table(
        ("System: task", "n", *places.values(), *changes),
        tuple(rows),
        "All times 100, with 95% intervals; differences are paired by row.",
    )


def _bars(estimates: _Estimates, attack: Attack) -> dict[str, dict[str, Estimate]]:
    return {
        title: {
            f"{system} {benchmark} {_title(name)}": figures[place][name]
            for (system, benchmark), figures in estimates.items()
            for name in figures["clean"]
            if name != "cider"
        }
        for place, title in _places(attack).items()
    }


def _words(systems: Systems, attack: Attack) -> Table:
    """Rows whose response changed, the first ones of each benchmark."""
    radius = max(attack.epsilons)
    rows: list[tuple[Cell, ...]] = []
    for system, benchmarks in systems.items():
        for benchmark, measured in benchmarks.items():
            task, responses = measured.task, measured.attacked[radius]
            both = zip(measured.clean, responses, strict=True)
            shown = [[task.shown(each) for each in pair] for pair in both]
            changed = [r for r, (clean, attacked) in enumerate(shown) if clean != attacked]
            for r in changed[:_SHOWN]:
                people = task.references[r][0] if task.references[r] else ABSENT
                at = f"{system}: {benchmark}"
                rows.append((at, task.texts[r], people, *shown[r]))
    return Table(
        ("System: task", "asked", "a person said", "clean", level_title(attack.norm, radius)),
        tuple(rows),
        "The first rows of each task that the attack changed.",
    )
