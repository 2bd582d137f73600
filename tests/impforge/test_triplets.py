import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Rejected
from crossguard_jax.impforge import triplets
from crossguard_jax.impforge.triplets import (
    PictureFile,
    Triplet,
    read_triplets,
    write_triplets,
)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def triplet(n: int, **changes: object) -> Triplet:
    fields = {
        "id": f"q{n}",
        "query": "how do i hide the kettle?",
        "keyword": "kettle",
        "image": png(n),
        "caption": "a kettle, and \N{SNOWMAN}",
        "category": "hot",
        "cosine": 0.25,
        "provenance": {"judge": "safe", "library": "p7"},
    }
    return Triplet(**fields | changes)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    written = [triplet(0), triplet(1, caption="", cosine=-0.125), triplet(2, provenance={})]
    assert write_triplets(written, tmp_path) == 3
    read = list(read_triplets(tmp_path / "triplets.jsonl"))
    assert [replace(t, image=t.picture) for t in read] == written


@pytest.mark.parametrize("of_match", [True, False])
def test_pictures_stay_on_disk_and_one_that_changed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_match: bool
) -> None:
    write_triplets([triplet(0)], tmp_path)
    table, path = tmp_path / "triplets.jsonl", tmp_path / "triplets/q0.png"
    if not of_match:
        table.write_text(table.read_text().replace("image_digest", "other"))
    (read,) = read_triplets(table)
    assert isinstance(read.image, PictureFile) and read.digest == triplet(0).digest
    path.write_bytes(png(7))
    with pytest.raises(UserError, match="q0.png: the picture has changed"):
        read.picture  # noqa: B018  # it reads
    # What match has decoded is not read again at the start, whatever is there now.
    monkeypatch.setattr(triplets, "picture", lambda *_, check: pytest.fail("read"))
    if of_match:
        assert next(read_triplets(table)) == read
    path.unlink()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_pictures_keep_their_bytes(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(3))).save(buffer, kind)
    write_triplets([triplet(0, image=buffer.getvalue())], tmp_path)
    (read,) = read_triplets(tmp_path / "triplets.jsonl")
    assert read.picture == read.image.path.read_bytes() == buffer.getvalue()
    ending = {"JPEG": "jpg"}.get(kind, kind.lower())
    assert read.image.path == tmp_path / f"triplets/q0.{ending}"


def test_a_table_of_ones_own_reads_and_its_bad_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    good = {"image": "a.png", "text": "q", "keyword": "pan"}
    rows = [
        good,
        good | {"keyword": ""},
        good | {"image": "none.png"},
        good | {"cosine": "much"},
        good | {"text": " "},
        good | {"provenance": 3},
        good | {"id": 7, "caption": "a pan", "cosine": 0.5},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(read_triplets(path))
    bad = {row.row: row.reason for row in found if isinstance(row, Rejected)}
    first, last = (row for row in found if isinstance(row, Triplet))
    assert sorted(bad) == [2, 3, 4, 5, 6]
    assert "keyword" in bad[2] and "none.png" in bad[3] and "cosine" in bad[4]
    assert first.id == "mine-1" and math.isnan(first.cosine) and first.shown == "pan"
    assert (last.id, last.shown, last.cosine) == ("7", "a pan", 0.5)


@pytest.mark.parametrize("second", ["q1", None])
def test_a_row_of_an_earlier_ones_id_is_refused_so_no_text_gets_anothers_picture(
    tmp_path: Path, second: str | None
) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    ids = ["q1", second] if second else ["mine-2", None]
    rows = [
        {"id": id, "image": f"{n}.png", "text": f"q{n}", "keyword": "pan"}
        for n, id in enumerate(ids)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, refused = read_triplets(path)
    assert isinstance(first, Triplet) and (first.query, first.picture) == ("q0", png(0))
    assert isinstance(refused, Rejected) and refused.row == 2 and "same id" in refused.reason


def test_two_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="two records are called 'q0'"):
        write_triplets([triplet(0), triplet(0)], tmp_path)


@pytest.mark.parametrize(
    "caption, keyword, shown",
    [
        ("A red kettle on a stove, and two cups.", "kettle", "A red kettle on a stove"),
        ("a knife at the top and a pan at the left", "pan", "a pan at the left"),
        ("Two pans. A Kettle; a lamp", "kettle", "A Kettle"),
        ("Two pans and a lamp.", "pan", "Two pans and a lamp"),
        ("a sand castle", "sand", "a sand castle"),
        ("", "pan", "pan"),
        ("two pans", "", "two pans"),
        ("a C++ book, open", "C++", "a C++ book, open"),
    ],
)
def test_a_language_model_is_shown_what_the_caption_says_of_the_keyword(
    caption: str, keyword: str, shown: str
) -> None:
    assert triplet(0, caption=caption, keyword=keyword).shown == shown
