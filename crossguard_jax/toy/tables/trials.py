"""What `immunizing` tries: changes of a configuration, what each costs, and the curve of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from crossguard_jax.report import drawing


@dataclass(frozen=True)
class Trial:
    """One way to train.

    Attributes:
        title: to show.
        variant: of ``configs/cmai.py``; None is no training at all.
        changes: ``--config.FIELD=VALUE``.
    """

    title: str
    variant: str | None = "mbat"
    changes: tuple[str, ...] = ()


_ATTENTION = r"vision_tower\..*\.(q|k|v|out)_proj|language_model\..*\.(q|k|v|o|gate|up|down)_proj"


def _weights(**of_source: float) -> tuple[str, ...]:
    return tuple(f"--config.data.sources.{k}.weight={v}" for k, v in of_source.items())


def _adversary(**knobs: tuple[float, float, float]) -> tuple[str, ...]:
    """ARM's knobs: start, maximum and step."""
    return tuple(
        f"--config.arm.{knob}.{field}={value}"
        for knob, values in knobs.items()
        for field, value in zip(("start", "maximum", "step"), values, strict=True)
    )


_RAMP = 4 / 255, 8 / 255, 0.08 / 255
_FIXED = _adversary(epsilon=(8 / 255, 8 / 255, 0.0), lambda_=(0.4, 0.4, 0.0))
_STEEP = _adversary(lambda_=(0.7, 0.7, 0.0))
_NARROW = (
    "--config.lora.rank=16",
    "--config.lora.alpha=32.0",
    f"--config.lora.targets={_ATTENTION}",
)
_LONG = (
    "--config.train.steps=1400",
    "--config.train.batch_size=32",
    "--config.train.save_every=200",
)
_FEW = ("--config.train.steps=400", "--config.mbat.steps=3")
_FIRST = _weights(
    implicit=0.25, explicit_text=0.15, explicit_picture=0.22, typographic=0.1, benign_vqa=0.18
)
_IMPLICIT = _weights(
    implicit=0.45, explicit_text=0.08, explicit_picture=0.16, typographic=0.07, benign_vqa=0.14
)

TRIALS: Mapping[str, Trial] = {
    "none": Trial("No defence", None),
    "before": Trial(
        "Before: rank 16 and not the tower's MLPs, lambda 0.4, 30% implicit rows",
        changes=(*_FIXED, *_NARROW, *_FEW, *_FIRST),
    ),
    "lambda": Trial("Before, lambda 0.7", changes=(*_FIXED, *_NARROW, *_FEW, *_FIRST, *_STEEP)),
    "trades": Trial(
        "Before, TRADES, lambda 0.7",
        changes=(*_FIXED, *_NARROW, *_FEW, *_FIRST, *_STEEP, "--config.mbat.outer=trades"),
    ),
    "implicit": Trial("Before, 50% implicit rows", changes=(*_FIXED, *_NARROW, *_FEW, *_IMPLICIT)),
    "wide": Trial(
        "Before, rank 32, the tower's MLPs and the projector too", changes=(*_FIXED, *_FEW, *_FIRST)
    ),
    "all": Trial(
        "All, 2 inner steps, ramps of 50 alarms to lambda 0.7",
        "tiny",
        (*_IMPLICIT, *_adversary(epsilon=_RAMP, lambda_=(0.35, 0.7, 0.007))),
    ),
    "tiny": Trial("tiny: 45% implicit rows and more lettering, ramps of 100 to 0.6", "tiny"),
    "long": Trial("tiny_long", "tiny_long"),
    "longer": Trial("tiny_long, four times as long", "tiny_long", ("--config.train.steps=5600",)),
    "ceiling": Trial(
        "Ceiling: full rank in every kernel, PGD-10 inside, 4,000 steps of 32",
        "tiny_long",
        (
            "--config.train.steps=4000",
            "--config.mbat.steps=10",
            "--config.lora.rank=128",
            "--config.lora.alpha=256.0",
            "--config.optim.learning_rate=1e-3",
        ),
    ),
    **{
        f"{variant}{end}": Trial(f"{title}{of_length}", variant, changes)
        for variant, title in {
            "mbat": "(ii) MBAT alone",
            "cmcv_mbat": "(iii) CMCV + MBAT",
            "seed": "(iv), the seed's adversary alone",
            "evasive": "(iv), the evasive adversary alone",
            "pgd_at": "PGD-AT, picture tower",
            "fare": "FARE, picture tower",
            "e2at": "E2AT-style joint training",
        }.items()
        for end, of_length, changes in (("", "", ()), ("_long", ", as long as tiny_long", _LONG))
    },
    "trades_long": Trial("tiny_long, TRADES", "tiny", (*_LONG, "--config.mbat.outer=trades")),
}
"""Those without the check or without ARM have their last epsilon and lambda from the first step
on."""


RECIPES: Mapping[str, tuple[str, ...]] = {
    "(iv) tiny": ("none", "tiny", "long", "longer"),
    **{name: ("none", name, f"{name}_long") for name in ("mbat", "pgd_at", "fare", "e2at")},
}
"""One recipe each, for more and more passes."""


def passes(config: Any) -> int:
    """Forward and backward passes of a row that a training takes: the inner attack's, and the
    clean and the adversarial row's."""
    return config.train.steps * config.train.batch_size * (config.mbat.steps + 2)


@drawing.styled
def cost_curve(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Robust accuracy, and AUROC under attack, against passes, with intervals; a line joins those
    of one recipe, and a dotted one is what one answer to all rows would get.

    Args:
        figures: of ``immunizing.json``, by ``ROW.FIGURE``.
    """
    names = [name for name in TRIALS if f"{name}.robust" in figures]
    figure, panels = drawing.panels(1, 2, (5.4, 3.1))
    for axes, what, label in zip(panels, ("robust", "auroc"), _SHOWN, strict=True):
        axes.axhline(50, color=drawing.GREY, linewidth=0.8, linestyle=":")
        points = {
            name: (
                figures[f"{name}.passes"]["value"] / 1_000,
                100 * figures[f"{name}.{what}"]["value"],
            )
            for name in names
        }
        for recipe in RECIPES.values():
            joined = [points[name] for name in recipe if name in points]
            if joined:
                axes.plot(*zip(*joined, strict=True), color=drawing.GREY, linewidth=0.8)
        for i, (name, (cost, value)) in enumerate(points.items()):
            share = figures[f"{name}.{what}"]
            ends = [[value - 100 * share["low"]], [100 * share["high"] - value]]
            look: dict[str, Any] = {
                "marker": _MARKERS[i // len(drawing.COLOURS)],
                "color": drawing.COLOURS[i % len(drawing.COLOURS)],
            }
            axes.errorbar([cost], [value], ends, label=name, linestyle="", **look)
        axes.set(xlabel="Passes of a row, thousands", ylabel=label, ylim=(0, 100))
        axes.grid(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


_SHOWN = ("Robust accuracy (%)", "AUROC under attack (%)")
_MARKERS = ("o", "s", "^")
