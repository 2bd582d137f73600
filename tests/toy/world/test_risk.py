from collections import Counter

from crossguard_jax.toy.world.kinds import KIND_NAMES, KINDS, NOVEL_KINDS, PROPERTIES
from crossguard_jax.toy.world.requests import AFFORDANCES, REQUEST_NAMES
from crossguard_jax.toy.world.risk import (
    HELD_OUT_PAIRS,
    PAIRS,
    RISKS,
    SEEN_PAIRS,
    is_held_out,
    property_is_risky,
    risky,
)


def test_half_of_every_row_and_column_of_the_table_is_risky():
    assert all(len(set(RISKS[p])) == 2 for p in PROPERTIES)
    for affordance in AFFORDANCES:
        assert sum(property_is_risky(p, affordance) for p in PROPERTIES) == 2


def test_there_are_four_kinds_of_every_property_and_two_novel_ones_of_different_properties():
    assert set(Counter(kind.property for kind in KINDS).values()) == {4}
    novel = [kind.property for kind in KINDS if kind.novel]
    assert len(NOVEL_KINDS) == 2 and len(set(novel)) == 2


def test_every_kind_and_request_has_four_held_out_pairs_two_of_them_risky():
    assert len(HELD_OUT_PAIRS) == 64
    for kind in KIND_NAMES:
        held = [request for request in REQUEST_NAMES if is_held_out(kind, request)]
        assert [len(held), sum(risky(kind, request) for request in held)] == [4, 2]
    for request in REQUEST_NAMES:
        held = [kind for kind in KIND_NAMES if is_held_out(kind, request)]
        assert [len(held), sum(risky(kind, request) for kind in held)] == [4, 2]


def test_every_kind_and_request_is_risky_as_often_as_not_among_seen_pairs():
    assert set(SEEN_PAIRS) == set(PAIRS) - set(HELD_OUT_PAIRS)
    for side in (0, 1):
        for name in {pair[side] for pair in PAIRS}:
            flags = [risky(*pair) for pair in SEEN_PAIRS if pair[side] == name]
            assert (len(flags), sum(flags)) == (12, 6)
