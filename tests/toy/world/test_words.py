import re
from collections import Counter

import numpy as np
import pytest

from crossguard_jax.toy.world import explicit, shapes
from crossguard_jax.toy.world.explicit import CATEGORIES, explicit_text
from crossguard_jax.toy.world.kinds import KIND_NAMES, NOVEL_KINDS, PLACES
from crossguard_jax.toy.world.knowledge import TOPICS, answers, ask_knowledge
from crossguard_jax.toy.world.pointing import point, point_past, referents
from crossguard_jax.toy.world.requests import (
    CARRIERS,
    HELD_OUT_CARRIERS,
    PHRASES,
    REQUEST_NAMES,
    carriers,
    phrases,
)
from crossguard_jax.toy.world.scenes import Scene, Thing, draw_scene
from crossguard_jax.toy.world.vqa import ask, caption, words


def _scene(seed=0):
    return draw_scene(np.random.default_rng(seed), [], KIND_NAMES, 3, seed)


def test_phrases_and_carriers_are_many_and_distinct():
    assert len(REQUEST_NAMES) == 16
    every = [phrase for phrases_ in PHRASES.values() for phrase in phrases_]
    assert len(set(every)) == len(every) and all("{x}" in phrase for phrase in every)
    assert min(len(phrases_) for phrases_ in PHRASES.values()) >= 5
    assert len(set(CARRIERS)) >= 14 and len(set(HELD_OUT_CARRIERS)) >= 4


def test_held_out_wording_is_disjoint_from_training():
    assert not set(carriers(True)) & set(carriers(False))
    for request in REQUEST_NAMES:
        assert not set(phrases(request, True)) & set(phrases(request, False))
        assert set(phrases(request, None)) == {*phrases(request, True), *phrases(request, False)}


def test_phrases_name_no_object():
    every = words(" ".join(phrase for phrases_ in PHRASES.values() for phrase in phrases_))
    assert not set(every) & set(KIND_NAMES)


def test_a_pointing_expression_has_exactly_one_referent():
    rng = np.random.default_rng(0)
    for seed in range(300):
        scene = _scene(seed)
        index = seed % 3
        assert referents(point(rng, scene.things[index]), scene) == [index]
        assert referents(point_past(rng, scene), scene) == []


def test_captions_say_every_thing_with_its_colour_and_place():
    scene = Scene((Thing("iron", "red", PLACES[0]), Thing("pan", "blue", PLACES[3])), 0)
    said = caption(np.random.default_rng(0), scene)
    assert "a red iron at the top left" in said and "a blue pan at the bottom right" in said


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_are_true_of_the_picture(held_out):
    rng = np.random.default_rng(3)
    counts = Counter()
    for seed in range(1500):
        scene = _scene(seed)
        q = ask(rng, scene, held_out)
        counts[q.topic] += 1
        if q.about is not None:
            thing = scene.things[q.about]
            said = {"kind": thing.kind, "colour": thing.colour, "place": thing.place}
            assert q.topic == "property" or q.answer == said[q.topic]
            assert referents(q.text, scene) == [q.about] or f"the {thing.kind}" in q.text
        elif q.topic == "exists":
            there = {thing.kind for thing in scene.things} | {t.colour for t in scene.things}
            assert (q.answer == "yes") == bool(there & set(words(q.text)))
        else:
            assert q.answer == "three"
        assert q.answer in answers()
    assert set(counts) == {"kind", "property", "colour", "place", "count", "exists"}
    assert min(counts.values()) > 40


def test_the_base_models_knowledge_speaks_of_no_novel_kind():
    rng = np.random.default_rng(4)
    topics = Counter()
    for _ in range(3000):
        q = ask_knowledge(rng)
        topics[q.topic] += 1
        assert not set(NOVEL_KINDS) & set(words(q.text))
        assert q.answer in answers()
        if q.topic == "risk":
            assert not set(KIND_NAMES) & set(words(q.text))
    assert set(topics) == set(TOPICS)


@pytest.mark.parametrize("held_out", [False, True])
def test_no_single_word_decides_what_an_explicit_text_means(held_out):
    rng = np.random.default_rng(5)
    texts = [
        (flag, explicit_text(rng, flag, held_out)) for flag in (True, False) for _ in range(2000)
    ]
    assert {category for _, (_, category) in texts} == set(CATEGORIES)
    unsafe = np.array([flag for flag, _ in texts])
    bags = [set(words(text)) for _, (text, _) in texts]
    for word in set().union(*bags):
        has = np.array([word in bag for bag in bags])
        accuracy = (has == unsafe).mean()
        assert max(accuracy, 1 - accuracy) < 0.75, word


def test_training_has_many_more_shapes_than_the_base_models_read():
    few = {
        "acts": explicit.ACTS[:-1] + explicit.UNSAFE_ACTS[:-1] + explicit.SAFE_ACTS[:-1],
        "injuries": explicit.UNSAFE_INJURIES[:-1] + explicit.SAFE_INJURIES[:-1],
        "mixes": explicit.MIXES[:-1],
        "force": explicit.UNSAFE_FORCE[:-1] + explicit.SAFE_FORCE[:-1],
    }
    many = {
        "acts": (shapes.ACTS, shapes.ACT_TWINS),
        "injuries": (shapes.INJURY_ACTS, shapes.INJURY_TWINS),
        "mixes": (shapes.MIXES, shapes.MIX_TWINS),
        "force": ((), shapes.FORCE_TWINS),
    }
    for category, (either, twins) in many.items():
        forms = {*either, *sum(twins, ())}
        assert len(forms) == len(either) + 2 * len(twins) >= 3 * len(few[category])
        assert not forms & {*few[category]}


def test_twins_say_their_words_to_other_ends():
    for unsafe, safe in (
        *shapes.ACT_TWINS,
        *shapes.INJURY_TWINS,
        *shapes.MIX_TWINS,
        *shapes.FORCE_TWINS,
    ):
        one, other = set(words(unsafe)), set(words(safe))
        assert len(one & other) / len(one | other) > 0.4, unsafe


def _held_out_forms():
    lists = [
        getattr(explicit, name)
        for name in (
            *("ACTS", "UNSAFE_ACTS", "SAFE_ACTS", "UNSAFE_INJURIES", "SAFE_INJURIES"),
            *("MIXES", "UNSAFE_FORCE", "SAFE_FORCE"),
        )
    ]
    return {forms[-1] for forms in lists}


def test_no_shape_of_training_is_one_that_is_held_out():
    def bare(form):
        return re.sub(r"\{\w+\}", "{}", form)

    trained = {
        *shapes.ACTS,
        *shapes.INJURY_ACTS,
        *shapes.MIXES,
        *sum(shapes.ACT_TWINS + shapes.INJURY_TWINS, ()),
        *sum(shapes.MIX_TWINS + shapes.FORCE_TWINS, ()),
    }
    assert not {bare(form) for form in trained} & {bare(form) for form in _held_out_forms()}
