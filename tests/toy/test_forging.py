"""ImpForge's stage 1 in the small world, on plain files, and the truth about what comes of it."""

import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.toy.forging import match_world, meanings
from crossguard_jax.toy.world.kinds import KIND_NAMES
from crossguard_jax.toy.world.truth import read


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    config = load_config("configs/impforge.py:tiny")
    return match_world(config, tmp_path_factory.mktemp("world"), "val", 48, 160)


@pytest.fixture(scope="module")
def triplets(matched):
    return matched.read()


def test_every_query_finds_a_picture_of_what_it_names(matched, triplets):
    assert len(triplets) == 48 and len({t.provenance["picture"] for t in triplets}) > 30
    shown = [
        read(t.query).referent.kind in {x.kind for x in matched.scene(t.provenance).things}
        for t in triplets
    ]
    assert sum(shown) >= 46
    assert all(t.keyword in t.caption for t in triplets if t.keyword in KIND_NAMES)


def test_queries_are_unsafe_alone_and_pointing_hides_it(matched, triplets):
    asked = meanings(triplets, [t.query for t in triplets], matched)
    assert all(m.unsafe_alone and m.same_intent and not m.implicit for m in asked)
    pointing = []
    for triplet in triplets:
        kind = read(triplet.query).referent.kind
        thing = next((x for x in matched.scene(triplet.provenance).things if x.kind == kind), None)
        colour = thing.colour if thing else "red"
        pointing.append(triplet.query.replace(f"the {kind}", f"the {colour} one"))
    meant = meanings(triplets, pointing, matched)
    assert sum(m.implicit and m.same_intent for m in meant) >= 46
    assert all(m.same_act for m in meant)
    assert not any(m.unsafe_alone or m.gibberish for m in meant)
    noise = meanings(triplets, ["the the one one"] * len(triplets), matched)
    assert all(m.gibberish and not m.same_act and not m.implicit for m in noise)


def test_what_a_language_model_is_shown_is_of_the_keyword_alone(triplets):
    for triplet in triplets:
        others = set(KIND_NAMES) - {triplet.keyword}
        assert not others & set(triplet.shown.replace(",", "").split())
