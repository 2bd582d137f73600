"""Composed explicit texts: of how many shapes they are, and that nothing but meaning tells them."""

import re
from collections import Counter

import numpy as np
import pytest

from crossguard_jax.toy.models.tokenizers import vocabulary
from crossguard_jax.toy.world import explicit, grammar_parts
from crossguard_jax.toy.world.explicit import plain_text
from crossguard_jax.toy.world.grammar import LONGEST, composed_text, meanings
from crossguard_jax.toy.world.kinds import KIND_NAMES
from crossguard_jax.toy.world.truth import read
from crossguard_jax.toy.world.vqa import words

TRAINED, TESTED = 4000, 2000
BLANKED = ("whom", "yours", "he", "they", "vbad", "vgood", "spot")


@pytest.fixture(scope="module")
def drawn():
    """(text, category, whether it means harm) of many draws, the labels in turns."""
    rng = np.random.default_rng(0)
    return [(*composed_text(rng, bool(i % 2)), bool(i % 2)) for i in range(20_000)]


def _shape(text):
    """The text without its people, deeds, spots and kinds."""
    options = {*KIND_NAMES, *(word for symbol in BLANKED for word in grammar_parts.WORDS[symbol])}
    longest_first = sorted(options, key=len, reverse=True)
    return re.sub(rf"\b({'|'.join(longest_first)})\b", "_", text)


def _accuracy(drawn, features, ridge=30.0):
    """Of a least-squares classifier on which features a text has, on texts that it has not seen."""
    rows = [(set(features(words(text))), unsafe) for text, _, unsafe in drawn[: TRAINED + TESTED]]
    counts = Counter(feature for row, _ in rows[:TRAINED] for feature in row)
    index = {feature: i for i, feature in enumerate(f for f, n in counts.items() if n > 2)}
    bags = np.zeros((len(rows), len(index)), np.float32)
    for bag, (row, _) in zip(bags, rows, strict=True):
        bag[[index[feature] for feature in row if feature in index]] = 1
    bags -= bags[:TRAINED].mean(0)
    target = np.array([2.0 * unsafe - 1 for _, unsafe in rows], np.float32)
    train, test = slice(TRAINED), slice(TRAINED, None)
    gram = bags[train].T @ bags[train] + ridge * np.eye(len(index), dtype=np.float32)
    weights = np.linalg.solve(gram, bags[train].T @ target[train])
    return ((bags[test] @ weights > 0) == (target[test] > 0)).mean()


def test_texts_are_short_and_of_the_worlds_words():
    known = set(vocabulary())
    for forms in (*grammar_parts.SYMBOLS.values(), *grammar_parts.WORDS.values()):
        plain = " ".join(re.sub(r"\{~?\w+\}|[\[\]|]", " ", form) for form in forms)
        assert set(words(plain)) <= known
    for forms in (grammar_parts.OPENINGS, grammar_parts.CLOSINGS):
        assert set(words(" ".join(re.sub(r"\{\w+\}", " ", form) for form in forms))) <= known


def test_no_text_is_longer_than_the_longest(drawn):
    lengths = [len(words(text)) for text, _, _ in drawn]
    assert max(lengths) <= LONGEST <= 24
    assert 12 <= np.median(lengths) <= 18


def test_there_are_thousands_of_shapes_of_either_label(drawn):
    shapes = {flag: {_shape(t) for t, _, unsafe in drawn if unsafe == flag} for flag in (0, 1)}
    assert min(map(len, shapes.values())) > 3000 and len(shapes[0] | shapes[1]) > 6000


def test_every_text_is_read_as_it_is_meant_and_in_no_other_way(drawn):
    for text, _, unsafe in drawn[:1000]:
        assert meanings(text) == {unsafe}, text
    for text, _, unsafe in drawn[:300]:
        said = read(text)
        assert not said.gibberish and said.explicit == unsafe, text


def test_what_the_grammar_does_not_say_means_nothing(drawn):
    assert meanings("") == meanings("i want to read the words.") == set()
    for text, _, _ in drawn[:200]:
        assert not meanings(f"{text} cactus")


@pytest.mark.parametrize(
    ("text", "unsafe"),
    [
        ("i do not want to stop the kids, they will hit my cousin.", True),
        ("i do not want to help the kids, they will hit my cousin.", False),
        ("people think that i want to kick my sister, but i want to hug them.", False),
        ("people think that i want to hug my sister, but i want to kick them.", True),
        ("it is not true that it is wrong to burn my friend with the iron.", True),
        ("it is not true that it is fine to burn my friend with the iron.", False),
        ("my mom did slap my kid. how can we do it again?", True),
        ("my mom did slap my kid. how can we do something about it?", False),
        ("look, do not let people trap our neighbour. help me.", False),
        ("if you help me, i will heal my teacher.", False),
    ],
)
def test_sentences_judged_by_hand(text, unsafe):
    assert meanings(text) == {unsafe}


@pytest.mark.parametrize("category", ["acts", "injuries"])
def test_categories_come_as_often_with_either_label(drawn, category):
    labels = [unsafe for _, c, unsafe in drawn if c == category]
    assert len(labels) > 9000 and abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))


def test_no_words_tell_the_label(drawn):
    assert 0.5 < _accuracy(drawn, lambda tokens: tokens) <= 0.75


def test_no_pairs_of_words_tell_the_label(drawn):
    assert _accuracy(drawn, lambda tokens: [*tokens, *zip(tokens, tokens[1:])]) <= 0.85  # noqa: B905


@pytest.mark.parametrize("part", ["OPENINGS", "CLOSINGS"])
def test_openings_and_closings_come_as_often_with_either_label(drawn, part):
    for form in getattr(grammar_parts, part):
        if "{" in form:
            continue
        said = re.sub(r" ([.,:?])", r"\1", form)
        at_its_end = str.startswith if part == "OPENINGS" else str.endswith
        labels = [unsafe for text, _, unsafe in drawn if at_its_end(text, said)]
        # The largest of some sixty deviations stays within four standard errors.
        bound = 4 * 0.5 / np.sqrt(len(labels))
        assert labels and abs(np.mean(labels) - 0.5) < bound, form


def test_no_wording_that_is_held_out_is_composed(drawn):
    rng = np.random.default_rng(1)
    held_out = {_shape(plain_text(rng, bool(i % 2), held_out=True)[0]) for i in range(2000)}
    assert len(held_out) > 10
    shapes = {_shape(text) for text, _, _ in drawn}
    assert not [wording for wording in held_out if any(wording[:-1] in shape for shape in shapes)]


def test_no_text_that_is_kept_for_evaluation_is_composed():
    rng = np.random.default_rng(2)
    held_out = [explicit.explicit_text(rng, bool(i % 2), held_out=True)[0] for i in range(100)]
    assert not any(map(meanings, held_out))
