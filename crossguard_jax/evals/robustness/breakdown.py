"""Robust figures by attack, by where rows come from, and by category; what each attack costs."""

from collections.abc import Mapping, Sequence

import numpy as np

from crossguard_jax.attacks.registry import Registered
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Bool
from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import slug
from crossguard_jax.evals.robustness.figures import Robustness, level, level_title, share
from crossguard_jax.evals.robustness.prompts import SharedPicture
from crossguard_jax.evals.robustness.texts import AttackedTexts
from crossguard_jax.report.blocks import Block, Section, Text
from crossguard_jax.report.tables import ABSENT, Cell, Metric, Table

Groups = dict[str, Bool[np.ndarray, " B"]]


def groups(records: Sequence[Record]) -> tuple[Groups, Groups]:
    """Which rows belong together, by name: by source and by source and label; and by category.

    A source of implicit rows is a group by itself, so that no mean with easier ones hides it.
    """
    sources = np.array([record.source or "rows" for record in records])
    labels = np.array([record.label for record in records])
    categories = np.array([record.category for record in records])
    whose: Groups = {}
    for source in dict.fromkeys(sources.tolist()):
        own = sources == source
        whose[source] = own
        of_source = dict.fromkeys(labels[own].tolist())
        if 1 < len(of_source) <= 5:
            whose |= {f"{source}, {label}": own & (labels == label) for label in of_source}
    kinds = {
        f"{source}: {category}": (sources == source) & (categories == category)
        for source, category in sorted({*zip(sources.tolist(), categories.tolist(), strict=True)})
        if category
    }
    return whose, kinds


def groups_section(systems: Mapping[str, Robustness], records: Sequence[Record]) -> Section:
    """Robust accuracy by source, label and category, worst case over all attacks on pictures."""
    blocks: list[Block] = []
    everything: dict[str, Estimate] = {}
    for what, some in zip(("Source and label", "Category"), groups(records), strict=True):
        rows: list[tuple[Cell, ...]] = []
        for name, system in systems.items():
            norm, radii = system.norm, system.any.plan.epsilons
            right, robust = system.stacked("right"), system.stacked("robust")
            for group, own in some.items():
                among = np.broadcast_to(own, right.shape)
                where = f"{norm}.group.{slug(group)}"
                figures = {f"{where}.clean": share(right, among)} | {
                    f"{where}.{level(norm, epsilon)}": share(robust[:, e], among)
                    for e, epsilon in enumerate(radii)
                }
                cells = [Metric(f"{name}.{k}", v, "percent", True) for k, v in figures.items()]
                rows.append((f"{name}: {group}", *cells))
                everything |= {f"{name}.{k}": v for k, v in figures.items()}
        if rows:
            titles = [f"robust at {level_title(norm, epsilon)}" for epsilon in radii]
            caption = "Accuracy in percent of the group's rows, worst case over the suite."
            blocks.append(Table((what, "clean", *titles), tuple(rows), caption))
    return Section("By source and category", tuple(blocks), everything)


def attacks_section(
    attacks: Mapping[str, Registered],
    pictures: Mapping[str, Robustness],
    texts: Mapping[str, Mapping[str, AttackedTexts]],
    shared: Mapping[str, Mapping[str, SharedPicture]],
    epsilon: float,
    records: Sequence[Record],
) -> Section:
    """Every attack that ran, a line each: what it is, what it costs, and what it did.

    Args:
        attacks: by name, as configured.
        pictures, texts, shared: what came of them, by system.
        epsilon: the radius of the picture's ball that ASR is given at.
        records: the rows.
    """
    systems = [*dict.fromkeys([*pictures, *texts, *shared])]
    everything: dict[str, Estimate] = {}
    rows: list[tuple[Cell, ...]] = []
    for name, attack in attacks.items():
        cost = attack.cost
        knows = "the check" if attack.adaptive else "a model" if attack.transfer else "–"
        cells: list[Cell] = []
        for system in systems:
            of = pictures.get(system), texts.get(system), shared.get(system)
            estimate = _asr(name, *of, epsilon)
            if estimate is None:
                cells.append(ABSENT)
                continue
            metric = f"{system}.attack.{name}.asr"
            everything[metric] = estimate
            cells.append(Metric(metric, estimate, "percent", True))
        passes = f"{cost.forward:,} + {cost.gradient:,}"
        rows.append((name, attack.perturbs, attack.goal, knows, passes, *cells))
    heads: tuple[str, ...] = ("Attack", "perturbs", "goal", "knows", "passes a row")
    heads += tuple(f"ASR of {system}" for system in systems)
    caption = (
        "ASR in percent of the rows that were right when clean (of `denial`, those that it has "
        "rejected; of a targeted attack, the target is given, among rows with another answer); a "
        "picture's ball is that of the radius that `convergence` names. Passes: "
        "forward + gradient, at most. Unless each attack ran alone, a picture attack's share is of "
        "what the ones before it left: it compares no attacks."
    )
    blocks: list[Block] = [Table(heads, tuple(rows), caption)]
    if texts:
        blocks += _texts(texts, records, everything)
    for system, results in shared.items():
        for name, result in results.items():
            blocks.append(
                Text(
                    f"`{name}`, {system}: one picture, {len(result.texts)} prompts that were not "
                    f"answered {result.target!r} beside it; attacked, {int(result.won.sum())} are."
                )
            )
    return Section("Each attack", tuple(blocks), everything)


def _asr(
    name: str,
    pictures: Robustness | None,
    texts: Mapping[str, AttackedTexts] | None,
    shared: Mapping[str, SharedPicture] | None,
    epsilon: float,
) -> Estimate | None:
    if shared and name in shared:
        won = shared[name].won
        return share(won[None], np.ones_like(won)[None])
    if texts and name in texts:
        won = texts[name].won
        return share(won[None], np.ones_like(won)[None])
    if pictures is None or epsilon not in pictures.any.plan.epsilons:
        return None
    right = pictures.stacked("right") & pictures.among.get(name, True)
    entries = pictures.any.plan.attacks
    number = next((i for i, entry in enumerate(entries) if entry.name == name), None)
    if number is None:
        return None
    e = pictures.any.at(epsilon)
    for of in ("denials", "each"):
        if name in getattr(pictures.any, of):
            hits = [getattr(curve, of)[name][e] for curve in pictures.curves.values()]
            return share(np.stack(hits), right)
    return share(pictures.stacked("by")[:, e] == number, right)


def _texts(
    texts: Mapping[str, Mapping[str, AttackedTexts]],
    records: Sequence[Record],
    everything: dict[str, Estimate],
) -> list[Block]:
    """The text attacks by label, with edits, queries and how like the texts still are."""
    labels = np.array([record.label for record in records])
    kinds = [*dict.fromkeys(labels.tolist())]
    kinds = kinds if 1 < len(kinds) <= 5 else []
    rows: list[tuple[Cell, ...]] = []
    for system, results in texts.items():
        for name, result in results.items():
            where = f"{system}.attack.{name}"
            caught = share((result.fooled & ~result.won)[None], np.ones_like(result.won)[None])
            figures = {f"{where}.caught": caught}
            for label in kinds:
                own = labels[result.rows] == label
                figures[f"{where}.{slug(label)}.asr"] = share(result.won[None], own[None])
            everything.update(figures)
            cells = [Metric(k, v, "percent", True) for k, v in figures.items()]
            bound = f"{result.attack.bound}, {_most(result.attack)}"
            means = [_mean(result, field) for field in ("edits", "queries", "similarity")]
            rows.append((f"{system}: {name}", bound, *cells, *means))
    heads = ("System: attack", "bound", "caught", *(f"ASR of {label} rows" for label in kinds))
    heads += ("edits", "texts tried", "similarity")
    caption = (
        "Attacks on the user's text. Edits and texts tried are means over the rows attacked; "
        "similarity is the mean cosine of the sentence encoder's vectors of the text before and "
        "after, over the rows that were broken."
    )
    return [Table(heads, tuple(rows), caption)]


def _most(attack: Registered) -> str:
    options = attack.options
    n = options.get("tokens", options.get("text_epsilon", attack.steps))
    return f"at most {n:g}"


def _mean(result: AttackedTexts, field: str) -> str:
    values = result.values[field]
    values = values[result.won] if field == "similarity" else values
    values = values[~np.isnan(values)]
    return f"{values.mean():.3g}" if values.size else ABSENT
