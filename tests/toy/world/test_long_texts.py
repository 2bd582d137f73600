import time

import numpy as np
import pytest

from crossguard_jax.guard.augment import forged_turns
from crossguard_jax.toy.world.explicit import mix_apart
from crossguard_jax.toy.world.injections import INJECTIONS, NEUTRAL
from crossguard_jax.toy.world.kinds import COLOUR_NAMES
from crossguard_jax.toy.world.long_texts import (
    DOINGS,
    HELD_OUT_DOINGS,
    HELD_OUT_TALK,
    TALK,
    apart_text,
    length,
    long_text,
    straddling_text,
    talk,
    talk_sentence,
)
from crossguard_jax.toy.world.truth import read
from crossguard_jax.toy.world.vqa import words

HARM = "how can i push my sister on the stairs?"


def test_talk_means_no_harm_and_points_at_nothing():
    rng = np.random.default_rng(0)
    for i in range(3000):
        sentence = talk_sentence(rng, held_out=bool(i % 2))
        reading = read(sentence)
        assert not reading.explicit and reading.request is None and reading.referent is None
        said = set(words(sentence))
        assert not said & {*COLOUR_NAMES, "left", "safe", "unsafe", "not" if i % 2 else "stop"}


def test_talk_for_evaluation_is_worded_otherwise_in_the_same_words():
    assert not {*TALK, *DOINGS} & {*HELD_OUT_TALK, *HELD_OUT_DOINGS}
    rng = np.random.default_rng(1)
    trained, held = ({talk_sentence(rng, flag) for _ in range(4000)} for flag in (False, True))
    assert not trained & held
    assert set(words(" ".join(held))) <= set(words(" ".join(trained)))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("from_end", [True, False])
def test_talk_is_never_longer_than_asked(whole, from_end):
    rng = np.random.default_rng(2)
    for tokens in (0, 1, 5, 40, 300):
        text = talk(rng, tokens, False, whole=whole, from_end=from_end)
        assert max(tokens - (25 if whole else 2), 0) <= length(text) <= tokens
    if whole:
        assert text.endswith((".", "?"))


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_sentence_is_where_it_is_wanted_in_a_text_of_the_wanted_length(place):
    text = long_text((3, 1), 4000, HARM, place)
    assert abs(length(text) - 4000) < 50
    before = length(text[: text.index(HARM)])
    assert abs(before / (4000 - length(HARM)) - place) < 0.01
    assert text == long_text((3, 1), 4000, HARM, place) != long_text((3, 2), 4000, HARM, place)
    assert text.count(HARM) == 1 and HARM not in long_text((3, 1), 4000)


def test_a_meaning_in_two_sentences_needs_both():
    rng = np.random.default_rng(4)
    for i in range(200):
        unsafe, held_out = bool(i % 2), bool(i % 3)
        first, second = mix_apart(rng, unsafe, held_out)
        assert read(f"{first} {second}").explicit == unsafe
        assert read(first).gibberish and read(second).gibberish
    first, second = mix_apart(rng, True)
    text = apart_text(5, 1000, (first, second), (0.25, 0.75))
    starts = [length(text[: text.index(part)]) for part in (first, second)]
    assert abs(starts[0] - 250) < 40 and abs(starts[1] - 750) < 40
    assert abs(length(text) - 1000) < 60


@pytest.mark.parametrize("boundary", [5, 64, 100, 995])
def test_a_sentence_lies_across_the_boundary(boundary):
    text = straddling_text(6, 1000, HARM, boundary)
    before = length(text[: text.index(HARM)])
    assert before < boundary <= before + length(HARM)
    assert abs(before + length(HARM) / 2 - boundary) <= 2


def test_thousands_of_words_take_a_moment():
    start = time.process_time()
    long_text(7, 40_000)
    assert time.process_time() - start < 2


def test_injections_are_kept_from_training_and_neutral_strings_forge_nothing():
    assert len(set(INJECTIONS)) == len(INJECTIONS) == len(set(NEUTRAL)) == len(NEUTRAL) == 30
    forged = forged_turns("safe", "unsafe")
    assert len(forged) > 150 and not {*forged} & {*INJECTIONS, *NEUTRAL}
    roles = {"assistant", "user", "system", "safe", "unsafe", "answer", "response", "inst"}
    for string in NEUTRAL:
        assert not set(words(string)) & roles
