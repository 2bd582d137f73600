"""Larger pictures: what they show, where it stands, and what a processor leaves of it."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.toy.world.kinds import COLOUR_NAMES, KIND_NAMES, LINES
from crossguard_jax.toy.world.pointing import referents
from crossguard_jax.toy.world.scenes import SIDE
from crossguard_jax.toy.world.sources import examples, records
from crossguard_jax.toy.world.wide import LONGEST, SHORTEST, draw_wide

SOURCES = ("implicit_wide", "wide_margin", "wide_centre")


def scenes(n):
    rng = np.random.default_rng(0)
    return [
        draw_wide(rng, KIND_NAMES[seed % 16], KIND_NAMES, seed, seed % 2 == 0) for seed in range(n)
    ]


def without(scene, index):
    return replace(scene, things=scene.things[:index] + scene.things[index + 1 :])


def _is_long(scene):
    return max(scene.size) > 2.5 * min(scene.size)


def apart(one, other):
    """The largest difference of each pixel's channels."""
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).max(axis=-1)


def test_a_picture_is_a_pure_function_of_its_scene():
    for scene in scenes(4):
        pixels = scene.pixels()
        assert pixels.shape == (*scene.size[::-1], 3) and pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, scene.pixels())


def test_pictures_are_large_and_of_every_shape_from_three_to_one_to_one_to_three():
    sizes = [scene.size for scene in scenes(400)]
    assert min(map(min, sizes)) >= SHORTEST and max(map(max, sizes)) <= LONGEST
    ratios = np.log([width / height for width, height in sizes]) / np.log(3)
    assert np.histogram(ratios, 4, (-1.01, 1.01))[0].min() >= 50
    assert ratios.max() > 0.97 and ratios.min() < -0.97


def test_every_thing_is_visible_and_hides_no_other():
    for scene in scenes(60):
        pixels = scene.pixels()
        changed = [apart(pixels, without(scene, i).pixels()) for i in range(len(scene.things))]
        for thing, difference in zip(scene.things, changed, strict=True):
            assert (difference > 40).sum() >= SHORTEST**2 / 100, thing
        assert (np.sum([difference > 0 for difference in changed], axis=0) <= 1).all()


def test_things_stand_at_the_ends_or_in_the_middle_as_their_places_say():
    for scene in scenes(60):
        upright, long = scene.size[1] > scene.size[0], max(scene.size)
        for index, thing in enumerate(scene.things):
            changed = apart(scene.pixels(), without(scene, index).pixels())
            where = np.nonzero(changed.any(axis=int(upright)))[0].mean() / long
            place = scene.places.index(thing.place)
            assert (where < 0.35, 0.4 < where < 0.6, where > 0.65)[place], (thing, where)


def test_detail_is_drawn_and_not_enlarged():
    """No picture of fewer pixels holds the edges of a large one."""
    for scene in scenes(8):
        picture = Image.fromarray(scene.pixels())
        half = picture.resize([n // 2 for n in picture.size], Image.Resampling.BOX)
        assert (apart(half.resize(picture.size, Image.Resampling.BICUBIC), picture) > 40).sum() > 50


@pytest.mark.parametrize("source", SOURCES)
def test_one_thing_is_meant_and_what_is_said_tells_neither_kind_nor_label(source):
    rows = examples(source, "train", 960)
    for row in rows:
        assert referents(row.text, row.scene) == [0] == [row.referent]
    assert Counter(row.label for row in rows) == {"safe": 480, "unsafe": 480}
    for label in ("safe", "unsafe"):
        seen = Counter(row.scene.things[0].colour for row in rows if row.label == label)
        assert set(seen) == set(COLOUR_NAMES) and max(seen.values()) < 2 * min(seen.values())
    by_place = [any(f"the {place} " in row.text for place in LINES) for row in rows]
    assert 0.3 < np.mean(by_place) < 0.6


def test_what_decides_stands_at_an_end_or_in_the_middle():
    ends = {row.scene.things[0].place for row in examples("wide_margin", "test", 200)}
    assert ends == {"left", "right", "top", "bottom"}
    assert {row.scene.things[0].place for row in examples("wide_centre", "test", 200)} == {"middle"}
    assert {row.scene.things[0].place for row in examples("implicit_wide", "test", 200)} == {*LINES}


def test_padding_shows_what_decides_wherever_it_stands_and_a_crop_not_at_the_ends():
    folder = resolve_folder("toy://llava")
    processors = {how: Processor(folder, SIDE, how) for how in ("pad", "crop")}
    shown = {}  # pixels that tell what decides, by where it stands and how it is processed
    for source, how in product(("wide_margin", "wide_centre"), processors):
        rows = [row for row in examples(source, "test", 120) if _is_long(row.scene)]
        pairs = [(row.scene, without(row.scene, 0)) for row in rows]
        seen = [
            [processors[how](Image.fromarray(s.pixels())).transpose(1, 2, 0) for s in pair]
            for pair in pairs
        ]
        shown[source, how] = [int((apart(*pair) > 0.4).sum()) for pair in seen]
    assert min(shown["wide_margin", "pad"] + shown["wide_centre", "pad"]) >= 15
    assert np.mean(shown["wide_centre", "crop"]) > 4 * np.mean(shown["wide_centre", "pad"])
    assert np.mean(shown["wide_margin", "crop"]) < np.mean(shown["wide_centre", "crop"]) / 10


def test_a_record_holds_the_drawn_picture_and_its_size():
    (record,), (row,) = (make("implicit_wide", "val", 1) for make in (records, examples))
    scene = json.loads(record.provenance["scene"])
    assert tuple(scene["size"]) == row.scene.size and scene["seed"] == row.scene.seed
    assert min(row.scene.size) >= SHORTEST
