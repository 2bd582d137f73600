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
    "all of CMAI": ("none", "tiny", "long", "longer"),
    "MBAT alone": ("none", "mbat", "mbat_long"),
    "PGD-AT": ("none", "pgd_at", "pgd_at_long"),
    "FARE": ("none", "fare", "fare_long"),
    "E2AT-style": ("none", "e2at", "e2at_long"),
}
"""One defence each, for more and more passes."""


def passes(config: Any) -> int:
    """Forward and backward passes of a row that a training takes: the inner attack's, and the
    clean and the adversarial row's."""
    return config.train.steps * config.train.batch_size * (config.mbat.steps + 2)


@drawing.styled
def cost_curve(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Robust accuracy, and AUROC under attack, against passes, with intervals. A line is a recipe
    of `RECIPES`, grey points are the other rows, and the dotted line is what one answer to all rows
    would get.

    Args:
        figures: of ``immunizing.json``, by ``ROW.FIGURE``.
    """
    names = [name for name in TRIALS if f"{name}.robust" in figures]
    figure, panels = drawing.panels(1, 2, (5.4, 3.1))
    joined = {name for recipe in RECIPES.values() for name in recipe}
    lines = [*RECIPES.items(), ("other rows", tuple(n for n in names if n not in joined))]
    for axes, what, label in zip(panels, ("robust", "auroc"), _SHOWN, strict=True):
        axes.axhline(50, color=drawing.GREY, linewidth=0.8, linestyle=":")
        for i, (title, recipe) in enumerate(lines):
            measured = [name for name in recipe if name in names]
            if measured in ([], ["none"]):  # where all recipes begin is no line
                continue
            costs = [figures[f"{name}.passes"]["value"] / 1_000 for name in measured]
            shares = [figures[f"{name}.{what}"] for name in measured]
            values = [100 * share["value"] for share in shares]
            ends = [
                [value - 100 * share["low"] for value, share in zip(values, shares, strict=True)],
                [100 * share["high"] - value for value, share in zip(values, shares, strict=True)],
            ]
            other = title not in RECIPES
            look: dict[str, Any] = {
                "color": drawing.GREY if other else drawing.COLOURS[i],
                "linestyle": "" if other else "-",
            }
            axes.errorbar(costs, values, ends, label=title, marker="o", **look)
        axes.set(xlabel="Passes of a row, thousands", ylabel=label, ylim=(0, 100))
        axes.grid(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


_SHOWN = ("Robust accuracy (%)", "AUROC under attack (%)")
