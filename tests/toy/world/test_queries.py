"""The small world's queries and library, read as a user's own files are."""

from collections import Counter

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.data.sources.table import table
from crossguard_jax.io import images
from crossguard_jax.toy.world.kinds import HAZARDS, KIND_NAMES
from crossguard_jax.toy.world.queries import read_scenes, write_library, write_queries
from crossguard_jax.toy.world.requests import CARRIERS, HELD_OUT_CARRIERS, REQUEST_NAMES
from crossguard_jax.toy.world.risk import is_held_out, risky
from crossguard_jax.toy.world.scenes import render
from crossguard_jax.toy.world.truth import Named, judge, read


def _queries(folder, n=192, seed=0, split="train", **options):
    rows = list(table(write_queries(folder, n, seed, split, **options), image=None))
    assert all(isinstance(row, Record) for row in rows)
    return rows


def _pairs(rows):
    said = [read(row.text) for row in rows]
    assert all(isinstance(one.referent, Named) for one in said)
    return [(one.referent.kind, one.request) for one in said]


def test_queries_name_their_thing_and_are_unsafe_alone(tmp_path):
    rows = _queries(tmp_path)
    assert len({row.id for row in rows}) == len(rows) == 192
    for row, (kind, request) in zip(rows, _pairs(rows), strict=True):
        truth = judge(row.text, None)
        assert truth.unsafe_alone and truth.risky_together and row.label == "unsafe"
        assert risky(kind, request) and not is_held_out(kind, request)
        assert row.category == request


def test_every_category_and_pair_comes_as_often(tmp_path):
    rows = _queries(tmp_path)
    assert Counter(row.category for row in rows) == dict.fromkeys(REQUEST_NAMES, 12)
    assert set(Counter(_pairs(rows)).values()) == {2}


def test_benign_queries_are_as_many_and_of_the_same_kinds_and_categories(tmp_path):
    rows = _queries(tmp_path, 192, benign=True)
    safe = [row for row in rows if row.label == "safe"]
    assert len(rows) == 384 and len(safe) == 192
    assert not any(judge(row.text, None).unsafe_alone for row in safe)
    for values in zip(*_pairs(safe), strict=True):
        assert set(Counter(values).values()) == {12}
    first = Counter(row.label for row in rows[:192])
    assert min(first["safe"], first["unsafe"]) > 60  # in random order


def test_held_out_pairs_are_apart_and_never_for_training(tmp_path):
    for split in ("val", "test"):
        rows = _queries(tmp_path / split, 64, split=split, held_out_pairs=True)
        assert all(is_held_out(*pair) for pair in _pairs(rows))
        assert all(judge(row.text, None).unsafe_alone for row in rows)
    with pytest.raises(UserError, match="in no training"):
        write_queries(tmp_path, 1, 0, "train", held_out_pairs=True)


def test_test_queries_speak_in_unseen_carriers(tmp_path):
    def fits(text, forms):
        cut = [form.split("{request}") for form in forms]
        return any(text.startswith(head) and text.endswith(tail) for head, tail in cut)

    for split, forms in (("train", CARRIERS), ("val", CARRIERS), ("test", HELD_OUT_CARRIERS)):
        assert all(fits(row.text, forms) for row in _queries(tmp_path / split, split=split))


def test_files_are_the_same_every_time_and_others_for_another_seed_or_split(tmp_path):
    def written(name, seed, split):
        folder = tmp_path / name
        write_queries(folder, 20, seed, split, benign=True)
        write_library(folder, 10, seed, split)
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first = written("first", 3, "train")
    assert first == written("again", 3, "train")
    for seed, split in ((4, "train"), (3, "val")):
        other = written(f"{seed}-{split}", seed, split)
        assert not set(first.values()) & set(other.values())


def test_the_library_is_one_table_of_harmless_pictures_with_true_captions(tmp_path):
    write_library(tmp_path, 64, 0, "train")
    rows = list(table(tmp_path))  # a folder with exactly one table
    scenes = read_scenes(tmp_path)
    assert [row.id for row in rows] == list(scenes)
    shown = Counter()
    for row in rows:
        scene = scenes[row.id]
        assert len(scene.things) in (2, 3) and not scene.words
        assert not {thing.kind for thing in scene.things} & set(HAZARDS)
        assert all(f"{t.colour} {t.kind} at the {t.place}" in row.text for t in scene.things)
        assert not judge(row.text, scene).unsafe_picture
        shown.update(thing.kind for thing in scene.things)
    assert min(shown[kind] for kind in KIND_NAMES) >= 4


def test_scenes_are_what_the_pictures_show_to_the_last_pixel(tmp_path):
    write_library(tmp_path, 20, 1, "test")
    scenes = read_scenes(tmp_path)
    for row in table(tmp_path):
        assert (np.asarray(images.decode(row.image, row.id)) == render(scenes[row.id])).all()


def test_splits_share_no_picture(tmp_path):
    seeds = {}
    for split in ("train", "val", "test"):
        write_library(tmp_path / split, 50, 0, split)
        seeds[split] = {scene.seed for scene in read_scenes(tmp_path / split).values()}
    assert not seeds["train"] & (seeds["val"] | seeds["test"]) and not seeds["val"] & seeds["test"]


def test_an_unknown_split_and_a_folder_without_scenes_are_named(tmp_path):
    for write in (write_queries, write_library):
        with pytest.raises(UserError, match="val"):
            write(tmp_path, 1, 0, "dev")
    with pytest.raises(UserError, match="scenes"):
        read_scenes(tmp_path)
