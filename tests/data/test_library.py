import base64
import csv
import gzip
import io
import json
import pickle
import random
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.library import Picture, layout_of, pictures
from crossguard_jax.data.records import Rejected
from crossguard_jax.io import images


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (seed * 37 % 256, seed * 91 % 256, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def sorted_out(rows) -> tuple[list[Picture], list[Rejected]]:
    rows = list(rows)
    return (
        [row for row in rows if isinstance(row, Picture)],
        [row for row in rows if isinstance(row, Rejected)],
    )


def captions_of(found: list[Picture]) -> dict[str, str]:
    return {picture.id: picture.caption for picture in found}


# ---- any folder --------------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_by_path_and_nothing_else(tmp_path):
    names = ["b.jpg", "a/2.PNG", "a/10.jpeg", "a/deep/er/x.webp", "c d é.gif", "Z.bmp"]
    for seed, name in enumerate(names):
        put(tmp_path / name, jpeg(seed))
    for name in ("notes.txt", ".hidden.jpg", ".git/x.jpg", "._a.jpg", "a/Thumbs.db"):
        put(tmp_path / name, b"x")
    found, rejected = sorted_out(pictures(tmp_path))
    assert not rejected and layout_of(tmp_path) == "folder"
    assert [p.id for p in found] == sorted(names, key=lambda name: name.split("/"))
    for picture in found:
        assert picture.read() == (tmp_path / picture.id).read_bytes()
        assert picture.provenance["file"] == str(tmp_path / picture.id) and picture.caption == ""


def test_pictures_added_later_change_no_id_and_no_shard(tmp_path):
    for seed in range(40):
        put(tmp_path / f"{seed % 3}/{seed}.jpg", jpeg(seed))

    def shards() -> list[set[str]]:
        return [{p.id for p in pictures(tmp_path, shard=(index, 3))} for index in range(3)]

    before = shards()
    put(tmp_path / "0/00.jpg", jpeg(77))
    put(tmp_path / "new/1.jpg", jpeg(78))
    after = shards()
    assert set.union(*before) | {"0/00.jpg", "new/1.jpg"} == set.union(*after)
    for old, new in zip(before, after, strict=True):
        assert old and new - old <= {"0/00.jpg", "new/1.jpg"} and old <= new


@pytest.mark.parametrize("columns", [("file_name", "text"), ("image", "caption")])
@pytest.mark.parametrize("table", ["metadata.csv", "captions.jsonl", "captions.tsv"])
def test_a_table_beside_the_pictures_gives_captions(tmp_path, table, columns):
    for name in ("a/1.jpg", "a/2.jpg", "3.jpg"):
        put(tmp_path / name, jpeg(1))
    rows = [("a/1.jpg", "a pan"), ("./3.jpg", "a  cat\tasleep"), ("a/1.jpg", "a big pan")]
    if table.endswith(".jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
        (tmp_path / table).write_text("".join(lines))
    else:
        with (tmp_path / table).open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if "tsv" in table else ",").writerows([columns, *rows])
    found, rejected = sorted_out(pictures(tmp_path))
    assert not rejected
    assert captions_of(found) == {"3.jpg": "a cat asleep", "a/1.jpg": "a pan", "a/2.jpg": ""}
    assert found[1].provenance["captions"] == "a pan\na big pan"
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / table).rename(tmp_path / "elsewhere" / table)
    assert captions_of(list(pictures(tmp_path, captions=moved))) == captions_of(found)


def test_a_caption_without_its_picture_is_rejected(tmp_path):
    put(tmp_path / "1.jpg", jpeg(1))
    lines = ['{"file_name": "2.jpg", "text": "gone"}', '{"file_name": "1.jpg"}', "[1]"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found, rejected = sorted_out(pictures(tmp_path))
    assert captions_of(found) == {"1.jpg": ""}
    assert {each.row: each.reason for each in rejected} == {
        1: f"there is no picture 2.jpg in {tmp_path}",
        2: "no field 'caption' (there are file_name)",
        3: "not a JSON object but a list",
    }


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    put(tmp_path / "library/1.jpg", jpeg(1))
    put(tmp_path / "elsewhere/2.jpg", jpeg(2))
    (tmp_path / "library/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "library")
    assert [p.id for p in pictures(tmp_path / "library")] == ["1.jpg", "linked/2.jpg"]


def test_a_picture_that_cannot_be_read_names_its_file(tmp_path):
    put(tmp_path / "empty.jpg", b"")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    put(tmp_path / "cut.jpg", jpeg(1)[:100])
    found, rejected = sorted_out(pictures(tmp_path))
    assert not rejected
    by_id = {picture.id: picture for picture in found}
    for name in ("empty.jpg", "gone.jpg"):
        with pytest.raises(UserError, match=name):
            by_id[name].read()
    with pytest.raises(UserError, match="cut.jpg"):
        images.decode(by_id["cut.jpg"].read(), "cut.jpg")


def test_a_name_that_is_not_utf8_is_rejected(tmp_path):
    put(tmp_path / "1.jpg", jpeg(1))
    bad = bytes(tmp_path) + b"/\xff.jpg"
    try:
        Path(bad.decode("utf-8", "surrogateescape")).write_bytes(jpeg(2))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    found, (rejected,) = sorted_out(pictures(tmp_path))
    assert [picture.id for picture in found] == ["1.jpg"] and "not UTF-8" in rejected.reason


# ---- COCO --------------------------------------------------------------------------------------


def coco_release(root: Path, release: str, folder: str, numbers: list[int]) -> dict[int, list[str]]:
    """Writes a release with its rows in random order; returns the captions by annotation id."""
    rng = random.Random(0)
    captions = {n: [f"picture {n},\n view {k}" for k in range(5)] for n in numbers}
    annotations = [
        {"image_id": n, "id": 100 * n + k, "caption": text}
        for n, texts in captions.items()
        for k, text in enumerate(texts)
    ]
    named = [{"id": n, "file_name": f"{n:012d}.jpg", "license": 1, "width": 16} for n in numbers]
    rng.shuffle(annotations)
    rng.shuffle(named)
    content = {"info": {"year": 2017}, "images": named, "annotations": annotations, "licenses": []}
    put(root / f"annotations/captions_{release}.json", json.dumps(content).encode())
    for n in numbers:
        put(root / folder / f"{n:012d}.jpg", jpeg(n))
    return captions


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images"])
def test_coco_gives_each_picture_the_first_of_its_captions(tmp_path, folder):
    captions = coco_release(tmp_path, "val2017", folder, [9, 139, 25])
    put(tmp_path / folder / "000000000001.jpg", jpeg(1))  # no caption file names it
    (tmp_path / "annotations/instances_val2017.json").write_text("{}")
    found, rejected = sorted_out(pictures(tmp_path))
    assert not rejected and layout_of(tmp_path) == "coco"
    assert [p.id for p in found] == [f"{folder}/{n:012d}.jpg" for n in (9, 25, 139)]
    for picture, n in zip(found, (9, 25, 139), strict=True):
        assert picture.caption == f"picture {n}, view 0" and picture.read() == jpeg(n)
        texts = [" ".join(text.split()) for text in captions[n]]
        assert picture.provenance["captions"].split("\n") == texts


def test_coco_reports_what_is_missing_and_gives_the_rest(tmp_path):
    coco_release(tmp_path, "train2014", "not yet unpacked", [1, 2])
    coco_release(tmp_path, "val2014", "val2014", [3, 4])
    coco_release(tmp_path, "val2017", "val2017", [5])
    (tmp_path / "annotations/captions_test.json").write_text('{"images": 3}')
    (tmp_path / "test").mkdir()
    (tmp_path / "val2014/000000000003.jpg").unlink()
    found, rejected = sorted_out(pictures(tmp_path))
    assert [p.id for p in found] == ["val2014/000000000004.jpg", "val2017/000000000005.jpg"]
    reasons = {Path(each.file).name: each.reason for each in rejected}
    assert "not COCO's captions" in reasons["captions_test.json"]
    assert "unpack them into" in reasons["captions_train2014.json"]
    assert "000000000003.jpg" in reasons["captions_val2014.json"] and len(rejected) == 3
    only = tmp_path / "annotations/captions_val2017.json"
    assert [p.id for p in pictures(tmp_path, captions=only)] == ["val2017/000000000005.jpg"]


def test_a_second_picture_of_one_id_is_rejected_whatever_the_number_of_shards(tmp_path):
    coco_release(tmp_path, "val2017", "val2017", list(range(1, 9)))
    file = tmp_path / "annotations/captions_val2017.json"
    content = json.loads(file.read_text())
    content["images"] += [{"id": 3, "file_name": "000000000003.jpg"}]
    file.write_text(json.dumps(content))
    for count in (1, 2, 5):
        found, rejected = sorted_out(
            row for index in range(count) for row in pictures(tmp_path, shard=(index, count))
        )
        assert len(found) == len(captions_of(found)) == 8
        (twice,) = rejected
        assert "second picture called 'val2017/000000000003.jpg'" in twice.reason and twice.row == 9


# ---- WIT ---------------------------------------------------------------------------------------

COLUMNS = ["language", "image_url", "caption_reference_description", "caption_alt_text_description"]


def url(n: int) -> str:
    return f"https://upload.example.org/{n:02x}/Küche_{n}.jpg"


def wit_shards(root: Path, *shards: list[int]) -> None:
    for number, contents in enumerate(shards):
        rows = (f"{url(n)}\t{base64.b64encode(jpeg(n)).decode()}\thttps://p/{n}" for n in contents)
        data = gzip.compress("".join(row + "\n" for row in rows).encode())
        put(root / f"part-{number:05d}.csv.gz", data)


def wit_captions(file: Path, rows: list[tuple]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t").writerows([COLUMNS, *rows])
    data = text.getvalue().encode()
    put(file, gzip.compress(data) if file.suffix == ".gz" else data)


@pytest.mark.parametrize("folder", [".", "image_pixels", "image_data_train/image_pixels"])
@pytest.mark.parametrize("table", ["train-00000-of-00005.tsv", "wit_v1.train.all-00000.tsv.gz"])
def test_wit_shards_give_pictures_with_captions_joined_by_address(tmp_path, folder, table):
    wit_shards(tmp_path / folder, [1, 2, 3], [4, 5])
    put(tmp_path / "resnet_embeddings/part-0.csv.gz", gzip.compress(b"x\t0.5\n"))
    rows = [
        ("de", url(1), "ein Topf", ""),
        ("en", url(1), 'a "pot"\nof tea', "alt"),
        ("en", url(1), "a later page", ""),
        ("en", url(2), "", "the alternative text"),
        ("fr", url(3), "une casserole", ""),
        ("en", url(99), "a picture without pixels", ""),
    ]
    wit_captions(tmp_path / table, rows)
    found, rejected = sorted_out(pictures(tmp_path))
    assert not rejected and layout_of(tmp_path) == "wit"
    assert [p.id for p in found] == [url(n) for n in (1, 2, 3, 4, 5)]
    assert [p.caption for p in found][:3] == ['a "pot" of tea', "the alternative text", ""]
    assert [p.read() for p in found] == [jpeg(n) for n in (1, 2, 3, 4, 5)]
    assert found[3].provenance["row"] == "1" and found[3].provenance["page"] == "https://p/4"
    assert captions_of(list(pictures(tmp_path, language="fr")))[url(3)] == "une casserole"


def test_wit_reports_bad_rows_and_cut_shards_and_gives_the_rest(tmp_path):
    rng = random.Random(4)
    wit_shards(tmp_path, [1])
    good = f"{url(9)}\t{base64.b64encode(jpeg(9)).decode()}\tp\n"
    bad = f"no tabs\n{url(7)}\t\tp\n\tAAAA\tp\n{url(8)}\tno base64!\tp\n"
    put(tmp_path / "part-00001.csv.gz", gzip.compress((bad + good).encode()))
    long = "".join(
        f"{url(100 + n)}\t{base64.b64encode(rng.randbytes(9000)).decode()}\n" for n in range(99)
    )
    put(tmp_path / "part-00002.csv.gz", gzip.compress(long.encode())[:300_000])
    put(tmp_path / "part-00003.csv.gz", b"version https://git-lfs.github.com/spec/v1\n")
    wit_captions(tmp_path / "a.tsv", [("en", url(9), "nine", ""), ("en",)])
    (tmp_path / "b.tsv").write_text("x\ty\n1\t2\n")
    (tmp_path / "c.tsv").write_text("")
    found, rejected = sorted_out(pictures(tmp_path))
    *bad_rows, cut, pointer = [(Path(each.file).name, each.row) for each in rejected]
    assert bad_rows == [
        ("a.tsv", 3),
        ("b.tsv", 1),
        ("c.tsv", 1),
        ("part-00001.csv.gz", 1),
        ("part-00001.csv.gz", 2),
        ("part-00001.csv.gz", 3),
    ]
    assert pointer == ("part-00003.csv.gz", 1) and "cut short" in rejected[-2].reason
    assert cut[1] == sum(p.provenance["file"].endswith("2.csv.gz") for p in found) + 1 > 10
    assert captions_of(found)[url(9)] == "nine" and captions_of(found)[url(1)] == ""
    broken = next(picture for picture in found if picture.id == url(8))
    with pytest.raises(UserError, match="part-00001.csv.gz, row 4: the picture is not base64"):
        broken.read()


def test_a_library_is_never_held_in_memory(tmp_path):
    rng = random.Random(5)
    rows = (f"{url(n)}\t{base64.b64encode(rng.randbytes(30_000)).decode()}\n" for n in range(500))
    with gzip.open(tmp_path / "part-0.csv.gz", "wt", compresslevel=1) as file:
        file.writelines(rows)
    tracemalloc.start()
    try:
        assert sum(len(picture.read()) for picture in pictures(tmp_path)) == 500 * 30_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# ---- Parquet -----------------------------------------------------------------------------------


def wit_features(rows: list[tuple[str, str | None, str | None]], as_structs: bool) -> object:
    names = ("language", "caption_reference_description", "caption_alt_text_description")
    if as_structs:
        return [dict(zip(names, row, strict=True)) for row in rows]
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


@pytest.mark.parametrize("as_structs", [True, False])
def test_wit_base_in_parquet_gives_pictures_and_captions(tmp_path, as_structs):
    features = [
        [("de", "ein Topf", None), ("en", "a pot", None)],
        [("en", None, "the alternative text"), ("fr", "un chat", None)],
        [("fr", "un chien", None)],
    ]
    table = {
        "image": [{"bytes": jpeg(n), "path": None} for n in range(3)],
        "image_url": [url(n) for n in range(3)],
        "embedding": [[0.5] * 4] * 3,
        "wit_features": [wit_features(rows, as_structs) for rows in features],
    }
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00330.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    found, rejected = sorted_out(pictures(tmp_path))
    assert not rejected and layout_of(tmp_path) == "parquet"
    assert captions_of(found) == {url(0): "a pot", url(1): "the alternative text", url(2): ""}
    assert [picture.read() for picture in found] == [jpeg(n) for n in range(3)]
    assert captions_of(list(pictures(file))) == captions_of(found)


def test_any_parquet_of_pictures_reads_and_bad_files_and_rows_are_rejected(tmp_path):
    write = pyarrow.parquet.write_table
    write(
        pyarrow.table({"jpg": [jpeg(1), b"", None], "text": ["a", "b", "c"]}),
        tmp_path / "a.parquet",
    )
    write(pyarrow.table({"image_url": ["x"], "caption": ["y"]}), tmp_path / "b.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    put(tmp_path / "c.parquet", whole[: len(whole) // 2])
    found, rejected = sorted_out(pictures(tmp_path))
    assert captions_of(found) == {"a.parquet-1": "a"} and found[0].read() == jpeg(1)
    where = [(Path(each.file).name, each.row) for each in rejected]
    assert where == [("a.parquet", 2), ("a.parquet", 3), ("b.parquet", 1), ("c.parquet", 1)]
    assert "no column of pictures" in rejected[2].reason
    assert "cut short or damaged" in rejected[3].reason
    with pytest.raises(UserError, match="have their own captions"):
        list(pictures(tmp_path, captions=tmp_path / "a.parquet"))


# ---- all of them -------------------------------------------------------------------------------


def library_of(kind: str, root: Path) -> Path:
    if kind == "coco":
        coco_release(root, "val2017", "val2017", list(range(30)))
    elif kind == "wit":
        wit_shards(root, list(range(20)), list(range(20, 30)))
    elif kind == "parquet":
        table = {"image": [jpeg(n) for n in range(30)], "id": [f"p{n}" for n in range(30)]}
        pyarrow.parquet.write_table(pyarrow.table(table), root / "p.parquet")
    else:
        for n in range(30):
            put(root / f"{n % 4}/{n}.jpg", jpeg(n))
    return root


@pytest.mark.parametrize("kind", ["coco", "wit", "parquet", "folder"])
def test_shards_are_disjoint_and_together_the_whole_in_the_same_order(tmp_path, kind):
    root = library_of(kind, tmp_path)
    whole = [picture.id for picture in pictures(root)]
    assert whole == [picture.id for picture in pictures(root, layout=kind)] and len(whole) == 30
    shards = [[p.id for p in pictures(root, shard=(index, 4))] for index in range(4)]
    assert sorted(sum(shards, [])) == sorted(whole) and all(shards)
    for part in shards:
        assert part == [name for name in whole if name in set(part)]


@pytest.mark.parametrize("kind", ["coco", "wit", "parquet", "folder"])
def test_a_picture_can_be_read_in_another_process(tmp_path, kind):
    picture = next(iter(pictures(library_of(kind, tmp_path))))
    assert images.decode(pickle.loads(pickle.dumps(picture)).read(), picture.id).size == (16, 12)


def test_what_is_no_library_is_one_error(tmp_path):
    put(tmp_path / "notes.txt", b"x")
    with pytest.raises(UserError, match="no picture found, read as layout 'folder'"):
        list(pictures(tmp_path))
    wit_captions(tmp_path / "train-00000-of-00005.tsv", [("en", url(1), "a", "")])
    with pytest.raises(UserError, match="picture addresses, no pixels"):
        list(pictures(tmp_path))
    put(tmp_path / "part.csv.gz", gzip.compress(b"a b\n")[:-9])
    with pytest.raises(UserError, match=r"layout 'wit': expected picture address.*part.csv.gz"):
        list(pictures(tmp_path))
    with pytest.raises(UserError, match="no such file or folder"):
        pictures(tmp_path / "none")
    with pytest.raises(UserError, match="no such file or folder"):
        pictures(tmp_path, captions=tmp_path / "none")
    with pytest.raises(UserError, match="not a folder"):
        pictures(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="did you mean 'coco'"):
        pictures(tmp_path, layout="cocoa")
    with pytest.raises(UserError, match="index must be from 0 to 1"):
        pictures(tmp_path, shard=(2, 2))
