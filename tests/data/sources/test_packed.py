"""Files that hold their pictures are read as a table of the same rows is."""

import base64
import csv
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.builders import write_dataset
from crossguard_jax.data.records import Record, Rejected

ROWS = 7


def picture(shade: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, shade, 0)).save(buffer, kind)
    return buffer.getvalue()


def records() -> list[Record]:
    """Every third is of text alone; the last one has two pictures."""
    shown = [(picture(20 * i),) if i % 3 else () for i in range(ROWS - 1)]
    shown.append((picture(200), picture(90, "PNG")))
    return [
        Record(f"r{i}", images, f"what is the {i} ?", ("safe", "unsafe")[i % 2])
        for i, images in enumerate(shown)
    ]


def url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def as_jsonl(folder: Path) -> Path:
    rows = [
        {"id": r.id, "image": [*map(url, r.images)], "text": r.text, "label": r.label}
        for r in records()
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "image", "text", "label"))
        for r in records()[:-1]:  # it has room for one picture
            writer.writerow((r.id, url(r.images[0]) if r.images else "", r.text, r.label))
    return path


def as_parquet(folder: Path, wrap: Callable[[bytes], object] = bytes) -> Path:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"id": r.id, "image": [*map(wrap, r.images)], "text": r.text, "label": r.label}
        for r in records()
    ]
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def as_hub_parquet(folder: Path) -> Path:
    return as_parquet(folder, lambda data: {"bytes": data, "path": "a.jpg"})


def as_array_record(folder: Path) -> Path:
    write_dataset({"train": records()}, folder, "rows")
    (path,) = folder.glob("crossguard/rows/*/*.array_record*")
    return path


def as_tar(folder: Path, kind: str = "") -> Path:
    path = folder / f"rows.tar{kind and '.' + kind}"
    with tarfile.open(path, f"w:{kind}") as archive:
        for r in records():
            names = ("jpg", "1.png") if len(r.images) > 1 else ("jpg",)
            files = dict(zip(names, r.images, strict=False))
            files |= {"txt": r.text.encode(), "cls": r.label.encode()}
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{r.id}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def as_packed_tar(folder: Path) -> Path:
    return as_tar(folder, "gz")


BINARY = [as_parquet, as_hub_parquet, as_array_record, as_tar, as_packed_tar]
KINDS = [as_jsonl, as_csv, *BINARY]


def facts(record: Record | Rejected) -> object:
    if isinstance(record, Rejected):
        return record.reason
    return record.id, record.images, record.text, record.label


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_file_gives_the_same_records(tmp_path, write) -> None:
    read = [*map(facts, sources.read("table", write(tmp_path)))]
    assert read == [*map(facts, records())][: ROWS - (write is as_csv)]


@pytest.mark.parametrize("write", KINDS)
def test_rows_from_one_to_another_are_the_same_as_of_all(tmp_path, write) -> None:
    path = write(tmp_path)
    every = [*sources.read("table", path)]
    numbers = [int(record.provenance["row"]) for record in every]
    some = [*sources.read("table", path, rows=(numbers[2], numbers[4]))]
    assert some == every[2:5]
    # The last one alone, as a report reads it again.
    assert [*sources.read("table", path, rows=(numbers[-1],) * 2)] == every[-1:]


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("where", ["across", "behind"])
def test_rows_that_end_behind_the_last_one_are_refused(tmp_path, write, where) -> None:
    path = write(tmp_path)
    n = int([*sources.read("table", path)][-1].provenance["row"])
    rows = (n - 1 if where == "across" else n + 3, n + 4)
    mend = r'ends (at|before) row \d+; correct "rows" in the manifest'
    with pytest.raises(UserError, match=rf"{path.name}: rows \[\d+, {n + 4}\]: the file {mend}"):
        [*sources.read("table", path, rows=rows)]


@pytest.mark.parametrize("first", [2, 100])
def test_rows_that_were_lost_with_the_end_of_a_file_are_no_fault_of_the_manifests(
    tmp_path, first
) -> None:
    path = as_tar(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    *_, last = sources.read("table", path, rows=(first, 200))
    assert isinstance(last, Rejected) and "cut short or damaged" in last.reason


@pytest.mark.parametrize(
    "text", ['text,image\nwhat,\n"is\nthis",\n', '{"text": "a", "image": null}\n\n']
)
def test_the_last_line_is_the_last_row_of_a_file_of_lines(tmp_path, text) -> None:
    path = tmp_path / ("rows.jsonl" if text[0] == "{" else "rows.csv")
    path.write_text(text)
    n = text.count("\n")
    assert [*sources.read("table", path, rows=(1, n))] == [*sources.read("table", path)]
    with pytest.raises(UserError, match=f"ends at row {n};"):
        [*sources.read("table", path, rows=(1, n + 1))]


@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.parametrize("write", BINARY)
def test_a_file_that_was_cut_short_says_so(tmp_path, write, share) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    try:
        *rows, last = sources.read("table", path)
    except UserError as error:
        assert ": cannot be read (" in str(error)
    else:
        assert isinstance(last, Rejected) and "cut short or damaged" in last.reason
        assert [*map(facts, rows)] == [*map(facts, records())][: len(rows)]


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "its first half": lambda path: path.write_bytes(path.read_bytes()[: 2**16]),
    "all but its end": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "a text": lambda path: path.write_text('{"text": "a"}\n' * 9_000),
}


@pytest.mark.parametrize("name", ["r.array_record", "r.arrayrecord"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_array_record_is_refused_in_a_line_with_its_name_and_why(
    tmp_path, name, broken
) -> None:
    path = as_array_record(tmp_path).rename(tmp_path / name)
    BROKEN[broken](path)
    with pytest.raises(UserError) as error:
        [*sources.read("table", path)]
    why = re.fullmatch(
        rf"\S*{name}: cannot be read \((.+)\); correct the path or write it again", str(error.value)
    )
    assert why and why[1] != "RuntimeError"


@pytest.mark.parametrize("name", ["none.parquet", "none.tar", "none.tar.gz"])
def test_a_file_that_is_not_there_is_refused(tmp_path, name) -> None:
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        [*sources.read("table", tmp_path / name)]


def test_features_that_are_none_are_refused_by_their_file(tmp_path) -> None:
    path = as_array_record(tmp_path)
    (path.parent / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"features\.json: not TFDS's .*; write the data set again"):
        [*sources.read("table", path)]


def test_a_bad_sample_of_a_tar_is_one_bad_row(tmp_path) -> None:
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.json", b"{"), ("b.txt", b"\xff"), ("c.md", b"x"), ("d.txt", b"ok")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    a, b, c, d = sources.read("table", path)
    assert [isinstance(row, Rejected) for row in (a, b, c, d)] == [True, True, True, False]
    assert "a.json: not JSON" in a.reason and "field 'text'" in c.reason
