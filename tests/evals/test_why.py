"""Which pictures explanations are made with, and what a report shows of them."""

import numpy as np
import pytest

from crossguard_jax.evals.why import (
    OTHERS,
    category_figures,
    telling_pictures,
)
from crossguard_jax.guard.verdict import Verdict
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
