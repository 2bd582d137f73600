"""Records and the plain files they are kept in."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import LeftOut, Record, Rejected, kind, read_jsonl, write_jsonl
from crossguard_jax.io import images

PNG, OTHER = (images.encode_png(Image.new("RGB", (3, 2), c)) for c in ("red", "blue"))


def test_records_come_back_as_they_were_written(tmp_path):
    records = [
        Record("a", (PNG,), "is it hot?", "safe", "kitchen", "toy"),
        Record("pair", (OTHER, PNG), "", "safe"),
        Record("b", (), "naïve \U0001f600", "unsafe", "", "toy", {"keyword": "kettle"}),
    ]
    assert write_jsonl(iter(records), tmp_path, "train") == len(records)
    assert list(read_jsonl(tmp_path, "train")) == records


def test_a_line_has_the_agreed_fields_and_the_picture_lies_beside_it(tmp_path):
    write_jsonl([Record("a", (PNG,), "t", "safe", "c", "s")], tmp_path, "test")
    row = json.loads((tmp_path / "test.jsonl").read_text())
    assert list(row) == ["id", "image", "text", "label", "category", "source"]
    assert row["image"] == "test/a.png" and (tmp_path / row["image"]).read_bytes() == PNG


def test_other_formats_keep_their_bytes_and_their_ending(tmp_path):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    write_jsonl([Record("a", (buffer.getvalue(),), "t")], tmp_path, "train")
    assert (tmp_path / "train" / "a.jpg").read_bytes() == buffer.getvalue()
    assert next(read_jsonl(tmp_path, "train")).images == (buffer.getvalue(),)


def test_any_id_is_a_file_name_of_its_own_inside_the_folder(tmp_path):
    ids = ["../../up", "a/b", "a%2Fb", "..", ".", "é", "e\u0301", "nul\0", "x" * 300, "x" * 301]
    write_jsonl([Record(name, (PNG,), "t") for name in ids], tmp_path / "data", "train")
    assert len(list((tmp_path / "data" / "train").iterdir())) == len(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert [record.id for record in read_jsonl(tmp_path / "data", "train")] == ids


def test_a_table_that_says_the_same_is_left_as_it_is(tmp_path):
    table = tmp_path / "train.jsonl"
    write_jsonl([Record("a", (PNG,), "t")], tmp_path, "train")
    os.utime(table, ns=(1, 1))
    write_jsonl([Record("a", (PNG,), "t")], tmp_path, "train")
    assert table.stat().st_mtime_ns == 1
    write_jsonl([Record("a", (PNG,), "u")], tmp_path, "train")
    assert table.stat().st_mtime_ns != 1
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_two_records_of_one_id_are_refused_and_the_older_file_stays(tmp_path):
    write_jsonl([Record("old", (), "t")], tmp_path, "train")
    with pytest.raises(UserError, match="two records are called 'a'"):
        write_jsonl([Record("a", (), "t"), Record("a", (), "u")], tmp_path, "train")
    assert [record.id for record in read_jsonl(tmp_path, "train")] == ["old"]


def test_a_damaged_split_is_an_error_that_names_the_row(tmp_path):
    write_jsonl([Record("a", (), "t")], tmp_path, "train")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"id": "b"}\n')
    with pytest.raises(UserError, match="train.jsonl, row 2: no field 'image'"):
        list(read_jsonl(tmp_path, "train"))


def test_a_kill_leaves_no_older_table_beside_another_rows_pictures(tmp_path):
    def killed():
        yield Record("a", (OTHER,), "new")
        raise KeyboardInterrupt

    write_jsonl([Record("a", (PNG,), "old")], tmp_path, "train")
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(killed(), tmp_path, "train")
    assert not (tmp_path / "train.jsonl").exists()
    write_jsonl([Record("a", (OTHER,), "new")], tmp_path, "train")
    # The same pictures again: nothing is wrong with the table that is there.
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(killed(), tmp_path, "train")
    assert [record.text for record in read_jsonl(tmp_path, "train")] == ["new"]


def test_rows_that_are_left_out_are_written_down_and_counted_and_the_rest_goes_on(tmp_path):
    rows = [Record(id, (), "t", source="s", provenance={"row": "4"}) for id in "aba"]
    bad = [Rejected("rows.csv", n, f"p{n}.png: the picture does not exist; x") for n in (3, 9)]
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        assert list(left_out.lines()) == []
        assert list(left_out.accepted([rows[0], bad[0], *rows[1:], *bad])) == rows[:2]
        # An id is a name within its group alone, and a row is left out once for one reason.
        assert list(left_out.accepted([rows[0], bad[1]], lambda row: "other")) == [rows[0]]
    twice = ("s", "an earlier row has the same id")
    assert left_out.counts == {("rows.csv", "the picture does not exist"): 2, twice: 1}
    assert list(left_out.lines()) == [
        f"3 rows were left out, each with its reason in {tmp_path / 'rejected.jsonl'}",
        "  2 of rows.csv: the picture does not exist",
        "  1 of s: an earlier row has the same id",
    ]
    lines = [json.loads(line) for line in left_out.path.read_text().splitlines()]
    assert [(line["file"], line["row"]) for line in lines] == [
        ("rows.csv", 3),
        ("s", 4),
        ("rows.csv", 9),
    ]
    again = LeftOut(left_out.path, keep=True)
    assert again.counts == left_out.counts
    assert LeftOut(left_out.path).total == 0


def test_a_reason_is_one_short_line_whatever_the_row_holds(tmp_path):
    reason = Rejected("f", 1, f"label {'x' * 10**6!r}\nis none of ours").reason
    assert len(reason) <= 400 and "\n" not in reason
    assert reason.startswith("label 'xxx") and reason.endswith("is none of ours")


def test_reasons_are_counted_by_their_kind():
    alike = {
        "a/b-17.png: the picture does not exist; correct the path": "the picture does not exist",
        "the picture: the PNG data is damaged or cut short (x: y); replace": (
            "the PNG data is damaged or cut short"
        ),
        "1,204 tokens with the prompt and its picture, the limit is 160; shorten": (
            "N tokens with the prompt and its picture, the limit is N"
        ),
        "not JSON (Expecting value: line 1 column 3 (char 2))": "not JSON",
        "no field 'image' (there are id, text)": "no field 'image'",
    }
    assert {reason: kind(reason) for reason in alike} == alike
