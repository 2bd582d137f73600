"""Records and the plain files they are kept in."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, Rejected, accepted, read_jsonl, write_jsonl
from crossguard_jax.io import images
from crossguard_jax.io.jsonl import JsonlWriter

PNG = images.encode_png(Image.new("RGB", (3, 2), "red"))


def test_records_come_back_as_they_were_written(tmp_path):
    records = [
        Record("a", PNG, "is it hot?", "safe", "kitchen", "toy"),
        Record("b", None, "naïve \U0001f600", "unsafe", "", "toy", {"keyword": "kettle"}),
    ]
    assert write_jsonl(iter(records), tmp_path, "train") == 2
    assert list(read_jsonl(tmp_path, "train")) == records


def test_a_line_has_the_agreed_fields_and_the_picture_lies_beside_it(tmp_path):
    write_jsonl([Record("a", PNG, "t", "safe", "c", "s")], tmp_path, "test")
    row = json.loads((tmp_path / "test.jsonl").read_text())
    assert list(row) == ["id", "image", "text", "label", "category", "source"]
    assert row["image"] == "test/a.png" and (tmp_path / row["image"]).read_bytes() == PNG


def test_other_formats_are_rewritten_as_png_with_the_same_pixels(tmp_path):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    write_jsonl([Record("a", buffer.getvalue(), "t")], tmp_path, "train")
    picture = Image.open(tmp_path / "train" / "a.png")
    assert picture.format == "PNG"
    np.testing.assert_array_equal(np.asarray(picture), Image.open(buffer))


def test_any_id_is_a_file_name_of_its_own_inside_the_folder(tmp_path):
    ids = ["../../up", "a/b", "a%2Fb", "..", ".", "é", "e\u0301", "nul\0", "x" * 300, "x" * 301]
    write_jsonl([Record(name, PNG, "t") for name in ids], tmp_path / "data", "train")
    assert len(list((tmp_path / "data" / "train").iterdir())) == len(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert [record.id for record in read_jsonl(tmp_path / "data", "train")] == ids


def test_two_records_of_one_id_are_refused_and_the_older_file_stays(tmp_path):
    write_jsonl([Record("old", None, "t")], tmp_path, "train")
    with pytest.raises(UserError, match="two records are called 'a'"):
        write_jsonl([Record("a", None, "t"), Record("a", None, "u")], tmp_path, "train")
    assert [record.id for record in read_jsonl(tmp_path, "train")] == ["old"]


def test_a_damaged_split_is_an_error_that_names_the_row(tmp_path):
    write_jsonl([Record("a", None, "t")], tmp_path, "train")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"id": "b"}\n')
    with pytest.raises(UserError, match="train.jsonl, row 2: no field 'image'"):
        list(read_jsonl(tmp_path, "train"))


def test_rejected_rows_are_written_down_and_the_rest_goes_on(tmp_path):
    good, bad = Record("a", None, "t"), Rejected("rows.csv", 3, "the text is empty")
    with JsonlWriter(tmp_path / "rejected.jsonl") as writer:
        assert list(accepted([good, bad, good], writer)) == [good, good]
    assert json.loads(writer.path.read_text()) == {
        "file": "rows.csv",
        "row": 3,
        "reason": "the text is empty",
    }
