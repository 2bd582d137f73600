"""Files that are not what they should be, through every reader: a row costs itself and no other."""

import base64
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import library, sources
from crossguard_jax.data.records import Rejected
from crossguard_jax.impforge.triplets import read_triplets
from crossguard_jax.io import images, tables

PNG = images.encode_png(Image.new("RGB", (8, 6), "red"))
NAMES = [f"p{n}.png" for n in range(6)]


def texts_of(rows: Iterator[Any], text: str = "text") -> tuple[dict[str, str], list[Rejected]]:
    """The texts by name of what was read, and what was rejected."""
    rows = list(rows)
    good = [row for row in rows if not isinstance(row, Rejected)]
    return {row.id: getattr(row, text) for row in good if getattr(row, text)}, [
        row for row in rows if isinstance(row, Rejected)
    ]


def as_table(path: Path) -> tuple[dict[str, str], list[Rejected]]:
    return texts_of(sources.read("table", path, id="name", image=None))


def as_captions(path: Path) -> tuple[dict[str, str], list[Rejected]]:
    for name in NAMES:
        (path.parent / name).write_bytes(PNG)
    found, rejected = texts_of(library.pictures(path.parent, captions=path), "caption")
    # A picture's caption may be gone; that the picture is there is no more of this test's business.
    return found, [row for row in rejected if row.file == str(path)]


def as_wit(path: Path) -> tuple[dict[str, str], list[Rejected]]:
    pixels = base64.b64encode(PNG)
    lines = [name.encode() + b"\t" + pixels + b"\tpage\n" for name in NAMES]
    (path.parent / "0.csv.gz").write_bytes(gzip.compress(b"".join(lines)))
    return texts_of(library.pictures(path.parent, layout="wit"), "caption")


READERS: dict[str, tuple[Callable[[Path], Any], str, tuple[str, str]]] = {
    "rows.csv": (as_table, ",", ("name", "text")),
    "rows.tsv": (as_table, "\t", ("name", "text")),
    "rows.csv.gz": (as_table, ",", ("name", "text")),
    "captions.csv": (as_captions, ",", ("file_name", "caption")),
    "captions.tsv": (as_captions, "\t", ("file_name", "caption")),
    "wit.tsv": (as_wit, "\t", ("image_url", "caption_reference_description")),
    "wit.tsv.gz": (as_wit, "\t", ("image_url", "caption_reference_description")),
}
reader = pytest.mark.parametrize("name", READERS)

# A row in place of the third one; D is the delimiter.
MALFORMED = {
    "a quote that never closes": b'p2.pngD"never closed',
    "a quoted name that never closes": b'"p2.pngDnever closed',
    "words behind a quote": b'p2.pngD"quoted" and not',
    "too few fields": b"p2.png",
    "too many fields": b"p2.pngDaDb",
    "a NUL byte": b"p2.pngDto\0rn",
    "bytes that are no UTF-8": b"p2.pngD\xff",
    "a field without end": b"p2.pngD" + b"x" * 200_000,
}


def written(
    folder: Path, name: str, lines: list[bytes], end: bytes = b"\n", bom: bytes = b""
) -> Path:
    data = bom + end.join(lines) + end
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def good_lines(delimiter: str, columns: tuple[str, str]) -> list[bytes]:
    """A header and a row a name; some fields are quoted, one of them over three lines."""
    d = delimiter.encode()
    lines = [d.join(column.encode() for column in columns)]
    lines += [d.join([name.encode(), b"text of " + name.encode()]) for name in NAMES]
    lines[4] = b'p3.png%b"quoted%b ""too"""' % (d, d)
    lines[5] = b'"p4.png"%b"over\nthree\nlines"' % d
    lines[6] = b'p5.png%ba 5" pipe' % d
    return lines


@reader
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_row_costs_itself_and_the_rows_after_it_are_read(
    tmp_path: Path, name: str, what: str
) -> None:
    read, delimiter, columns = READERS[name]
    lines = good_lines(delimiter, columns)
    lines[3] = MALFORMED[what].replace(b"D", delimiter.encode())
    texts, rejected = read(written(tmp_path, name, lines))
    assert list(texts) == [each for each in NAMES if each != "p2.png"]
    assert texts["p3.png"].replace("\t", " ").startswith("quoted")
    assert texts["p4.png"].split() == ["over", "three", "lines"] and '5" pipe' in texts["p5.png"]
    assert [row.row for row in rejected] == [4] and "\n" not in rejected[0].reason


@reader
def test_a_quote_left_open_near_the_end_or_far_from_it_costs_one_row(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, delimiter, columns = READERS[name]
    d = delimiter.encode()
    lines = [d.join(column.encode() for column in columns)]
    lines += [d.join([each.encode(), b"plain"]) for each in NAMES]
    for at, limit in ((1, 1_000), (1, 2), (6, 1_000)):
        monkeypatch.setattr(tables, "MAX_RECORD_LINES", limit)
        torn = list(lines)
        torn[at] = NAMES[at - 1].encode() + d + b'"open'
        texts, rejected = read(written(tmp_path, name, torn))
        assert len(texts) == 5 and NAMES[at - 1] not in texts
        assert [row.row for row in rejected] == [at + 1] and "quote" in rejected[0].reason


@reader
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_as_any_system_has_it(
    tmp_path: Path, name: str, end: bytes, bom: bytes
) -> None:
    read, delimiter, columns = READERS[name]
    texts, rejected = read(written(tmp_path, name, good_lines(delimiter, columns), end, bom))
    assert list(texts) == NAMES and not rejected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.ndjson", "rows.csv.gz"]
)
def test_another_encoding_is_one_line_about_the_file(
    tmp_path: Path, name: str, encoding: str
) -> None:
    content = '{"name": "a", "text": "b"}\n' if "json" in name else "name,text\na,b\n"
    path = written(tmp_path, name, [content.encode(encoding)])
    with pytest.raises(UserError, match=f"{name}: the text is UTF-16 or UTF-32; save it as UTF-8"):
        as_table(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("what", ["array", "object"])
def test_one_json_value_for_a_whole_file_is_one_line_about_it(
    tmp_path: Path, name: str, indent: int | None, what: str
) -> None:
    rows = [{"name": str(i), "text": "what colour ?"} for i in range(3)]
    value = rows if what == "array" else {row["name"]: row for row in rows}
    (tmp_path / name).write_text(json.dumps(value, indent=indent))
    if what == "array" and name == "rows.json":
        assert len(as_table(tmp_path / name)[0]) == 3
        return
    with pytest.raises(UserError, match=f"{name}: the file is one JSON {what}.*write a row a line"):
        as_table(tmp_path / name)


@pytest.mark.parametrize("first", ["{'text': 'python'}", '{"text": "torn', "[1]", "{}"])
def test_a_bad_first_line_is_one_bad_row(tmp_path: Path, first: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{first}\n{{"name": "b", "text": "fine"}}\n')
    texts, rejected = as_table(tmp_path / "rows.jsonl")
    assert texts == {"b": "fine"} and [row.row for row in rejected] == [1]


# ---- JSON of another shape ---------------------------------------------------------------------

SHAPES = [
    "null",
    "3",
    '"x"',
    "[]",
    "{}",
    "[1]",
    "[[]]",
    "[null]",
    '{"images": 3}',
    '{"images": [1]}',
    '{"images": [{"id": []}], "annotations": [{"id": {}, "image_id": [], "caption": 3}]}',
    '{"images": [{"id": 1, "file_name": 7}], "annotations": [{"id": "a", "image_id": 1,'
    ' "caption": "c"}, {"id": 2, "image_id": 1, "caption": "d"}, 5]}',
    '{"questions": {}, "annotations": {}}',
    '{"questions": [{"question_id": [], "image_id": 1}]}',
    '{"annotations": [{"question_id": 1, "answers": 5}]}',
    '{"annotations": [{"question_id": []}]}',
    '[{"image": "a.png", "instr-resp": 3}]',
    '[{"image": [], "instr-resp": [[]]}]',
    '{"images": [{"split": [], "sentences": 3}]}',
    '{"images": [{"split": "test", "filename": 3}]}',
    '{"images": [{"split": "test", "filename": "a.png", "sentences": [{"raw": 3}]}]}',
    '{"prompt": 3, "category": 5}',
    '{"identifier": 3, "directory": [], "label": {}}',
]
JSON_READERS: dict[str, tuple[str, Callable[[Path], Iterator[Any]]]] = {
    "table": ("rows.json", lambda f: sources.read("table", f / "rows.json")),
    "triplets": ("rows.jsonl", lambda f: read_triplets(f / "rows.jsonl")),
    "vlguard": ("train.json", lambda f: sources.read("vlguard", f)),
    "vqav2": (
        "v2_OpenEnded_mscoco_val2014_questions.json",
        lambda f: sources.read("vqav2", f, split="val"),
    ),
    "vqav2's answers": (
        "v2_mscoco_val2014_annotations.json",
        lambda f: sources.read("vqav2", f, split="val"),
    ),
    "nlvr": ("dev.json", lambda f: sources.read("nlvr", f / "dev.json")),
    "nlvr2": ("dev.json", lambda f: sources.read("nlvr2", f / "dev.json")),
    "coco_captions": (
        "annotations/captions_val2017.json",
        lambda f: sources.read("coco_captions", f),
    ),
    "karpathy": ("dataset.json", lambda f: sources.read("karpathy", f)),
    "beavertails": ("rows.jsonl", lambda f: sources.read("beavertails", f)),
    "library": ("annotations/captions_val2017.json", lambda f: library.pictures(f)),
}


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_json_of_another_shape_is_a_line_that_names_the_file(
    tmp_path: Path, reader: str, shape: str
) -> None:
    file, read = JSON_READERS[reader]
    for folder in ("annotations", "train", "val2014", "val2017"):
        (tmp_path / folder).mkdir()
    questions = [{"question_id": 1, "image_id": 1, "question": "what?"}]
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({"questions": questions})
    )
    (tmp_path / file).write_text(shape)
    try:
        rows = list(read(tmp_path))
    except UserError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(row, Rejected) for row in rows)
        assert all(str(tmp_path) in row.file for row in rows)


@pytest.mark.parametrize("reader", ["coco_captions", "library"])
def test_captions_of_an_image_id_that_two_pictures_have_are_given_to_neither(
    tmp_path: Path, reader: str
) -> None:
    file, read = JSON_READERS[reader]
    pictures = [{"id": min(n, 2), "file_name": f"p{n}.png"} for n in (1, 2, 3)]
    captions = [{"id": n, "image_id": min(n, 2), "caption": f"of p{n}"} for n in (1, 2, 3)]
    for folder in ("annotations", "val2017"):
        (tmp_path / folder).mkdir()
    (tmp_path / file).write_text(json.dumps({"images": pictures, "annotations": captions}))
    for n in (1, 2, 3):
        (tmp_path / "val2017" / f"p{n}.png").write_bytes(PNG)
    rows = list(read(tmp_path))
    assert [isinstance(row, Rejected) for row in rows] == [False, True, True]
    assert all("image id 2 is 2 pictures'" in row.reason for row in rows[1:])


# ---- A picture by any route --------------------------------------------------------------------


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("read", ["table", "vlguard", "triplets"])
def test_a_row_may_hold_its_picture_as_a_data_url(tmp_path: Path, read: str) -> None:
    bad = [
        url(b"no picture at all"),
        "data:image/png;base64,@@@",
        "https://a.example/b.png",
        "data:,",
    ]
    rows = [
        {
            "image": image,
            "text": "t",
            "keyword": "k",
            "instr-resp": [{"instruction": "t"}],
        }
        for image in [url(PNG), *(each + "A" * 10**6 * ("@" in each) for each in bad)]
    ]
    (tmp_path / "train").mkdir()
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readers = {
        "table": lambda: sources.read("table", tmp_path / "rows.jsonl"),
        "vlguard": lambda: sources.read("vlguard", tmp_path),
        "triplets": lambda: read_triplets(tmp_path / "rows.jsonl"),
    }
    first, *rest = readers[read]()
    assert first.image == PNG
    reasons = [row.reason for row in rest]
    words = ["not a picture", "not base64", "https address", "is empty"]
    assert [word in reason for word, reason in zip(words, reasons, strict=True)] == [True] * 4
    assert all("field 'image'" in reason and len(reason) < 200 for reason in reasons)


def test_the_same_bytes_in_a_buffer_are_read_whatever_holds_them() -> None:
    for data in (PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG).getbuffer()):
        assert images.rgb(data).size == (8, 6)
