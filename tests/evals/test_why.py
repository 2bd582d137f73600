"""Which pictures explanations are made with, and what a report shows of them."""

import io

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.metrics import proportion
from crossguard_jax.data.records import Record
from crossguard_jax.evals.why import (
    OTHERS,
    ExplainedRow,
    category_figures,
    telling_pictures,
    why_section,
)
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.guard.why import Why
from crossguard_jax.report.report import Report
from crossguard_jax.toy.tables.why import deciding_box
from crossguard_jax.toy.world.sources import examples


class RuledByPictures:
    """Odd pictures decide by themselves; beside the others the text does."""

    def score_each(self, images, texts, *, batch_size=16, threshold=None):
        def p(image: bytes, text: str) -> float:
            n = int(image)
            return float(n % 4 == 1) if n % 2 else float(text == "harm")

        return [Verdict(p(i, t), False, 0.5, "") for i, t in zip(images, texts, strict=True)]


def test_pictures_that_decide_by_themselves_are_not_set_beside_texts():
    candidates = [str(i).encode() for i in range(2 * OTHERS)]
    chosen = telling_pictures(RuledByPictures(), candidates, ["harm", "none"])
    assert chosen == tuple(candidates[::2])
    assert telling_pictures(RuledByPictures(), candidates[:3], ["harm"]) == tuple(candidates[:3])


def test_a_categorys_figures_are_of_the_likeliest_one():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    figures = category_figures(p, np.array([0, 1, 1, 0]))
    assert figures["accuracy"].value == 0.75
    # Each lies in a bin of its own but 0.6 and 0.7, off by what it lacks to its truth.
    assert figures["ece"].value == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_section_has_shares_by_benchmark_and_pictures_with_their_maps():
    def row(i: int, benchmark: str, why: Why) -> ExplainedRow:
        return ExplainedRow(benchmark, Record(f"r{i}", (png(i),), "a text"), True, 0.9, 0.5, why)

    heat = (np.eye(4),)
    rows = [row(i, "implicit", Why(0.1, 0.1, True, "burns", 0.8, heat)) for i in range(3)]
    rows += [row(3, "implicit", Why(0.9, 0.1, False, "cuts", 0.6, heat))]
    rows += [row(4, "explicit", Why(joint_only=False)), row(5, "explicit", Why(None, None, None))]
    section = why_section(rows, crops=False, titles={"implicit": "Implicit"})
    assert section.figures["why.implicit.joint_only"].value == 0.75
    assert section.figures["why.explicit.joint_only"] == proportion(np.zeros(1, bool))
    report = Report("A report", [section], {})
    text, page = report.to_markdown(), report.to_html()
    assert "Implicit | 4 |" in text and "burns (3), cuts (1)" in text
    assert page.count('class="card"') == 4 and "only in combination" in page


@pytest.mark.parametrize("source", ["implicit", "explicit_picture", "typographic"])
def test_the_deciding_box_holds_what_decides_and_little_else(source):
    rows = [e for e in examples(source, "test", 12) if e.label == "unsafe"]
    for example in rows:
        left, top, right, bottom = deciding_box(example)
        assert 0 <= left < right <= 32 and 0 <= top < bottom <= 32
        if source != "typographic":
            thing = example.scene.things[example.referent if source == "implicit" else 0]
            assert (top < 16) == thing.place.startswith("top")
            assert (left < 16) == thing.place.endswith("left")
            assert max(right - left, bottom - top) < 16


def test_the_picture_of_an_explicit_text_decides_nothing():
    assert all(deciding_box(e) is None for e in examples("explicit_text", "test", 6))
