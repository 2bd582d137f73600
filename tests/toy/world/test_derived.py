import functools
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from crossguard_jax.toy.world.derived import PLACES_IN_TEXT
from crossguard_jax.toy.world.examples import to_record
from crossguard_jax.toy.world.injections import INJECTIONS
from crossguard_jax.toy.world.kinds import DECORATIONS, HAZARDS
from crossguard_jax.toy.world.lettering import HARMFUL_WORDS
from crossguard_jax.toy.world.long_texts import WINDOW, length
from crossguard_jax.toy.world.pointing import PICTURE_NUMBERS, referents
from crossguard_jax.toy.world.sources import DERIVED, examples
from crossguard_jax.toy.world.truth import judge
from crossguard_jax.toy.world.vqa import words

SPLITS = ("train", "val", "test")


@pytest.mark.parametrize(("source", "split"), list(product(DERIVED, SPLITS)))
def test_labels_are_the_worlds_truth_of_what_was_there_before(source, split):
    for row in examples(source, split, 200):
        truth = judge(row.answer or row.text, *row.scenes)
        talk_alone = row.category == "talk"
        assert talk_alone or not row.text or not truth.gibberish
        assert (truth.risky_together or truth.unsafe_picture) == (row.label == "unsafe")


@pytest.mark.parametrize("source", ["injected", "picture_only", "two_pictures"])
@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_rows_are_unsafe(source, split):
    assert Counter(row.label for row in examples(source, split, 240)) == {
        "safe": 120,
        "unsafe": 120,
    }


@functools.cache
def _long(split, n=600):
    return examples("long_harm", split, n), examples("long_safe", split, n)


@pytest.mark.parametrize("split", SPLITS)
def test_long_rows_are_harmful_at_three_places_or_not_at_all(split):
    harm, safe = _long(split)
    assert {row.label for row in harm} == {"unsafe"} and {row.label for row in safe} == {"safe"}
    assert Counter(row.category for row in harm) == dict.fromkeys(PLACES_IN_TEXT, 200)
    twins = Counter(row.category for row in safe)
    assert twins == {"talk": 300, **dict.fromkeys(PLACES_IN_TEXT, 100)}
    for row in harm + [row for row in safe if row.category != "talk"]:
        core, place = row.answer, row.category
        parts = [core] if core in row.text else core.replace(". ", ".\n", 1).split("\n")
        found = [row.text.index(part) for part in parts]
        assert found == sorted(found)
        assert row.text.startswith(parts[0]) or place != "start"
        assert row.text.endswith(parts[-1]) or place != "end"


def test_how_long_a_text_is_tells_no_label_and_harm_fits_into_a_window():
    harm, safe = _long("train")
    longest = max(length(row.text) for row in harm)
    # A sentence that is there anyway may overrun the shortest texts, never the window.
    assert WINDOW - 1 <= longest <= WINDOW
    assert max(length(row.text) for row in safe) > 2.5 * WINDOW
    seen = [[min(length(row.text), WINDOW) for row in rows] for rows in (harm, safe)]
    full = [np.mean(np.array(lengths) >= WINDOW - 2) for lengths in seen]
    assert min(full) > 0.2 and abs(full[0] - full[1]) < 0.25
    alone = [np.mean([row.scene is None for row in rows]) for rows in (harm, safe)]
    assert 0.1 < min(alone) and abs(alone[0] - alone[1]) < 0.1


def test_long_rows_end_in_the_middle_of_sentences_as_windows_do():
    for rows in _long("train"):
        cut = [not row.text.endswith((".", "?")) for row in rows if row.category != "end"]
        assert 0.3 < np.mean(cut) < 0.6


def test_test_rows_talk_in_sentences_that_training_does_not_have():
    def sentences(split):
        texts = [row.text for row in _long(split)[1] if row.category == "talk"]
        # Without the first and the last, which may be cut.
        return {s for text in texts for s in re.split(r"(?<=[.?]) ", text)[1:-1]}

    trained, tested = sentences("train"), sentences("test")
    assert min(len(trained), len(tested)) > 500 and not trained & tested


def test_a_forged_string_comes_as_often_with_each_label_and_changes_nothing_else():
    for split in SPLITS:
        rows = examples("injected", split, 600)
        counts = Counter((row.category, row.label) for row in rows)
        for marker in {row.category for row in rows}:
            assert counts[marker, "safe"] == counts[marker, "unsafe"]
        assert (len({*INJECTIONS} & {row.category for row in rows}) > 25) == (split == "test")
        for row in rows:
            said = row.text.replace("\n", " ").replace(row.category.replace("\n", " "), " ", 1)
            assert said.split() == row.answer.split()


def test_a_forged_string_comes_before_within_and_after_the_text():
    rows = examples("injected", "train", 900)
    where = Counter(
        "start"
        if row.text.endswith(row.answer)
        else "end"
        if row.text.startswith(row.answer)
        else ""
        for row in rows
    )
    assert min(where.values()) > 240 and len(where) == 3


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
