import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import Rejected
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.impforge.matching import topk
from crossguard_jax.impforge.matching.index import PictureIndex, build_index, top_k
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.io.jsonl import read_jsonl
from crossguard_jax.toy.world.kinds import BASE_KINDS
from tests.impforge.small_clip import CLIP, HubEncoder, picture, towers, world_pictures

# ---- exact top-k -------------------------------------------------------------------------------


def by_sorting(queries: np.ndarray, library: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = queries.astype(np.float32) @ library.astype(np.float32).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, rows, axis=1), rows


@pytest.mark.parametrize("seed", range(10))
def test_top_k_is_a_stable_sort_whatever_the_sizes_and_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 3000)), int(rng.integers(1, 24))
    n_queries, k = int(rng.integers(1, 700)), int(rng.choice([1, 2, 5, 10, n, n + 3]) % 90 + 1)
    # Few integers: exact in any order of summation, and most rows tie with others.
    queries = rng.integers(-2, 3, (n_queries, d)).astype(np.float32)
    library = rng.integers(-2, 3, (n, d)).astype(rng.choice(["float16", "float32"]))
    cosines, rows = top_k(queries, library, k, block=int(rng.choice([64, 100, 1000, 2**15])))
    assert (cosines.dtype, rows.dtype) == (np.float32, np.int64)
    expected = by_sorting(queries, library, k)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(cosines, expected[0])


def test_top_k_over_many_full_tiles_and_a_memory_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (2 * topk.TILE_ROWS + 77, 16)
    library = rng.standard_normal(shape).astype(np.float16)
    library[5000:5100] = library[100:200]  # the same picture twice
    library.tofile(tmp_path / "library")
    queries = np.concatenate([library[100:200], library[:3]]).astype(np.float32)
    mapped = np.memmap(tmp_path / "library", np.float16, "r", shape=shape)
    cosines, rows = top_k(queries, mapped, 3, block=topk.TILE_ROWS)
    expected = by_sorting(queries, library, 3)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_allclose(cosines, expected[0], rtol=1e-5)


def test_rising_rows_which_all_beat_what_was_found_are_found() -> None:
    library = np.arange(1000, dtype=np.float32)[:, None]
    _, rows = top_k(np.array([[1.0], [-1.0]], np.float32), library, 70, block=128)
    np.testing.assert_array_equal(rows, [range(999, 929, -1), range(70)])


def test_what_is_not_a_number_hides_no_neighbour_and_is_never_an_answer() -> None:
    library = np.eye(8, dtype=np.float32)
    library[3] = np.nan
    query = np.array([[0, 0, 3, 9, 2, 1, 0, 0]], np.float32)
    assert top_k(query, library, 3)[1].tolist() == [[2, 4, 5]]
    with pytest.raises(ValueError, match="not numbers"):
        top_k(query, library, 8)


def test_nothing_asked_or_nothing_there_is_an_empty_answer() -> None:
    for queries, library in ((0, 5), (5, 0)):
        cosines, rows = top_k(np.ones((queries, 4), np.float32), np.ones((library, 4), "f2"), 3)
        assert cosines.shape == rows.shape == (queries, min(3, library))


# ---- the index on disk -------------------------------------------------------------------------


def rows_of(index: PictureIndex) -> list[str]:
    return [index[i].id for i in range(len(index))]


def reference(pictures: tuple[Picture, ...]) -> np.ndarray:
    """Transformers' own CLIP on the same files."""
    opened = [Image.open(io.BytesIO(p.read())).convert("RGB") for p in pictures]
    pixels = torch.from_numpy(HubEncoder().pictures(opened))
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(resolve_folder(CLIP), dtype=torch.float32)
        vectors = clip.get_image_features(pixel_values=pixels).pooler_output.numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_are_transformers_own_and_batches_do_not_matter(tmp_path: Path) -> None:
    pictures = world_pictures(21)
    index, counts = build_index(tmp_path, pictures, towers(), dtype="float32", batch_size=8)
    assert (counts.added, counts.kept, counts.rejected, counts.gone) == (21, 0, 0, 0)
    np.testing.assert_allclose(index.embeddings, reference(pictures), atol=1e-5)
    assert rows_of(index) == [p.id for p in pictures]
    assert [index[i].caption for i in range(21)] == [p.caption for p in pictures]
    with pytest.raises(IndexError):
        index[21]


def test_vectors_of_texts_are_transformers_own_whatever_stands_beside_them() -> None:
    texts = ["a kettle", *[f"a picture of a red {kind} and a pan" for kind in BASE_KINDS], "pan"]
    tokens = HubEncoder().tokenizer
    with torch.no_grad():
        clip = CLIPModel.from_pretrained(resolve_folder(CLIP), dtype=torch.float32)
        alone = [
            clip.get_text_features(**tokens([text], return_tensors="pt")).pooler_output[0]
            for text in texts
        ]
    expected = np.stack([vector.numpy() / np.linalg.norm(vector) for vector in alone])
    np.testing.assert_allclose(towers().embed_texts(texts, batch_size=5), expected, atol=1e-5)
    assert towers().embed_texts([]).shape == (0, towers().dimension)


def test_only_what_is_new_is_read_and_embedded(tmp_path: Path) -> None:
    pictures = [replace(p, stamp="as it was") for p in world_pictures(12)]
    build_index(tmp_path, pictures[:9], towers(), batch_size=8)
    before = (tmp_path / "embeddings.bin").read_bytes()

    def unreadable() -> bytes:
        raise AssertionError("read again")

    known = [replace(p, read=unreadable) for p in pictures[2:9]]
    index, counts = build_index(tmp_path, [pictures[10], *known], towers(), batch_size=8)
    assert (counts.added, counts.kept, counts.gone) == (1, 7, 2)
    assert rows_of(index) == [p.id for p in (*pictures[:9], pictures[10])]
    assert (tmp_path / "embeddings.bin").read_bytes().startswith(before)
    assert json.loads((tmp_path / "index.json").read_text())["count"] == 10


@pytest.mark.parametrize("stamp", ["", "another time"])
@pytest.mark.parametrize("what", ["file", "caption", "nothing"])
def test_an_edited_picture_is_embedded_anew_and_its_old_row_is_found_no_more(
    tmp_path: Path, what: str, stamp: str
) -> None:
    pictures = list(world_pictures(6))
    build_index(tmp_path, pictures, towers(), batch_size=8)
    edited = replace(pictures[2], stamp=stamp)
    if what == "file":
        edited = replace(edited, read=world_pictures(7)[6].read)
    elif what == "caption":
        edited = replace(edited, caption="a zebra")
    pictures[2] = edited
    index, counts = build_index(tmp_path, pictures, towers(), batch_size=8)
    changed = int(what != "nothing")
    assert (counts.added, counts.changed, counts.kept, counts.gone) == (
        changed,
        changed,
        6 - changed,
        0,
    )
    fresh, _ = build_index(tmp_path / "fresh", pictures, towers(), batch_size=8)
    assert index.pictures == fresh.pictures == 6
    queries = towers().embed_texts([f"a picture of a {kind}" for kind in BASE_KINDS])
    for k in (2, 6):
        cosines, rows = index.search(queries, k)
        expected, fresh_rows = fresh.search(queries, k)
        np.testing.assert_allclose(cosines, expected, atol=1e-6)
        assert [[index[row].id for row in each] for each in rows.tolist()] == [
            [fresh[row].id for row in each] for each in fresh_rows.tolist()
        ]
    captioned, expected_of = (
        {
            word: {each[row].id for row in rows}
            for word, rows in each.captioned(["zebra", "a"]).items()
        }
        for each in (index, fresh)
    )
    assert captioned == expected_of


def test_bad_pictures_are_reported_and_cost_nobody_else(tmp_path: Path) -> None:
    good = world_pictures(9)

    def missing() -> bytes:
        raise UserError("gone.png: the picture does not exist; correct the path")

    pictures = [
        *good[:3],
        picture("torn", good[0].read()[:200]),
        Rejected("captions.jsonl", 7, "there is no picture x.png"),
        Picture("gone", missing, "", {"file": "shard.tsv", "row": "12"}),
        good[1],  # a second one of its id
        *good[3:],
    ]
    index, counts = build_index(tmp_path, pictures, towers(), batch_size=4)
    assert rows_of(index) == [p.id for p in good]
    assert (counts.added, counts.rejected) == (9, 3)
    found = [value for _, value in read_jsonl(tmp_path / "rejected.jsonl")]
    assert {(r["file"], r["row"], r["id"]) for r in found} == {
        ("torn.png", 1, "torn"),
        ("captions.jsonl", 7, ""),
        ("shard.tsv", 12, "gone"),
    }
    assert all(r["reason"] for r in found)
    # The next pass says it again, once.
    build_index(tmp_path, pictures, towers(), batch_size=4)
    assert len(list(read_jsonl(tmp_path / "rejected.jsonl"))) == 3


def test_a_vector_that_is_no_number_is_rejected(tmp_path: Path) -> None:
    class Broken(Towers):
        def __init__(self) -> None:
            self.dimension, self.digest, self.mesh = 2, "broken", None

        def pixels(self, image: object) -> np.ndarray:
            return np.zeros((3, 1, 1), np.float32)

        def embed_pictures(self, pixels: np.ndarray) -> jnp.ndarray:
            return jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [0.0, 1.0]])

    pictures = world_pictures(3)
    index, counts = build_index(tmp_path, pictures, Broken(), batch_size=3)
    assert rows_of(index) == [pictures[0].id, pictures[2].id] and counts.rejected == 1
    assert np.isfinite(index.embeddings).all()


KILLED = """
    import os, signal, sys
    from tests.impforge.small_clip import towers, world_pictures
    from crossguard_jax.impforge.matching.index import build_index
    def until_killed():
        for i, picture in enumerate(world_pictures(40)):
            if i == 30:
                os.kill(os.getpid(), signal.SIGKILL)
            yield picture
    build_index(sys.argv[1], until_killed(), towers(), batch_size=4)
"""


@pytest.mark.training
def test_a_killed_build_goes_on_and_is_as_if_it_had_not_been_killed(
    tmp_path: Path, run_with_devices: Callable[..., str]
) -> None:
    with pytest.raises(pytest.fail.Exception, match="exit code -9"):
        run_with_devices(1, KILLED, str(tmp_path / "a"))
    kept = (tmp_path / "a" / "pictures.jsonl").read_bytes().count(b"\n")
    assert 8 <= kept <= 30
    index, counts = build_index(tmp_path / "a", world_pictures(40), towers(), batch_size=4)
    assert (counts.kept, counts.added) == (kept, 40 - kept)
    whole, _ = build_index(tmp_path / "b", world_pictures(40), towers(), batch_size=4)
    assert rows_of(index) == rows_of(whole)
    np.testing.assert_array_equal(index.embeddings, whole.embeddings)


@pytest.mark.parametrize("seed", range(6))
def test_torn_tails_are_cut_off_wherever_they_tore(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = world_pictures(10)
    whole, _ = build_index(tmp_path, pictures, towers(), batch_size=8)
    vectors, rows = np.array(whole.embeddings), rows_of(whole)
    for name in rng.permutation(["embeddings.bin", "pictures.jsonl"])[: seed % 2 + 1]:
        file = tmp_path / name
        os.truncate(file, int(rng.integers(file.stat().st_size)))
    with pytest.raises(UserError, match="lost rows"):
        PictureIndex(tmp_path)
    index, counts = build_index(tmp_path, pictures, towers(), batch_size=8)
    assert rows_of(index) == rows and counts.added + counts.kept == 10 and counts.added
    np.testing.assert_array_equal(index.embeddings, vectors)


def test_an_index_of_another_model_is_stale_until_rebuilt(tmp_path: Path) -> None:
    pictures = world_pictures(5)
    build_index(tmp_path, pictures, towers(), batch_size=8)
    with pytest.raises(UserError, match="stale .dtype: float16, now float32.; rebuild"):
        build_index(tmp_path, pictures, towers(), dtype="float32")
    meta = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(meta | {"model": "another"}))
    with pytest.raises(UserError, match="stale .model: another, now"):
        build_index(tmp_path, pictures, towers(), batch_size=8)
    index, counts = build_index(tmp_path, pictures[:3], towers(), batch_size=8, rebuild=True)
    assert rows_of(index) == [p.id for p in pictures[:3]] and counts.added == 3
    assert index.meta["model"] == towers().digest and index.meta["count"] == 3


def test_two_builds_of_one_index_do_not_run_at_once(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[Picture]:
        with pytest.raises(UserError, match="another process"):
            build_index(tmp_path, (), towers())
        yield from world_pictures(2)

    assert len(build_index(tmp_path, meanwhile(), towers(), batch_size=8)[0]) == 2


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="build it first"):
        PictureIndex(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="not an index"):
        PictureIndex(tmp_path)


def test_the_word_for_a_thing_finds_pictures_of_it(tmp_path: Path) -> None:
    index, _ = build_index(tmp_path, world_pictures(300), towers())
    vectors = towers().embed_texts([f"a picture of a {kind}" for kind in BASE_KINDS])
    _, rows = index.search(vectors, 5)
    shown = [
        kind in index[row].caption.split()
        for kind, near in zip(BASE_KINDS, rows.tolist(), strict=True)
        for row in near
    ]
    assert np.mean(shown) >= 0.95


EIGHT_DEVICES = """
    import sys
    import numpy as np
    from crossguard_jax.core.sharding import make_mesh
    from crossguard_jax.impforge.matching.index import build_index, top_k
    from tests.impforge.small_clip import towers, world_pictures
    mesh = make_mesh(data=4, fsdp=2)
    build_index(sys.argv[1], world_pictures(21), towers(mesh), dtype="float32", batch_size=9)
    rng = np.random.default_rng(0)
    for n, block, k in ((1, 64, 1), (61, 64, 5), (3001, 64, 9), (3001, 4096, 700)):
        library = rng.integers(-2, 3, (n, 7)).astype(np.float16)
        queries = rng.integers(-2, 3, (33, 7)).astype(np.float32)
        cosines = queries @ library.astype(np.float32).T
        expected = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        found = top_k(queries, library, k, mesh, block)
        np.testing.assert_array_equal(found[1], expected)
        np.testing.assert_array_equal(found[0], np.take_along_axis(cosines, expected, axis=1))
"""


@pytest.mark.devices
def test_eight_devices_embed_as_one_does_and_find_what_sorting_finds(
    tmp_path: Path, run_with_devices: Callable[..., str]
) -> None:
    run_with_devices(8, EIGHT_DEVICES, str(tmp_path / "eight"))
    one, _ = build_index(tmp_path / "one", world_pictures(21), towers(), dtype="float32")
    eight = PictureIndex(tmp_path / "eight")
    np.testing.assert_allclose(eight.embeddings, one.embeddings, atol=1e-5)
    assert rows_of(eight) == rows_of(one)
