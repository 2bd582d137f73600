import re
from collections import Counter

import numpy as np
import pytest

from crossguard_jax.toy.world import explicit_words
from crossguard_jax.toy.world.explicit import explicit_text
from crossguard_jax.toy.world.kinds import KIND_NAMES
from crossguard_jax.toy.world.new_frames import FRAMES, SPELLED
from crossguard_jax.toy.world.sources import NEW_FRAMES, examples
from crossguard_jax.toy.world.truth import judge

_FILLED = {
    "D": (
        *explicit_words.MORE_HARMS,
        *explicit_words.MORE_KINDNESSES,
        *explicit_words.INJURIES.values(),
    ),
    "K": KIND_NAMES,
    "P": explicit_words.PEOPLE,
    "S": explicit_words.SPOTS,
}


def _shape(text):
    """The text with what fills slots put as letters."""
    for letter, options in _FILLED.items():
        text = re.sub(rf"\b({'|'.join(options)})\b", letter, text)
    return text


@pytest.fixture(scope="module")
def trained_shapes():
    rng = np.random.default_rng(0)
    texts = [explicit_text(rng, bool(i % 2))[0] for i in range(8000)]
    return {_shape(text) for text in texts}


@pytest.mark.parametrize("source", NEW_FRAMES)
def test_new_frames_come_alike_with_both_labels_and_mean_what_they_are_labelled(source):
    rows = examples(source, "test", 320)
    assert Counter((row.category, row.label) for row in rows) == {
        (name, label): 10 for name in FRAMES for label in ("safe", "unsafe")
    }
    for row in rows:
        truth = judge(row.text, row.scene)
        assert truth.risky_together == truth.unsafe_alone == (row.label == "unsafe")
        assert not truth.gibberish


@pytest.mark.parametrize("source", NEW_FRAMES)
def test_no_new_frame_is_one_of_training(source, trained_shapes):
    shapes = {_shape(row.text) for row in examples(source, "test", 640)}
    assert len(shapes) > len(FRAMES) and not shapes & trained_shapes
    # Nor does most of one lie in the other.
    for new in shapes:
        for old in trained_shapes:
            assert new not in old and (old[:-1] not in new or len(old) < len(new) / 2)


def test_words_alone_were_changed_and_only_where_the_vocabulary_lacks_them():
    assert list(FRAMES) == list(SPELLED) and len(FRAMES) >= 8
    slots = re.compile(r"\{\w+\}")
    for name, forms in FRAMES.items():
        for form, spelled in zip(forms, SPELLED[name], strict=True):
            assert slots.findall(form) == slots.findall(spelled)
