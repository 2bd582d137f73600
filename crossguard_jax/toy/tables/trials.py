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


_MORE_IMPLICIT = tuple(
    f"--config.data.sources.{name}.weight={weight}"
    for name, weight in {
        "implicit": 0.45,
        "explicit_text": 0.08,
        "explicit_picture": 0.16,
        "typographic": 0.07,
        "benign_vqa": 0.14,
    }.items()
)
_KEPT = tuple(
    f"--config.data.sources.{name}.weight={weight}"
    for name, weight in {
        "implicit": 0.4,
        "explicit_text": 0.13,
        "explicit_picture": 0.13,
        "typographic": 0.13,
        "benign_vqa": 0.11,
    }.items()
)
_SLOW = (
    "--config.arm.epsilon.start=0.00784313725",
    "--config.arm.epsilon.step=0.000235294118",
    "--config.arm.lambda_.start=0.3",
    "--config.arm.lambda_.maximum=0.6",
    "--config.arm.lambda_.step=0.003",
)
_STEEP = ("--config.arm.lambda_.maximum=0.7", "--config.arm.lambda_.start=0.7")
_WIDE = (
    "--config.lora.rank=32",
    "--config.lora.alpha=64.0",
    r"--config.lora.targets=vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    r"|multi_modal_projector\..*|language_model\..*_proj",
)
_TWO = ("--config.mbat.steps=2", "--config.train.steps=500")
_RAMPS = (
    "--config.arm.epsilon.start=0.0156862745",
    "--config.arm.epsilon.step=0.00031372549",
    "--config.arm.lambda_.maximum=0.7",
    "--config.arm.lambda_.step=0.007",
)

TRIALS: Mapping[str, Trial] = {
    "none": Trial("No defence", None),
    "mbat": Trial("mbat as it is: 400 steps of 16, 3 inner ones"),
    "two": Trial("2 inner steps, 500 steps", changes=_TWO),
    "lambda": Trial("lambda 0.7", changes=_STEEP),
    "implicit": Trial("half of the rows implicit", changes=_MORE_IMPLICIT),
    "wide": Trial("rank 32, the tower's MLPs and the projector too", changes=_WIDE),
    "trades": Trial("TRADES", changes=("--config.mbat.outer=trades", *_STEEP)),
    "all": Trial("all", "tiny", (*_TWO, *_RAMPS, *_MORE_IMPLICIT, *_WIDE)),
    "kept": Trial("all, kept", "tiny", (*_TWO, *_SLOW, *_KEPT, *_WIDE)),
}


def passes(config: Any) -> int:
    """Forward and backward passes of a row that a training takes: the inner attack's, and the
    clean and the adversarial row's."""
    return config.train.steps * config.train.batch_size * (config.mbat.steps + 2)


@drawing.styled
def cost_curve(figures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Robust accuracy, and AUROC under attack, against passes; the guard that nobody trained is a
    line, and so is what one answer to all rows would get.

    Args:
        figures: of ``immunizing.json``, by ``ROW.FIGURE``.
    """
    names = [name for name in TRIALS if f"{name}.robust" in figures]
    figure, panels = drawing.panels(1, 2, (6.9, 3.6))
    for axes, what, label in zip(panels, ("robust", "auroc"), _SHOWN, strict=True):
        axes.axhline(50, color=drawing.GREY, linewidth=0.8, linestyle=":")
        for i, name in enumerate(names):
            colour, share = drawing.COLOURS[i % len(drawing.COLOURS)], figures[f"{name}.{what}"]
            value, cost = 100 * share["value"], figures[f"{name}.passes"]["value"]
            if not cost:
                axes.axhline(value, color=drawing.BLACK, linewidth=0.8, label=TRIALS[name].title)
                continue
            ends = [
                [100 * (share["value"] - share["low"])],
                [100 * (share["high"] - share["value"])],
            ]
            look: dict[str, Any] = {"marker": _MARKERS[i // len(drawing.COLOURS)], "color": colour}
            title = drawing.plain(TRIALS[name].title)
            axes.errorbar([cost / 1_000], [value], ends, label=title, linestyle="", **look)
        axes.set(xscale="log", xlabel="Passes of a row, thousands", ylabel=label, ylim=(0, 100))
        axes.grid(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


_SHOWN = ("Robust accuracy (%)", "AUROC under attack (%)")
_MARKERS = ("o", "s", "^")
