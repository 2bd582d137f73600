"""Readers of captions, on trees that the tests make in the layout of the download."""

import json
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), "blue").save(path, "JPEG")


def sorted_out(rows) -> tuple[list[Record], list[Rejected]]:
    rows = list(rows)
    return (
        [row for row in rows if isinstance(row, Record)],
        [row for row in rows if isinstance(row, Rejected)],
    )


# ---- COCO captions -----------------------------------------------------------------------------


def coco_tree(root: Path, pictures: str = "val2017") -> Path:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "license": 1, "height": 24} for n in range(5)]
    annotations = [
        {"id": 100 - k, "image_id": n, "caption": f"caption {k}\nof {n}"}
        for k in range(5)
        for n in range(4)
    ]
    content = {"info": {"year": 2017}, "licenses": [{"id": 1}], "images": images}
    (root / "annotations").mkdir(parents=True)
    file = root / "annotations" / "captions_val2017.json"
    file.write_text(json.dumps(content | {"annotations": annotations}))
    for n in (0, 1, 2, 4):
        jpeg(root / pictures / f"{n:012d}.jpg")
    return root


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017", "images"])
def test_coco_captions_come_by_picture_in_the_order_of_their_ids(tmp_path, pictures):
    records, rejected = sorted_out(sources.read("coco_captions", coco_tree(tmp_path, pictures)))
    assert [record.id for record in records] == [f"coco_captions-val2017-{n}" for n in range(3)]
    said = [f"caption {k} of 1" for k in (4, 3, 2, 1, 0)]
    assert records[1].text == said[0]
    assert records[1].provenance["captions"].split("\n") == said
    assert records[1].provenance["row"] == "2"
    assert {(r.label, r.category, r.source) for r in records} == {
        ("safe", "benign", "coco_captions")
    }
    assert [row.row for row in rejected] == [4, 5]
    assert "images: " in rejected[0].reason and "does not exist" in rejected[0].reason
    assert "no caption" in rejected[1].reason


def test_a_bad_coco_caption_costs_that_caption_alone(tmp_path):
    file = coco_tree(tmp_path) / "annotations" / "captions_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][:0] = [
        5,
        {"id": 1, "image_id": 1},
        {"id": 1, "image_id": 77, "caption": "of nothing"},
        {"id": 1, "image_id": "1", "caption": "by word"},
        {"id": 1, "image_id": 1, "caption": " "},
    ]
    content["images"] += ["no object", {"id": 9}, {"file_name": "x.jpg"}]
    file.write_text(json.dumps(content))
    records, rejected = sorted_out(sources.read("coco_captions", tmp_path, captions=2))
    assert [r.provenance["captions"] for r in records][1] == "caption 4 of 1\ncaption 3 of 1"
    assert len(records) == 3 and {row.file for row in rejected} == {str(file)}
    expected = {
        "annotations: the row is not an object": 1,
        "annotations: no field 'caption'": 2,
        "annotations: image_id 77 is none of the images": 3,
        "annotations: field 'image_id' is '1'; give a number": 4,
        "annotations: field 'caption' is empty": 5,
        "images: the row is not an object": 6,
        "images: no field 'file_name'": 7,
        "images: no field 'id'": 8,
    }
    found = {row.reason: row.row for row in rejected if "picture" not in row.reason}
    assert list(found.values()) == list(expected.values())
    assert all(map(str.startswith, found, expected))


# ---- Karpathy ----------------------------------------------------------------------------------


def karpathy_tree(root: Path, name: str = "dataset_coco.json") -> Path:
    rows = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "split": split,
            "sentences": [
                {"raw": f"sentence {k}  of {n}.\n", "tokens": ["sentence"], "sentid": k}
                for k in range(6)
            ],
        }
        for n, split in enumerate(["train", "restval", "val", "test", "test", "restval"])
    ]
    root.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps({"dataset": "coco", "images": rows}))
    for row in rows[:-1]:
        jpeg(root / row["filepath"] / row["filename"])
    return root


@pytest.mark.parametrize(
    ("split", "numbers"),
    [("train", [0]), ("restval", [1]), ("val", [2]), ("test", [3, 4]), ("train+restval", [0, 1])],
)
def test_karpathy_gives_each_split_its_own_pictures(tmp_path, split, numbers):
    rows = sources.read("karpathy", karpathy_tree(tmp_path), split=split, captions=5)
    records, rejected = sorted_out(rows)
    assert [r.id for r in records] == [f"karpathy-coco-COCO_val2014_{n:012d}" for n in numbers]
    for record, n in zip(records, numbers, strict=True):
        said = [f"sentence {k} of {n}." for k in range(5)]
        assert record.text == said[0] and record.provenance["captions"].split("\n") == said
        assert record.provenance["split"] in split and record.provenance["row"] == str(n + 1)
        assert (record.source, record.label) == ("karpathy-coco", "safe")
    assert [row.row for row in rejected] == ([6] if "restval" in split else [])


@pytest.mark.parametrize("folder", ["images", "flickr30k-images", "elsewhere"])
def test_karpathy_finds_the_pictures_of_flickr(tmp_path, folder):
    row = {"filename": "7.jpg", "split": "test", "sentences": [{"raw": "A cup."}]}
    file = tmp_path / "dataset_flickr30k.json"
    file.write_text(json.dumps({"images": [row]}))
    jpeg(tmp_path / folder / "7.jpg")
    options = {"pictures": tmp_path / folder} if folder == "elsewhere" else {}
    for path in (tmp_path, file):
        records, rejected = sorted_out(sources.read("karpathy", path, **options))
        assert not rejected and records[0].id == "karpathy-flickr30k-7"


def test_karpathy_rejects_bad_rows_and_goes_on(tmp_path):
    file = karpathy_tree(tmp_path) / "dataset_coco.json"
    good = json.loads(file.read_text())["images"][3]
    bad = {
        "the row is not an object": [1],
        "no field 'split'": {"filename": "x.jpg"},
        "field 'split' is 'dev'": good | {"split": "dev"},
        "no field 'filename'": {"split": "test"},
        "field 'sentences' is no list": good | {"sentences": "A cup."},
        "field 'raw' is a int": good | {"sentences": [{"raw": 5}]},
        "the picture has no caption": good | {"sentences": []},
        f"{tmp_path}/val2014/gone.jpg: the picture does not exist": good | {"filename": "gone.jpg"},
    }
    file.write_text(json.dumps({"images": [*bad.values(), good]}))
    records, rejected = sorted_out(sources.read("karpathy", tmp_path))
    assert len(records) == 1 and [row.row for row in rejected] == list(range(1, len(bad) + 1))
    for row, words in zip(rejected, bad, strict=True):
        assert row.reason.startswith(words)


def test_karpathy_wants_one_file_and_known_splits(tmp_path):
    karpathy_tree(tmp_path)
    karpathy_tree(tmp_path, "dataset_flickr8k.json")
    with pytest.raises(UserError, match="found dataset_coco.json, dataset_flickr8k.json"):
        sources.read("karpathy", tmp_path)
    with pytest.raises(UserError, match="no split 'dev'"):
        sources.read("karpathy", tmp_path, split="train+dev")


# ---- both --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco_captions", "karpathy"])
@pytest.mark.parametrize("content", [None, "[]", "{}", '{"images": 5, "annotations": 5}', "no"])
def test_what_is_no_such_download_is_a_one_line_error(tmp_path, name, content):
    if content is not None:
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "captions_val2017.json").write_text(content)
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError) as error:
        sources.read(name, tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "make", "picture"),
    [
        ("coco_captions", coco_tree, "val2017/000000000001.jpg"),
        ("karpathy", karpathy_tree, "val2014/COCO_val2014_000000000003.jpg"),
    ],
)
def test_a_damaged_picture_is_a_rejected_row_where_pictures_are_checked(
    tmp_path, name, make, picture
):
    make(tmp_path)
    (tmp_path / picture).write_text("no picture")
    _, rejected = sorted_out(sources.read(name, tmp_path))
    assert any(f"{picture}: not a picture" in row.reason for row in rejected)
    _, rejected = sorted_out(sources.read(name, tmp_path, check_pictures=False))
    assert not any(picture in row.reason for row in rejected)
