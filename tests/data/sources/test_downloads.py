"""Published sets, whole and damaged, through every reader: what is read, and what is said."""

import json
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected, kind
from crossguard_jax.data.sources.beavertails import CATEGORIES
from crossguard_jax.data.sources.catalogue import CATALOGUE, refuse_training
from crossguard_jax.data.sources.reading import SourceRows, row_name
from crossguard_jax.io.files import noting, unchanged
from crossguard_jax.systems.arguments import FORMATS
from tests.downloads import DOWNLOADS, Download, encoded, mm_safetybench_mirror, put, put_csv

every = pytest.mark.parametrize("name", DOWNLOADS)
pictured = pytest.mark.parametrize("name", [n for n, each in DOWNLOADS.items() if each.pictures])
BOM = b"\xef\xbb\xbf"


def made(root: Path, name: str, n: int = 4) -> Download:
    download = DOWNLOADS[name]
    download.write(root, n)
    return download


def read(
    download: Download, path: Path, **options: object
) -> tuple[list[Record], list[Rejected], SourceRows]:
    rows = sources.read(download.reader, path, **download.options, **options)
    items = list(rows)
    return (
        [item for item in items if isinstance(item, Record)],
        [item for item in items if isinstance(item, Rejected)],
        rows,
    )


def told(rows: SourceRows) -> str:
    return "\n".join(rows.lines())


def contents(records: list[Record]) -> list[tuple]:
    """What records are, wherever they lie."""
    return [(r.id, r.images, r.text, r.label, r.category) for r in records]


# ---- wherever it lies --------------------------------------------------------------------------


@every
def test_every_row_of_a_download_is_a_record_that_says_where_it_is_from(
    tmp_path: Path, name: str
) -> None:
    download = made(tmp_path, name)
    records, rejected, rows = read(download, tmp_path)
    assert not rejected and len(records) == download.records
    assert len({record.id for record in records}) == len(records)
    assert {record.source for record in records} == {download.reader}
    assert all(record.id.startswith(f"{download.reader}-") for record in records)
    assert all(bool(record.images) == bool(download.pictures) for record in records)
    for record in records:
        assert Path(record.provenance["file"]).is_file() and int(record.provenance["row"]) > 0
    assert f"licence: {CATALOGUE[download.reader].licence}" in told(rows)


def zipped(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return path


def tarred(root: Path) -> Path:
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
    return path


def in_a_folder(root: Path) -> Path:
    """The archive of a folder, which has the folder itself in it."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return path


def held(path: Path) -> Path:
    """A folder with nothing but an archive in it."""
    folder = path.parent / "holds"
    folder.mkdir()
    path.rename(folder / path.name)
    return folder


WHERE: dict[str, Callable[[Path, Download], Path]] = {
    "a level down": lambda root, download: root.parent,
    "a level up": lambda root, download: root / download.table.partition("/")[0],
    "the table itself": lambda root, download: root / download.table,
    "a zip": lambda root, download: zipped(root),
    "a tar": lambda root, download: tarred(root),
    "a zip with the folder in it": lambda root, download: in_a_folder(root),
    "a folder with a zip": lambda root, download: held(zipped(root)),
    "a folder with a zip with the folder": lambda root, download: held(in_a_folder(root)),
}


@every
@pytest.mark.parametrize("where", WHERE)
def test_a_download_is_read_the_same_wherever_it_lies(
    tmp_path: Path, name: str, where: str
) -> None:
    root = tmp_path / "set"
    download = made(root, name)
    expected, _, _ = read(download, root)
    path = WHERE[where](root, download)
    if not path.is_relative_to(root) and path != root.parent:
        shutil.rmtree(root)
    records, rejected, rows = read(download, path)
    assert not rejected and contents(records) == contents(expected)


@pictured
@pytest.mark.parametrize("pack", [zipped, tarred, in_a_folder])
def test_pictures_are_read_from_the_archive_that_they_came_in(
    tmp_path: Path, name: str, pack: Callable[[Path], Path]
) -> None:
    download = made(tmp_path, name)
    expected, _, _ = read(download, tmp_path)
    pictures = tmp_path / download.pictures
    pack(pictures)
    shutil.rmtree(pictures)
    records, rejected, _ = read(download, tmp_path)
    assert not rejected and contents(records) == contents(expected)


def test_two_downloads_side_by_side_are_not_chosen_between(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        download = made(tmp_path / folder, "siuo")
    with pytest.raises(UserError, match="one and two both look like SIUO; give one of them"):
        read(download, tmp_path)


def test_a_changed_archive_is_another_source(tmp_path: Path) -> None:
    download = made(tmp_path / "set", "siuo")
    path = zipped(tmp_path / "set")
    with noting() as stamps:
        before, _, _ = read(download, path)
    assert unchanged(stamps)
    put(tmp_path / "set" / "images" / "S-01.png", encoded(77))
    zipped(tmp_path / "set")
    assert not unchanged(stamps)
    after, _, _ = read(download, path)
    assert contents(before)[1] != contents(after)[1]
    assert contents(before)[0] == contents(after)[0]


# ---- damaged -----------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> str:
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


@every
def test_a_wrong_folder_is_one_line_that_says_what_was_looked_for(
    tmp_path: Path, name: str
) -> None:
    download = DOWNLOADS[name]
    (tmp_path / "wrong").mkdir()
    put(tmp_path / "wrong" / "notes.txt", "nothing")
    with pytest.raises(UserError) as error:
        read(download, tmp_path / "wrong")
    message = one_line(error, tmp_path / "wrong")
    assert CATALOGUE[download.reader].title.split()[0] in message
    with pytest.raises(UserError) as error:
        read(download, tmp_path / "none")
    one_line(error, tmp_path / "none")


@pytest.mark.parametrize("name", [each for each in DOWNLOADS if each != "beavertails"])
def test_a_renamed_table_is_named(tmp_path: Path, name: str) -> None:
    download = made(tmp_path, name)
    file = tmp_path / download.table
    other = file.with_stem(f"{file.stem} (1)")
    file.rename(other)
    with pytest.raises(UserError) as error:
        read(download, tmp_path)
    message = one_line(error, tmp_path)
    if file.parent == tmp_path:
        assert f"{other.name} is, so name it {file.name}, or give that file itself" in message
    if download.reader not in ("mm_safetybench", "mossbench"):  # one file of several
        records, rejected, _ = read(download, other)
        assert len(records) == download.records and not rejected


def lengthened(file: Path) -> None:
    """Another field in each row."""
    if file.suffix == ".csv":
        header, *rest = file.read_bytes().split(b"\n", 1)
        end = b"\r" if header.endswith(b"\r") else b""
        rows = re.sub(rb'(?<=[^\r\n"])(\r?\n)(?=\d|ForbidQI)', rb",more\1", rest[0].rstrip())
        rows += b",more" + end + b"\n"
        file.write_bytes(header.rstrip() + b",extra" + end + b"\n" + rows)
        return
    if file.suffix == ".jsonl":
        rows = [json.loads(line) | {"extra": 1} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    text = re.sub(
        r'(?m)^( {1,3}(?:"\w+": )?)\{$', r'\1{"extra": [1, {"a": null}],', file.read_text()
    )
    json.loads(text)
    file.write_text(text)


def marked(file: Path) -> None:
    file.write_bytes(BOM + file.read_bytes())


def with_carriage_returns(file: Path) -> None:
    file.write_bytes(re.sub(rb"\r?\n", rb"\r\n", file.read_bytes()))


HARMLESS = {"extra": lengthened, "BOM": marked, "CRLF": with_carriage_returns}


@every
@pytest.mark.parametrize("change", HARMLESS)
def test_an_extra_field_a_mark_and_other_line_ends_change_nothing(
    tmp_path: Path, name: str, change: str
) -> None:
    download = made(tmp_path, name)
    expected, _, _ = read(download, tmp_path)
    file = tmp_path / download.table
    before = file.read_bytes()
    HARMLESS[change](file)
    assert file.read_bytes() != before or (change == "CRLF" and b"\r\n" in before)
    records, rejected, _ = read(download, tmp_path)
    assert not rejected
    # A text of several lines keeps the line ends of its file.
    plain = [(*c[:2], c[2].replace("\r\n", "\n"), *c[3:]) for c in contents(records)]
    assert plain == contents(expected)


@every
def test_of_half_a_table_what_arrived_is_read_and_the_rest_is_missed(
    tmp_path: Path, name: str
) -> None:
    download = made(tmp_path, name, 9)
    expected, _, _ = read(download, tmp_path)
    file = tmp_path / download.table
    data = file.read_bytes()
    # Of MSSBench's one file the first half are the rows that are read.
    file.write_bytes(data[: len(data) // (3 if name == "mssbench" else 2)])
    records, rejected, rows = read(download, tmp_path)
    assert 0 < len(records) < len(expected)
    ids = {record.id: record for record in expected}
    assert all(record == ids[record.id] for record in records if record.text == ids[record.id].text)
    # A text that is cut off within its lines costs each of those that arrived.
    assert len(rejected) <= 2 and all("\n" not in row.reason for row in rejected)
    if file.suffix == ".json":
        assert "cut short or damaged here" in rejected[0].reason
    published = CATALOGUE[download.reader].rows.get(download.split)
    assert published is None or f"rows where {published:,} are published" in told(rows)


@every
def test_a_table_that_is_no_table_is_one_line(tmp_path: Path, name: str) -> None:
    download = made(tmp_path, name)
    file = tmp_path / download.table
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    try:
        records, rejected, rows = read(download, tmp_path)
    except UserError as error:
        assert file.name in str(error) and "\n" not in str(error)
        return
    assert rejected and all(str(file) == row.file for row in rejected)
    assert not [record for record in records if record.provenance["file"] == str(file)]


@every
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_that_is_cut_short_is_one_line(
    tmp_path: Path, name: str, pack: Callable[[Path], Path]
) -> None:
    download = made(tmp_path / "set", name)
    path = pack(tmp_path / "set")
    data = path.read_bytes().rstrip(b"\0")  # a tar ends with thousands
    path.write_bytes(data[: len(data) // 2 - 7])
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(UserError, match="cut short or damaged .*; download it again"):
        read(download, path)


def test_an_archive_that_must_be_unpacked_says_so(tmp_path: Path) -> None:
    put(tmp_path / "SIUO.tar.gz", b"\x1f\x8b")
    with pytest.raises(UserError, match="unpack it and give the folder"):
        read(DOWNLOADS["siuo"], tmp_path / "SIUO.tar.gz")


def test_a_member_that_is_damaged_costs_its_row(tmp_path: Path) -> None:
    download = made(tmp_path / "set", "siuo")
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_STORED) as archive:
        for file in sorted((tmp_path / "set").rglob("*")):
            archive.write(file, file.relative_to(tmp_path / "set"))
    data = (tmp_path / "set.zip").read_bytes()
    picture = (tmp_path / "set" / "images" / "S-02.png").read_bytes()
    at = data.index(picture)
    (tmp_path / "set.zip").write_bytes(data[: at + 20] + b"\xff\xff" + data[at + 22 :])
    records, rejected, _ = read(download, tmp_path / "set.zip", check_pictures=False)
    assert len(records) == 3 and "damaged in its archive" in rejected[0].reason


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png"])
def test_an_archive_has_nothing_outside_itself(tmp_path: Path, name: str) -> None:
    download = made(tmp_path / "set", "siuo")
    put(tmp_path / "outside.png", encoded(1))
    rows = json.loads((tmp_path / "set" / "siuo_gen.json").read_text())
    rows[1]["image"] = f"../{name}"
    (tmp_path / "set" / "siuo_gen.json").write_text(json.dumps(rows))
    with zipfile.ZipFile(zipped(tmp_path / "set"), "a") as archive:
        archive.writestr(name, encoded(2))
    records, rejected, _ = read(download, tmp_path / "set.zip")
    assert len(records) == 3 and kind(rejected[0].reason) == "the picture does not exist"


# ---- counts and pictures -----------------------------------------------------------------------


@pictured
def test_a_missing_picture_is_counted_and_out_of_the_denominator_or_in_it(
    tmp_path: Path, name: str
) -> None:
    download = made(tmp_path, name)
    whole, _, _ = read(download, tmp_path)
    gone = whole[-1].images[-1]
    lost = [record for record in whole if gone in record.images]
    for file in (tmp_path / download.pictures).rglob("*.*"):
        if file.read_bytes() == gone:
            file.unlink()
    records, rejected, rows = read(download, tmp_path)
    lost_rows = {(r.provenance["file"], int(r.provenance["row"])) for r in lost}
    assert {(row.file, row.row) for row in rejected} == lost_rows
    assert len(records) == len(whole) - len(lost)
    assert re.search(r"rows? ha(s|ve) no picture and stays? out of the denominator", told(rows))

    records, rejected, rows = read(download, tmp_path, missing_pictures="in")
    assert [r.id for r in records] == [r.id for r in whole] and not rejected
    kept = [record for record in records if record.provenance.get("missing_pictures")]
    assert [record.id for record in kept] == [record.id for record in lost]
    assert all(gone not in record.images for record in records)
    assert "in the denominator" in told(rows) and "out of" not in told(rows)
    with pytest.raises(UserError, match="missing_pictures='drop' is none of out, in"):
        read(download, tmp_path, missing_pictures="drop")


@pictured
def test_a_download_without_any_picture_is_read_only_where_that_is_asked_for(
    tmp_path: Path, name: str
) -> None:
    download = made(tmp_path, name)
    shutil.rmtree(tmp_path / download.pictures)
    if download.reader in ("vlsbench", "vlguard", "jailbreakv", "mossbench"):  # paths, not names
        records, rejected, rows = read(download, tmp_path)
        assert not records and rows.missing[0] == len(rejected) > 0
    else:
        with pytest.raises(UserError, match="no picture folder .*; unpack the pictures"):
            read(download, tmp_path)
    records, rejected, _ = read(download, tmp_path, missing_pictures="in")
    assert len(records) == download.records and not any(record.images for record in records)


# Rows in the table and records by subset.
WHOLE = {
    ("siuo", ""): (167, {"": 167}),
    ("xstest", ""): (450, {"": 450}),
    ("figstep, tiny", "tiny"): (5, {"": 50}),
    ("mossbench", "all"): (300, {"": 544}),
    ("jailbreakv", "mini"): (560, {"": 280}),
    ("mm_vet", "v1"): (218, {"v1": 218}),
}


@pytest.mark.parametrize(("name", "split"), WHOLE)
def test_a_whole_download_has_the_published_counts_and_one_with_a_row_less_says_so(
    tmp_path: Path, name: str, split: str
) -> None:
    n, subsets = WHOLE[name, split]
    download = made(tmp_path / "whole", name, n)
    options = {"split": split} if split else {}
    checked = {"check_pictures": False} if download.pictures else {}

    def counted(root: Path) -> SourceRows:
        rows = sources.read(download.reader, root, **options, **checked)
        assert all(isinstance(row, Record) for row in rows)
        return rows

    rows = counted(tmp_path / "whole")
    assert dict(rows.records) == subsets
    assert len(told(rows).splitlines()) == 1 and "published" not in told(rows)
    made(tmp_path / "less", name, n - 2)
    less = told(counted(tmp_path / "less"))
    published = CATALOGUE[download.reader].rows[split]
    assert f"rows where {published:,} are published" in less and len(less.splitlines()) == 2


def test_a_reading_that_stops_early_says_nothing_of_counts(tmp_path: Path) -> None:
    download = made(tmp_path, "siuo")
    rows = sources.read(download.reader, tmp_path)
    next(rows)
    assert "1 records read" in told(rows) and "published" not in told(rows)


def test_vlguards_subsets_have_their_own_denominators(tmp_path: Path) -> None:
    download = made(tmp_path, "vlguard")
    _, _, rows = read(download, tmp_path)
    assert dict(rows.records) == {"safe_safes": 2, "safe_unsafes": 2, "unsafes": 2}
    assert "4 rows where 1,000 are published" in told(rows)
    assert "2 of the 442 records of 'unsafes'" in told(rows)
    assert len(told(rows).splitlines()) == 2


def test_a_whole_download_with_a_row_of_no_use_is_not_called_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = made(tmp_path, "vlguard")
    counts = {"rows": {"test": 4}, "subsets": {"test": dict.fromkeys(("unsafes",), 2)}}
    monkeypatch.setitem(CATALOGUE, "vlguard", replace(CATALOGUE["vlguard"], **counts))
    assert len(told(read(download, tmp_path)[2]).splitlines()) == 1
    file = tmp_path / download.table
    text = file.read_text(encoding="utf-8-sig")
    rows = json.loads(text)
    entry = next(e for r in rows for e in r["instr-resp"] if "instruction" in e)
    entry["instruction"] = ""
    file.write_text(json.dumps(rows))
    _, rejected, reading = read(download, tmp_path)
    assert len(rejected) == 1 and "is empty" in rejected[0].reason
    line = "1 of the 2 records of 'unsafes': the others are among the rows that cannot be used"
    assert line in told(reading)
    file.write_text(json.dumps(rows[:-1]))
    assert "part of it is not there" in told(read(download, tmp_path)[2])


@pictured
def test_an_empty_picture_counts_as_one_that_is_not_there(tmp_path: Path, name: str) -> None:
    download = made(tmp_path, name)
    whole, _, _ = read(download, tmp_path)
    gone = whole[-1].images[-1]
    for file in (tmp_path / download.pictures).rglob("*.*"):
        if file.read_bytes() == gone:
            file.write_bytes(b"")
    _, rejected, rows = read(download, tmp_path)
    assert {kind(row.reason) for row in rejected} == {"the picture file is empty"}
    assert re.search(r"rows? ha(s|ve) no picture and stays? out of the denominator", told(rows))
    records, rejected, _ = read(download, tmp_path, missing_pictures="in")
    assert [r.id for r in records] == [r.id for r in whole] and not rejected


# ---- each set's own ----------------------------------------------------------------------------


def by_id(name: str, root: Path, n: int = 4, **options: object) -> dict[str, Record]:
    download = made(root, name, n)
    given = {"split": download.split} if download.split else {}
    rows = sources.read(download.reader, root, **(given | options))
    return {row.id: row for row in rows if isinstance(row, Record)}


def test_siuo_keeps_what_its_judge_is_shown(tmp_path: Path) -> None:
    record = by_id("siuo", tmp_path)["siuo-1002"]
    assert (record.label, record.category) == ("unsafe", "dangerous behavior")
    assert record.provenance["safety_warning"] == "The cup holds cleaner."
    assert record.images == (encoded(1),)


def test_vlsbench_keeps_the_row_that_asks_nothing(tmp_path: Path) -> None:
    records = by_id("vlsbench", tmp_path)
    assert records["vlsbench-1"].text == "" and records["vlsbench-1"].images
    assert records["vlsbench-0"].images == records["vlsbench-1"].images


def test_holisafes_default_is_the_slice_of_danger_by_combination(tmp_path: Path) -> None:
    rows = by_id("holisafe", tmp_path, 10)
    slice_ = list(sources.read("holisafe", tmp_path))
    assert [r.id for r in slice_] == ["holisafe-10", "holisafe-15"]
    assert {r.label for r in slice_} == {"unsafe"}
    assert Counter((r.provenance["subset"], r.label) for r in rows.values()) == {
        ("SSU", "unsafe"): 2,
        ("SSS", "safe"): 2,
        ("SUU", "unsafe"): 2,
        ("USU", "unsafe"): 2,
        ("UUU", "unsafe"): 2,
    }
    with pytest.raises(UserError, match="no split 'SS'; choose one of SSU"):
        sources.read("holisafe", tmp_path, split="SS")


def test_mm_safetybench_has_three_pictures_to_a_question_each_with_its_text(
    tmp_path: Path,
) -> None:
    records = by_id("mm_safetybench", tmp_path, 2, split="all")
    assert len(records) == 13 * 2 * 3
    name = "mm_safetybench-01-Illegal_Activitiy-1"
    sd, both, typo = (records[f"{name}-{kind}"] for kind in ("SD", "SD_TYPO", "TYPO"))
    assert sd.text.startswith("explain the thing in the picture")
    assert both.text == typo.text and both.text.startswith("the picture shows a phrase")
    assert {r.provenance["group"] for r in (sd, both, typo)} == {name}
    assert len({sd.images, both.images, typo.images}) == 3
    tiny = list(sources.read("mm_safetybench", tmp_path, split="tiny_TYPO"))
    assert [r.id for r in tiny] == [i for i in records if i.endswith("-0-TYPO")]


@pytest.mark.parametrize("struct", [True, False])
def test_mm_safetybenchs_mirror_has_the_same_records(tmp_path: Path, struct: bool) -> None:
    published = by_id("mm_safetybench", tmp_path / "published", 2, split="all")
    mm_safetybench_mirror(tmp_path / "mirror", 2, struct)
    shutil.rmtree(tmp_path / "mirror" / "unused")
    for split in ("all", "tiny", "SD"):
        rows = {r.id: r for r in sources.read("mm_safetybench", tmp_path / "mirror", split=split)}
        expected = sources.read("mm_safetybench", tmp_path / "published", split=split)
        assert sorted(contents(list(rows.values()))) == sorted(contents(list(expected)))
    assert rows.keys() == {name for name in published if name.endswith("-SD")}
    (tmp_path / "mirror" / "data" / "Fraud" / "SD.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="SD.parquet: cannot be read .*Parquet"):
        list(sources.read("mm_safetybench", tmp_path / "mirror", split="SD"))


def test_mm_safetybenchs_pictures_may_lie_in_the_folder_that_they_are_shared_in(
    tmp_path: Path,
) -> None:
    expected = by_id("mm_safetybench", tmp_path, 1, split="all")
    (tmp_path / "data" / "imgs").rename(tmp_path / "MM-SafetyBench(imgs)")
    rows = list(sources.read("mm_safetybench", tmp_path))
    assert rows == list(expected.values())
    (tmp_path / "data" / "processed_questions" / "06-Fraud.json").unlink()
    with pytest.raises(UserError, match="06-Fraud.json: no such scenario, of 13"):
        list(sources.read("mm_safetybench", tmp_path))


def test_figsteps_small_set_has_the_ids_of_the_large_one_and_other_pictures(
    tmp_path: Path,
) -> None:
    tiny, whole = by_id("figstep, tiny", tmp_path), by_id("figstep", tmp_path)
    assert tiny.keys() == whole.keys() and tiny["figstep-3-2"].text == whole["figstep-3-2"].text
    assert all(tiny[name].images != whole[name].images for name in tiny)
    assert tiny["figstep-3-1"].provenance["split"] == "train"


@pytest.mark.parametrize("old", [False, True])
def test_jailbreakvs_small_set_is_a_file_or_the_marked_rows_of_the_large_one(
    tmp_path: Path, old: bool
) -> None:
    records = by_id("jailbreakv", tmp_path, 8, split="mini")
    assert list(records) == [f"jailbreakv-mini-{i}" for i in range(4)]
    first = records["jailbreakv-mini-0"]
    assert first.text.count("\n") == 1 and "—" in first.text and first.label == "unsafe"
    assert first.provenance["group"] == records["jailbreakv-mini-3"].provenance["group"]
    mini = tmp_path / "JailBreakV_28K" / "mini_JailBreakV_28K.csv"
    if old:
        mini.rename(mini.with_name("sample.csv"))
    else:
        mini.unlink()
    rows = list(sources.read("jailbreakv", tmp_path, split="mini"))
    assert contents(rows) == contents(list(records.values()))


def test_xstests_twins_are_those_at_the_same_place_of_their_types(tmp_path: Path) -> None:
    records = by_id("xstest", tmp_path, 450)
    assert Counter(r.label for r in records.values()) == {"safe": 250, "unsafe": 200}
    pairs = Counter(r.provenance["pair"] for r in records.values() if "pair" in r.provenance)
    assert len(pairs) == 200 and set(pairs.values()) == {2}
    for pair in pairs:
        twins = [r for r in records.values() if r.provenance.get("pair") == pair]
        assert {r.label for r in twins} == {"safe", "unsafe"}
    single = {r.category for r in records.values() if "pair" not in r.provenance}
    assert single == {"nons_group_real_discr", "privacy_public"}
    assert records["xstest-2"].provenance["pair"] == records["xstest-27"].provenance["pair"]


def test_an_older_xstest_without_labels_is_the_same(tmp_path: Path) -> None:
    records = by_id("xstest", tmp_path, 60)
    rows = [
        {"id": f"v2-{name.removeprefix('xstest-')}", "prompt": r.text, "type": r.category}
        for name, r in records.items()
    ]
    put_csv(tmp_path / "old" / "xstest_v2_prompts.csv", rows)
    old = list(sources.read("xstest", tmp_path / "old"))
    assert contents(old) == contents(list(records.values()))
    assert [r.provenance["pair"] for r in old] == [r.provenance["pair"] for r in records.values()]


def test_mossbenchs_contrasts_are_the_twins_of_their_numbers(tmp_path: Path) -> None:
    records = by_id("mossbench", tmp_path, 8, split="all")
    assert Counter(r.label for r in records.values()) == {"safe": 8, "unsafe": 6}
    twins = [records[f"mossbench-2{end}"] for end in ("", "-contrast")]
    assert {r.provenance["pair"] for r in twins} == {"mossbench-2"}
    assert twins[0].text == twins[1].text and twins[0].images != twins[1].images
    assert {r.provenance["same"] for r in twins} == {"question"}
    assert "same" not in records["mossbench-3"].provenance
    assert "pair" not in records["mossbench-8"].provenance, "it has no contrast"
    assert twins[0].images[0].startswith(b"RIFF"), "a WebP that is named .png"
    seeded = list(sources.read("mossbench", tmp_path, seed=0))
    assert {r.label for r in seeded[:6]} == {"safe", "unsafe"}, "both are drawn from together"
    shutil.rmtree(tmp_path / "data_contrast")
    safe = list(sources.read("mossbench", tmp_path, split="safe"))
    assert len(safe) == 8 and not any("pair" in r.provenance for r in safe)
    with pytest.raises(UserError, match="no data_contrast/images_information/information.json"):
        list(sources.read("mossbench", tmp_path))


def test_mssbenchs_twins_are_one_query_on_two_pictures(tmp_path: Path) -> None:
    records = by_id("mssbench", tmp_path, split="all")
    pairs = Counter(r.provenance["pair"] for r in records.values() if "pair" in r.provenance)
    assert len(pairs) == 8 and set(pairs.values()) == {2}
    twins = [records[f"mssbench-chat-1-2-{side}"] for side in ("safe", "unsafe")]
    assert twins[0].text == twins[1].text and twins[0].images != twins[1].images
    assert [r.label for r in twins] == ["safe", "unsafe"]
    embodied = [r for r in records.values() if r.provenance["subset"] == "embodied"]
    assert len(embodied) == 4 * 3 and not any("pair" in r.provenance for r in embodied)
    assert records["mssbench-embodied-1-2-safe"].text == "warm the cup"
    (tmp_path / "combined.json").rename(tmp_path / "combine.json")
    assert len(list(sources.read("mssbench", tmp_path))) == len(records)


def test_mm_vet_v2s_pictures_are_taken_out_of_the_question(tmp_path: Path) -> None:
    record = by_id("mm_vet, v2", tmp_path)["mm_vet-v2_1"]
    assert record.text == "what is in and not in" and record.label == "safe"
    assert record.images == (encoded(1), encoded(301, "JPEG"))
    assert record.provenance["subset"] == "v2" and record.provenance["answer"] == "a cup"
    first = by_id("mm_vet", tmp_path)["mm_vet-v1_1"]
    assert first.category == "ocr+math" and first.provenance["subset"] == "v1"


@pytest.mark.parametrize(("split", "size"), [("train", "330k"), ("30k_train", "30k")])
def test_beavertails_reads_the_larger_size_unless_told(
    tmp_path: Path, split: str, size: str
) -> None:
    records = by_id("beavertails", tmp_path, split=split)
    assert [r.text for r in records.values()] == [f"{size}, number {i}" for i in range(4)]
    shutil.move(tmp_path / "round0" / size / "train.jsonl", tmp_path / "round0" / "train.jsonl")
    shutil.rmtree(tmp_path / "round0" / "30k")
    shutil.rmtree(tmp_path / "round0" / "330k")
    (tmp_path / "round0" / "test.jsonl").write_text("")
    older = list(sources.read("beavertails", tmp_path, split=split))
    assert [r.text for r in older] == [r.text for r in records.values()]


# ---- who may learn from it ---------------------------------------------------------------------

EVALUATION_ONLY = {"siuo", "mm_safetybench", "jailbreakv", "xstest", "mossbench", "mssbench"} | {
    *("holisafe", "vlsbench", "mm_vet")
}


def test_no_model_learns_from_what_it_is_tested_on() -> None:
    assert {n for n, each in CATALOGUE.items() if each.trainable == ()} == EVALUATION_ONLY
    for name in EVALUATION_ONLY:
        with pytest.raises(UserError, match="never trained on") as error:
            refuse_training(name, "")
        assert f"licence: {CATALOGUE[name].licence}" in str(error.value)
    with pytest.raises(UserError, match="its authors give it for evaluation, never for training"):
        refuse_training("mossbench", "safe")
    for name, split in (("figstep", "all"), ("figstep_twins", "test"), ("vlguard", "test")):
        with pytest.raises(UserError, match=f"split '{split}' of '{name}'"):
            refuse_training(name, split)
    for name, split in (("figstep", "train"), ("vlguard", "train"), ("vqav2", "val"), ("nlvr", "")):
        refuse_training(name, split)


def test_rows_that_splits_share_have_one_name() -> None:
    shared = {row_name(f"vlguard-{split}-Ads_1-2-unsafes") for split in ("train", "test")}
    assert shared == {"vlguard-Ads_1-2"}
    assert row_name("figstep-1-2") == "figstep-1-2" and row_name("a-b-c-d") == "a-b-c-d"


def test_the_command_line_offers_every_reader() -> None:
    assert sorted(FORMATS) == sorted(sources.SOURCES)
    assert set(CATALOGUE) <= set(sources.SOURCES)


def test_another_sets_table_is_not_to_be_renamed_into_this_one(tmp_path: Path) -> None:
    made(tmp_path, "vlguard")
    with pytest.raises(UserError) as error:
        read(DOWNLOADS["siuo"], tmp_path)
    assert "name it" not in one_line(error, tmp_path)


@pytest.mark.parametrize(
    ("reader", "split", "there"),
    [
        ("vlguard", "train", "test.json"),
        ("vlguard", "test", "train.json"),
        ("vqav2", "test", "v2_OpenEnded_mscoco_val2014_questions.json"),
        ("vqav2", "val", "v2_OpenEnded_mscoco_train2014_questions.json"),
        ("mm_vet", "v1", "mm-vet-v2.json"),
        ("mm_vet", "v2", "mm-vet.json"),
    ],
)
def test_a_file_of_another_split_is_not_to_be_renamed_into_this_one(
    reader: str, split: str, there: str, tmp_path: Path
) -> None:
    (tmp_path / there).write_text("[]")
    with pytest.raises(UserError) as error:
        list(sources.read(reader, tmp_path, **({"split": split} if split else {})))
    message = one_line(error, tmp_path)
    assert f"{there} is, which is another split" in message and "name it" not in message


def test_an_instruction_of_vlguard_that_asks_nothing_is_a_test_row_as_published(
    tmp_path: Path,
) -> None:
    """One of the release's test rows asks "N/A", and is among the 442."""
    download = made(tmp_path, "vlguard")
    file = tmp_path / download.table
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    next(e for r in rows for e in r["instr-resp"] if "instruction" in e)["instruction"] = "N/A"
    file.write_text(json.dumps(rows))
    records, rejected, reading = read(download, tmp_path)
    assert dict(reading.records)["unsafes"] == 2 and not rejected
    assert [r.text for r in records].count("N/A") == 1
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "test.json").unlink()
    learned = [*sources.read("vlguard", tmp_path, missing_pictures="in")]
    assert ["asks nothing" in r.reason for r in learned if isinstance(r, Rejected)] == [True]


def test_a_file_of_the_other_split_is_refused_by_its_name(tmp_path: Path) -> None:
    made(tmp_path, "vlguard")
    with pytest.raises(UserError, match="is split test, not train"):
        sources.read("vlguard", tmp_path / "test.json")


def test_prompts_none_of_which_harms_are_no_silence(tmp_path: Path) -> None:
    row = {"prompt": "what is tea ?", "category": dict.fromkeys(CATEGORIES, False)}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (row,) = sources.read("beavertails", tmp_path / "train.jsonl")
    assert isinstance(row, Rejected) and "there is no query here" in row.reason


def test_rows_of_one_id_in_vlguards_file_are_rows_of_their_own(tmp_path: Path) -> None:
    download = made(tmp_path, "vlguard")
    before, _, _ = read(download, tmp_path)
    file = tmp_path / download.table
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    file.write_text(json.dumps([*rows, rows[-1]]))
    after, _, _ = read(download, tmp_path)
    assert len(after) > len(before) and len({r.id for r in after}) == len(after)
    assert {r.id for r in before if "-row" not in r.id} & {r.id for r in after}
