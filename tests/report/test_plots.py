"""Plots: they draw what they were given, whatever its names and holes."""

import io
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.metrics import Estimate, proportion
from crossguard_jax.evals.examples import pick
from crossguard_jax.report import drawing, plots
from crossguard_jax.report.examples import OUTCOMES, Example
from crossguard_jax.report.plots import Scored
from tests.evals import scored

FULL = scored.scores(3.0)
SYSTEMS = {"full $5 mix_ture": Scored(FULL.p_unsafe, FULL.unsafe)}
ONE_CLASS = Scored(np.array([0.1, 0.9]), np.array([True, True]))
RATE = proportion(np.repeat([True, False], (3, 47)))
NOTHING = Scored(np.zeros(0), np.zeros(0, dtype=bool))


def opened(figure) -> Image.Image:
    return Image.open(io.BytesIO(drawing.png(figure)))


def example(picture: bytes | None, text: str = "May I?", p_unsafe: float = 0.9) -> Example:
    return Example("a", "implicit", picture, text, True, p_unsafe, 0.5)


@pytest.mark.parametrize(
    "systems",
    [{**SYSTEMS, "one class": ONE_CLASS, "none": NOTHING}, {"none": NOTHING}, {}],
    ids=["mixed", "empty", "no system"],
)
def test_curves_and_histograms_survive_odd_names_and_empty_classes(systems):
    assert opened(plots.roc_curves(systems)).width == round(6.9 * drawing.DPI)
    assert opened(plots.score_histograms(systems, 0.5)).width > 2.5 * drawing.DPI


def test_roc_legend_names_each_system_with_its_area():
    legend = plots.roc_curves({**SYSTEMS, "one class": ONE_CLASS}).axes[0].get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == 1 and texts[0].startswith(r"full \$5 mix_ture (0.")


def test_bars_stand_at_the_rate_with_whiskers_at_the_interval():
    axes = plots.rate_bars({"a": {"x": RATE, "y": Estimate.empty()}, "b": {"x": RATE}}).axes[0]
    assert [bar.get_height() for bar in axes.containers[0]][0] == pytest.approx(6.0)
    (segment,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [100 * RATE.low, 100 * RATE.high])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x\nn = 50", "y\nn = 0"]
    assert axes.get_ylabel().endswith("(%)")


def test_histogram_shares_of_each_class_sum_to_a_hundred_percent():
    axes = plots.score_histograms(SYSTEMS, 0.5).axes[0]
    for patch in axes.patches:
        assert patch.get_data().values.sum() == pytest.approx(100)
    assert axes.lines[0].get_xdata()[0] == 0.5


def test_the_moving_average_neither_lags_nor_changes_a_straight_line():
    steps = np.arange(601)
    thin, bold = plots.loss_curves({"run": (steps, steps / 600)}).axes[0].lines
    np.testing.assert_allclose(bold.get_ydata()[20:-20], thin.get_ydata()[20:-20], atol=1e-9)
    noisy = np.random.default_rng(0).normal(1, 0.1, 601)
    bold = plots.loss_curves({"run": (steps, noisy)}).axes[0].lines[1]
    assert bold.get_ydata().std() < 0.4 * noisy.std()


def test_an_example_shows_its_text_truth_score_and_verdict():
    axes = plots.example_grid([example(scored.picture(), "costs $5 and $6", 0.25)]).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert "truth unsafe, verdict safe\np(unsafe) = 0.250" in words
    assert "costs $5 and $6" in words
    assert axes.get_title("left") == "✗ missed"
    assert axes.images[0].get_array().shape == (32, 32, 3)


def test_wrong_verdicts_are_framed_otherwise_than_right_ones():
    wrong, right = plots.example_grid(
        [example(scored.picture(), p_unsafe=0.1), example(scored.picture())]
    ).axes
    assert wrong.spines["left"].get_edgecolor() != right.spines["left"].get_edgecolor()
    assert wrong.spines["left"].get_linewidth() > right.spines["left"].get_linewidth()


@pytest.mark.parametrize("picture", [None, b"not a picture", scored.picture()[:60]])
def test_a_missing_or_broken_picture_leaves_a_field_that_says_so(picture):
    axes = plots.example_grid([example(picture)]).axes[0]
    words = " ".join(text.get_text() for text in axes.texts)
    assert ("no picture" if picture is None else "unreadable picture") in words


def test_the_grid_takes_any_number_of_examples_and_any_shape_of_picture():
    for count in (0, 1, 5):
        opened(plots.example_grid([example(scored.picture(size=(10, 400)))] * count))


def test_text_in_a_script_the_font_lacks_raises_no_warning(recwarn):
    drawing.png(plots.example_grid([example(scored.picture(), "これは何ですか \0")]))
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_the_same_figure_gives_the_same_bytes_and_leaves_matplotlibs_settings_alone():
    before = dict(matplotlib.rcParams)
    first, again = (plots.rate_bars({"a": {"x": RATE}}) for _ in range(2))
    assert drawing.png(first) == drawing.png(again)
    assert drawing.pdf(first) == drawing.pdf(again)
    assert dict(matplotlib.rcParams) == before
    assert not hasattr(plots, "plt") and "pyplot" not in vars(sys.modules[plots.__name__])


def test_picked_examples_are_of_every_outcome_and_the_same_for_the_same_seed():
    rows = scored.scores(0.5)
    chosen = pick(rows, 0.5, scored.lookup, per_outcome=3, seed=1)
    assert [e.outcome for e in chosen] == [outcome for outcome in OUTCOMES for _ in range(3)]
    assert chosen == pick(rows, 0.5, scored.lookup, per_outcome=3, seed=1)
    assert chosen != pick(rows, 0.5, scored.lookup, per_outcome=3, seed=2)
    truth = dict(zip(rows.id.tolist(), rows.unsafe.tolist(), strict=True))
    for row in chosen:
        assert row.unsafe == truth[row.id] and row.id in row.text
        assert row.right == (row.flagged == row.unsafe)


def test_dots_of_rows_are_measured_against_the_first_one_or_against_none():
    wide, exact = Estimate(0.4, 0.2, 0.6, 9), Estimate(1.0, 0.1, 1 - 2**-53, 9)
    panels = {"here": {"base": (wide, [0.4]), "b": (exact, [])}, "gone": {"b": (exact, [1.0])}}
    here, gone = plots.dot_rows(panels, ["base", "b"]).axes
    assert [label.get_text() for label in here.get_yticklabels()] == ["base", "b"]
    assert dots(here) == {0: (0.4, drawing.BLACK), 1: (1.0, drawing.BLUE)}
    assert dots(gone) == {1: (1.0, drawing.BLUE)}
    assert [compared_with(axes) for axes in (here, gone)] == [[0.4], []]


def dots(axes) -> dict[float, tuple[float, str]]:
    """Value and colour of each row's mean, by its height."""
    means = [line for line in axes.lines if line.get_marker() == "o"]
    points = {line.get_ydata()[0]: (line.get_xdata()[0], line.get_color()) for line in means}
    return {y: point for y, point in points.items() if np.isfinite(point[0])}


def compared_with(axes) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
