"""Single attacked rows to look at: the picture, what was added, and what became of the answer."""

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossguard_jax.cmai import policy as policies
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.noise import row_keys
from crossguard_jax.core.typing import Float, Int, Shaped
from crossguard_jax.evals.robustness.figures import level_title
from crossguard_jax.evals.robustness.probe import ADAPTIVE, OBLIVIOUS, Probe, s_c
from crossguard_jax.report import drawing
from crossguard_jax.report.blocks import Plot, Section, Text
from crossguard_jax.report.text import printable

GAIN = 10
"""What a perturbation is multiplied by, to be seen."""

REJECTED = "rejected"

_answers = functools.partial(jax.jit, static_argnums=(0, 1))(policies.answer_all)


@dataclass(frozen=True)
class Shown:
    """One row, before and after.

    Attributes:
        text: what is asked.
        label: the right answer.
        pictures: grey levels [X, Y, C].
        verdicts: what is answered as deployed, or `REJECTED`.
        s_c: how well text and picture fit; NaN where nothing checks.
    """

    text: str
    label: str
    pictures: tuple[Shaped[np.ndarray, "X Y C"], Shaped[np.ndarray, "X Y C"]]
    verdicts: tuple[str, str]
    s_c: tuple[float, float]


def pick(system: Immunized, probe: Probe, n: int = 6, seed: int = 0) -> list[Shown]:
    """Up to ``n`` rows of the adaptive attack, or, where nothing checks, of the oblivious one.

    In turn a row that fools the model and is accepted, one that fools it and is not, and one that
    stands, as long as there are any; each kind's are drawn at random.
    """
    attacked = probe.attacked[ADAPTIVE if ADAPTIVE in probe.attacked else OBLIVIOUS]
    cut = -np.inf if probe.cut is None else probe.cut
    accepted = attacked.s_c >= cut
    kinds = (attacked.fooled & accepted, attacked.fooled & ~accepted, ~attacked.fooled)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(kind)) for kind in kinds]
    longest = max(len(rows) for rows in drawn)
    turns = [rows[i] for i in range(longest) for rows in drawn if i < len(rows)]
    chosen = np.array(turns[:n], int)
    rows = attacked.rows[chosen]
    if not rows.size:
        return []
    after = attacked.pictures[chosen]
    before = np.round(255 * probe.x[rows]).astype(np.uint8)
    verdicts, s_cs = zip(
        *(_verdicts(system, probe, rows, pictures) for pictures in (before, after)), strict=True
    )
    return [
        Shown(
            text=probe.records[row].text,
            label=probe.records[row].label,
            pictures=(_drawn(before[i]), _drawn(after[i])),
            verdicts=(verdicts[0][i], verdicts[1][i]),
            s_c=(float(s_cs[0][i]), float(s_cs[1][i])),
        )
        for i, row in enumerate(rows.tolist())
    ]


def _drawn(pixels: np.ndarray) -> Shaped[np.ndarray, "X Y C"]:
    """A row's pictures side by side."""
    one = pixels if pixels.ndim == 3 else np.concatenate([*pixels], axis=-1)
    return np.moveaxis(one, 0, -1)


def _verdicts(
    system: Immunized, probe: Probe, rows: Int[np.ndarray, " R"], pictures: np.ndarray
) -> tuple[list[str], Float[np.ndarray, " R"]]:
    """What the policy answers to each, and S_c."""
    inputs = {name: jnp.asarray(value) for name, value in probe.at(rows).items()}
    inputs["pixels"] = jnp.asarray(pictures, jnp.float32) / 255
    scores = s_c(system, system.params, inputs, inputs["pixels"])
    keys = row_keys(jax.random.key(0), [str(row) for row in rows])
    given = (system.params, inputs, scores, keys)
    branches, p = (np.asarray(part) for part in _answers(system.policy, system.predict, *given))
    words = []
    for branch, best in zip(branches, p.argmax(axis=1), strict=True):
        do = system.policy.branches[branch].do
        word = system.task.labels[best] + ("" if do == "accept" else f" ({do})")
        words.append(REJECTED if do == "reject" else word)
    checked = np.asarray(scores, np.float64)
    return words, checked if system.task.reader else np.full(len(rows), np.nan)


@drawing.styled
def attacked_pictures(rows: Sequence[Shown]) -> Figure:
    """A line a row: the picture, the perturbation times `GAIN` around grey, the attacked picture.

    A wrong answer is vermillion, a right one green, none blue.
    """
    figure, axes = drawing.panels(len(rows), 3, (6.0, 2.45 * len(rows)))
    for i, row in enumerate(rows):
        before, after = (picture.astype(int) for picture in row.pictures)
        grey = np.clip(128 + GAIN * (after - before), 0, 255)
        words = textwrap.wrap(printable(row.text), 40, max_lines=3, placeholder=" …")
        first, second, third = axes[3 * i : 3 * i + 3]
        for panel, picture in ((first, before), (second, grey), (third, after)):
            # Nearest keeps the edges of a small picture; a photograph wants smoothing.
            smooth = "nearest" if before.shape[0] <= 128 else "antialiased"
            panel.imshow(picture.astype(np.uint8), interpolation=smooth)
            panel.set(xticks=[], yticks=[])
        for panel, side in ((first, 0), (third, 1)):
            _verdict(panel, row, side)
        second.set_title(f"perturbation ×{GAIN}", fontsize=8, fontweight="normal")
        second.set_xlabel("\n".join(words), fontsize=7, style="italic", parse_math=False)
    return figure


def _verdict(axes: Axes, row: Shown, side: int) -> None:
    verdict = row.verdicts[side]
    colour, mark = drawing.VERMILLION, "✗"
    if verdict == REJECTED:
        colour, mark = drawing.BLUE, "–"
    elif verdict.split(" (")[0] == row.label:
        colour, mark = drawing.GREEN, "✓"
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.8)
    axes.set_title(f"{mark} {drawing.plain(verdict)}", color=colour, fontsize=8.5)
    if not np.isnan(row.s_c[side]):
        axes.set_xlabel(f"S_c {row.s_c[side]:.3f}", fontsize=8)


def pictures_section(name: str, system: Immunized, probe: Probe, n: int = 6) -> Section:
    """The section of them.

    Args:
        name: of the system, dotted.
        system: what was probed.
        probe: what came of it.
        n: rows at most.
    """
    rows = pick(system, probe, n)
    at = f"{level_title(probe.norm, probe.epsilon)} in {probe.norm}"
    kind = ADAPTIVE if ADAPTIVE in probe.attacked else OBLIVIOUS
    caption = (
        f"Rows of the {kind} attack at {at}, drawn at random among those that are broken, caught "
        "and still right. Left: the picture as it is; middle: what was added, times "
        f"{GAIN}, around grey, and the text; right: the attacked picture. Above, what the system "
        "says as deployed; below, S_c."
    )
    stem = "_".join(["attacked", *name.split(".")])
    if not rows:
        return Section("Attacked pictures", (Text("No row is answered rightly as it is."),))
    drawn = Plot.of(stem, attacked_pictures(rows), caption)
    return Section("Attacked pictures", (drawn,))
