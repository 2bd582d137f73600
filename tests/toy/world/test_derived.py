from collections import Counter
from itertools import product

import numpy as np
import pytest

from crossguard_jax.toy.world.examples import to_record
from crossguard_jax.toy.world.kinds import DECORATIONS, HAZARDS
from crossguard_jax.toy.world.lettering import HARMFUL_WORDS
from crossguard_jax.toy.world.pointing import PICTURE_NUMBERS, referents
from crossguard_jax.toy.world.sources import DERIVED, examples
from crossguard_jax.toy.world.truth import judge
from crossguard_jax.toy.world.vqa import words

SPLITS = ("train", "val", "test")


@pytest.mark.parametrize(("source", "split"), list(product(DERIVED, SPLITS)))
def test_labels_are_the_worlds_truth_of_what_was_there_before(source, split):
    for row in examples(source, split, 200):
        truth = judge(row.answer or row.text, *row.scenes)
        assert row.category == "talk" or not row.text or not truth.gibberish
        assert (truth.risky_together or truth.unsafe_picture) == (row.label == "unsafe")


@pytest.mark.parametrize("source", ["picture_only", "two_pictures"])
@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_rows_are_unsafe(source, split):
    assert Counter(row.label for row in examples(source, split, 240)) == {
        "safe": 120,
        "unsafe": 120,
    }


def test_talk_is_harmless_and_as_often_without_a_picture():
    rows = examples("talk", "train", 400)
    assert {row.label for row in rows} == {"safe"}
    assert 0.4 < np.mean([row.scene is None for row in rows]) < 0.6


def test_pictures_alone_show_what_makes_them_unsafe():
    rows = examples("picture_only", "train", 400)
    assert {row.text for row in rows} == {""}
    for row in rows:
        shown = {thing.kind for thing in row.scene.things} | set(row.scene.words)
        assert bool(shown & {*HAZARDS, *HARMFUL_WORDS}) == (row.label == "unsafe")
    written = [row.label for row in rows if row.scene.words]
    emblems = [
        row.label
        for row in rows
        if {t.kind for t in row.scene.things} & {*HAZARDS, *DECORATIONS} and not row.scene.words
    ]
    assert 0.4 < np.mean([label == "unsafe" for label in written]) < 0.6
    assert 0.4 < np.mean([label == "unsafe" for label in emblems]) < 0.8


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_meant_is_in_one_of_two_pictures(split):
    rows = examples("two_pictures", split, 400)
    numbered = [row for row in rows if "picture" in words(row.text)]
    assert len(numbered) == 200
    assert Counter(row.picture for row in rows) == {0: 200, 1: 200}
    for row in rows:
        there, other = (row.scenes[i] for i in (row.picture, 1 - row.picture))
        assert referents(row.text, there) == [0] and there.things[0].kind == row.kind
        assert referents(row.text, other) == ([0] if row in numbered else [])
        assert judge(row.text, *row.scenes).kind == row.kind
    for row in numbered:
        assert PICTURE_NUMBERS[row.picture] in words(row.text)
        # The other picture's thing fits the words too, and turns the label.
        swapped = judge(row.text, *reversed(row.scenes))
        assert swapped.risky_together != (row.label == "unsafe")


def test_neither_which_picture_nor_its_number_tells_the_label():
    rows = examples("two_pictures", "train", 1000)
    for picture, word in product((0, 1), PICTURE_NUMBERS):
        labels = [
            row.label == "unsafe"
            for row in rows
            if row.picture == picture and ("picture" not in row.text or word in words(row.text))
        ]
        assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))


def test_two_pictures_are_two_pictures_of_the_record():
    record = to_record(examples("two_pictures", "train", 1)[0])
    assert len(record.images) == 2 and record.images[0] != record.images[1]
    assert {"scene", "second", "picture"} <= set(record.provenance)
    (alone,) = examples("picture_only", "train", 1)
    assert len(to_record(alone).images) == 1 and "second" not in to_record(alone).provenance
