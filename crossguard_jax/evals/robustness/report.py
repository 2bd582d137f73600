"""The section of a report on robustness; its seal comes first."""

from collections.abc import Mapping

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.evals.robustness import plots
from crossguard_jax.evals.robustness.figures import (
    Robustness,
    compare,
    converged_name,
    figures,
    level,
    level_title,
)
from crossguard_jax.evals.robustness.lint import Limits, missing, stamp, unequal
from crossguard_jax.report.blocks import Block, Definitions, Plot, Section, Text
from crossguard_jax.report.tables import ABSENT, Cell, Metric, Table, Unit

_TITLES = {"linf": "L∞", "l2": "L2"}
_TERMS = (
    (
        "Robust accuracy",
        "Share of all rows that are right when clean and that no attack of the suite breaks "
        "within the radius. A break is an answer that is wrong *and* not rejected; each row has "
        "the worst case over all attacks. A clean row that is rejected is not right.",
    ),
    ("ASR", "Share of the rows that are right when clean and broken within the radius."),
    (
        "Caught",
        "Of the same rows, those that stand although something within the radius fools the "
        "model: what fools it is rejected.",
    ),
    (
        "Denied",
        "Of the same rows, those with a perturbation within the radius that is rejected, "
        "whatever the answer: what an attacker can make the system refuse.",
    ),
    ("Unrelated picture", "ASR of giving each row another row's picture: the curve's ceiling."),
)


def robustness_section(
    systems: Mapping[str, Robustness],
    titles: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> Section:
    """Everything about one ball: seal, curves, tables, paired differences, convergence.

    Args:
        systems: by dotted name; the first is compared with each other one. All of one norm.
        titles: names to show; the dotted ones where absent.
        limits: what `missing` takes for little.

    Raises:
        UserError: no system, or systems of several norms.
    """
    norms = {system.norm for system in systems.values()}
    if len(norms) != 1:
        raise UserError(f"robustness: systems of {len(norms)} norms; make a section for each")
    (norm,) = norms
    shown = {name: (titles or {}).get(name, name) for name in systems}
    measured = {name: figures(system) for name, system in systems.items()}
    lacks = {shown[name]: missing(system, limits) for name, system in systems.items()}
    blocks: list[Block] = [*stamp(lacks, unequal(systems)), Text(_how(systems))]
    blocks += [
        Definitions(_TERMS),
        _accuracy(systems, measured, shown),
        _curves(systems, measured, shown),
    ]
    blocks.append(_broken(systems, measured, shown))
    if len(systems) > 1:
        blocks.append(_differences(systems, shown))
    blocks.append(_first(systems, measured, shown))
    if any(system.convergence for system in systems.values()):
        blocks += _convergence(systems, measured, shown)
    everything = {
        f"{name}.{figure}": estimate
        for name, metrics in measured.items()
        for figure, estimate in metrics.items()
    }
    return Section(f"Robustness in {_TITLES[norm]}", tuple(blocks), everything)


def _how(systems: Mapping[str, Robustness]) -> str:
    plan = next(iter(systems.values())).any.plan
    attacks = ", ".join(
        f"`{e.name}` ({e.kind.replace('_', ' ')}; steps {e.steps}, restarts {e.restarts}"
        + (f", {e.samples} draws)" if e.samples > 1 else ")")
        for e in dict.fromkeys(e for s in systems.values() for e in s.any.plan.attacks)
    )
    seeds = "; ".join(f"{n}: {', '.join(map(str, s.curves))}" for n, s in systems.items())
    return (
        f"{plan.rows:,} rows, the same for clean and attacked. Attacks: {attacks}. What they "
        f"return is rounded to grey levels and judged anew, by the mean of {plan.draws} draws "
        "where the system is random. A perturbation found at a smaller radius lies in the larger "
        "ball and counts there; at the last radius every row was attacked anew. Attack key "
        f"{'-'.join(map(str, plan.key))}; training seeds {seeds}. Brackets are 95% intervals for "
        "one seed's rows: seeds count as no more rows."
    )


def _cell(name: str, metrics: Mapping[str, Estimate], figure: str, unit: Unit = "percent") -> Cell:
    return Metric(f"{name}.{figure}", metrics[figure], unit, True) if figure in metrics else ABSENT


def _radii(systems: Mapping[str, Robustness]) -> list[float]:
    return sorted({e for system in systems.values() for e in system.any.plan.epsilons})


def _accuracy(
    systems: Mapping[str, Robustness],
    measured: Mapping[str, Mapping[str, Estimate]],
    shown: Mapping[str, str],
) -> Table:
    norm, radii = next(iter(systems.values())).norm, _radii(systems)
    names = [f"{norm}.{level(norm, epsilon)}.robust_accuracy" for epsilon in radii]
    columns = [f"clean {name}" for name in ("accuracy", "rejected")]
    columns += [f"robust at {level_title(norm, epsilon)}" for epsilon in radii]
    names = [f"{norm}.clean.accuracy", f"{norm}.clean.rejected", *names]
    rows = tuple(
        (shown[system], *(_cell(system, metrics, name) for name in names))
        for system, metrics in measured.items()
    )
    return Table(("System", *columns), rows, "Accuracy in percent, of all rows.")


def _broken(
    systems: Mapping[str, Robustness],
    measured: Mapping[str, Mapping[str, Estimate]],
    shown: Mapping[str, str],
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, system in systems.items():
        for epsilon in system.any.plan.epsilons:
            where = f"{system.norm}.{level(system.norm, epsilon)}"
            cells = [
                _cell(name, measured[name], f"{where}.{part}")
                for part in ("asr", "caught", "denied")
            ]
            rows.append((f"{shown[name]}: {level_title(system.norm, epsilon)}", *cells))
        swap = _cell(name, measured[name], f"{system.norm}.swap.asr")
        rows.append((f"{shown[name]}: unrelated picture", swap, ABSENT, ABSENT))
    return Table(
        ("System: radius", "ASR", "caught", "denied"),
        tuple(rows),
        "In percent of the rows that were right when clean.",
        lead=1 + len(next(iter(systems.values())).any.plan.epsilons),
    )


def _differences(systems: Mapping[str, Robustness], shown: Mapping[str, str]) -> Table:
    (main, first), *others = systems.items()
    compared = {name: compare(first, other) for name, other in others}
    names = list(dict.fromkeys(figure for metrics in compared.values() for figure in metrics))
    radii = {
        f"{first.norm}.{level(first.norm, e)}.robust_accuracy_difference": f"robust at "
        f"{level_title(first.norm, e)}"
        for e in first.any.plan.epsilons
    }
    rows = tuple(
        (
            f"{shown[main]} minus {shown[name]}",
            *(_cell(f"{main}.minus.{name}", metrics, figure, "points") for figure in names),
        )
        for name, metrics in compared.items()
    )
    return Table(
        ("First minus second", *(radii.get(figure, "clean") for figure in names)),
        rows,
        "Paired differences of accuracy on the same rows, in percentage points with 95% intervals; "
        "positive means that the first system is better.",
    )


def _first(
    systems: Mapping[str, Robustness],
    measured: Mapping[str, Mapping[str, Estimate]],
    shown: Mapping[str, str],
) -> Table:
    fooling = (a for s in systems.values() for a in s.any.plan.attacks if a.goal == "fool")
    attacks = list(dict.fromkeys(entry.name for entry in fooling))
    rows: list[tuple[Cell, ...]] = []
    for name, system in systems.items():
        for epsilon in system.any.plan.epsilons:
            where = f"{system.norm}.{level(system.norm, epsilon)}"
            cells = [_cell(name, measured[name], f"{where}.first.{a}") for a in attacks]
            rows.append((f"{shown[name]}: {level_title(system.norm, epsilon)}", *cells))
    return Table(
        ("System: radius", *attacks),
        tuple(rows),
        "Which attack broke a row first, in percent of the rows that were right when clean. Later "
        "ones run on what is left, so that a row's columns add up to ASR and compare no attacks.",
        lead=len(next(iter(systems.values())).any.plan.epsilons),
    )


def _curves(
    systems: Mapping[str, Robustness],
    measured: Mapping[str, Mapping[str, Estimate]],
    shown: Mapping[str, str],
) -> Plot:
    norm = next(iter(systems.values())).norm

    def series(measure: str) -> dict[str, dict[float, Estimate]]:
        return {
            shown[name]: {
                e: measured[name][f"{norm}.{level(norm, e)}.{measure}"]
                for e in system.any.plan.epsilons
            }
            for name, system in systems.items()
        }

    ceilings = {
        shown[name]: metrics[f"{norm}.swap.asr"].value for name, metrics in measured.items()
    }
    figure = plots.robustness_curves(series("robust_accuracy"), series("asr"), ceilings, norm)
    caption = (
        "Worst case over the suite by radius, with 95% bands (of many systems for the first two). "
        "Dotted: the ASR of an unrelated picture, which a curve must reach if its attacks are any "
        "good."
    )
    return Plot.of(f"robustness_{norm}", figure, caption)


def _convergence(
    systems: Mapping[str, Robustness],
    measured: Mapping[str, Mapping[str, Estimate]],
    shown: Mapping[str, str],
) -> list[Block]:
    series: dict[str, dict[str, dict[float, Estimate]]] = {}
    rows: list[tuple[Cell, ...]] = []
    for name, system in systems.items():
        for what, curves in system.convergence.items():
            for times, curve in curves.items():
                figure = converged_name(what, times, curve)
                series.setdefault(shown[name], {}).setdefault(what, {})[times] = measured[name][
                    figure
                ]
                at = level_title(system.norm, curve.plan.epsilons[-1])
                rows.append(
                    (
                        f"{shown[name]}: {what} ×{times:g} at {at}",
                        _cell(name, measured[name], figure),
                    )
                )
    table = Table(("System: budget", "ASR"), tuple(rows), "The whole suite, at one radius.")
    norm = next(iter(systems.values())).norm
    drawn = plots.convergence(series)
    caption = "ASR of the whole suite with multiples of every attack's steps and restarts."
    return [table, Plot.of(f"convergence_{norm}", drawn, caption)]
