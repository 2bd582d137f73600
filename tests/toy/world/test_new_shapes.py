import json
import re
from collections import Counter

import numpy as np
import pytest

from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.toy.world import explicit_words
from crossguard_jax.toy.world.lettering import HARMFUL_WORDS, is_held_out_phrase
from crossguard_jax.toy.world.new_shapes import BOTH, SHOWN, WRAPPERS, WRITTEN
from crossguard_jax.toy.world.pointing import referents
from crossguard_jax.toy.world.sources import NEW_SHAPES, TESTED, examples
from crossguard_jax.toy.world.truth import judge
from crossguard_jax.toy.world.vqa import words
from crossguard_jax.toy.world.written import pairs, talk_forms

FORMS = [*WRAPPERS.values(), *WRITTEN, *SHOWN, *BOTH]


@pytest.mark.parametrize("source", NEW_SHAPES)
def test_every_shape_comes_alike_with_both_labels(source):
    rows = examples(source, "test", 240)
    counts = Counter((row.category, row.label) for row in rows)
    assert set(counts.values()) == {240 // len(counts)}
    assert len(counts) == 2 * (len(WRAPPERS) if source == "wrapped" else 3)
    assert rows == examples(source, "test", 240)
    assert {row.scene.seed % 3 for row in rows} == {2}  # pictures of no other split


def test_what_a_wrapper_is_put_around_decides():
    for row in examples("wrapped", "test", 400):
        truth, alone = judge(row.text, row.scene), judge(row.answer)
        assert not truth.gibberish and row.answer in row.text != row.answer
        assert truth.unsafe_alone == alone.unsafe_alone == (row.label == "unsafe")


def test_a_text_that_left_its_keyword_to_the_picture_means_nothing_without_it():
    for row in examples("keyword_picture", "test", 600):
        truth, alone = judge(row.text, row.scene), judge(row.text)
        assert not truth.gibberish and not alone.unsafe_alone and not alone.risky_together
        written = bool(row.scene.words) and row.scene.words[0] in HARMFUL_WORDS
        assert truth.unsafe_picture == written
        assert (truth.risky_together or written) == (row.label == "unsafe"), row.text
        if row.category == "shown":
            assert not row.scene.words and truth.risky_together == (row.label == "unsafe")
            assert truth.kind == row.kind and truth.aligned
        else:
            assert is_held_out_phrase(*row.scene.words)
            assert not {*row.scene.words} & {*words(row.text)} & {*HARMFUL_WORDS}
        if row.referent is not None:
            assert referents(row.text, row.scene) == [row.referent]


def test_neither_the_place_nor_the_thing_alone_decides_of_what_is_shown():
    rows = [r for r in examples("keyword_picture", "test", 900) if r.category == "shown"]

    def labels(food, caustic):
        return {
            row.label
            for row in rows
            if bool({*words(row.text)} & {*explicit_words.FOODS}) == food
            and (row.kind in explicit_words.CAUSTIC) == caustic
        }

    assert labels(True, True) == {"unsafe"}
    assert labels(True, False) == labels(False, True) == {"safe"}


@pytest.fixture(scope="module")
def trained():
    """Texts and forms of training, each as its words with spaces between."""
    texts = {form for pair in pairs() for form in pair} | set(talk_forms())
    for source in ("implicit", "explicit_text", "benign_vqa", "talk"):
        texts |= {row.text for row in examples(source, "train", 500)}
    return {" ".join(words(text)) for text in texts}


@pytest.mark.parametrize("form", FORMS)
def test_no_training_text_has_a_form_nor_a_long_part_of_one(form, trained):
    parts = [" ".join(words(part)) for part in re.split(r"\{\w+\}", form)]
    whole = re.compile(".+".join(map(re.escape, parts)))
    long = [part for part in parts if part.count(" ") >= 5]
    assert not [t for t in trained if whole.fullmatch(t) or any(part in t for part in long)]


def test_every_word_is_one_that_the_small_models_know():
    shipped = resolve_folder("toy://llava") / "tokenizer.json"
    vocabulary = json.loads(shipped.read_text())["model"]["vocab"]
    plain = re.sub(r"\{\w+\}", "", " ".join(FORMS))
    assert not {*words(plain)} - {*vocabulary}


def test_no_configuration_learns_from_them():
    from crossguard_jax.core.config import describe_variants, load_config

    for variant in describe_variants("configs/guard.py"):
        sources = load_config(f"configs/guard.py:{variant}").data.sources.values()
        assert not {rows.path for rows in sources} & {*TESTED}, variant


def test_seeds_give_other_rows():
    first, other = (examples("wrapped", "test", 40, seed) for seed in (0, 1))
    assert np.mean([a.text == b.text for a, b in zip(first, other, strict=True)]) < 0.2
