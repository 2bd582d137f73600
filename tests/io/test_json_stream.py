"""Large JSON, read an element at a time, says what ``json.loads`` says; damaged, what is left."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import json_stream
from crossguard_jax.io.json_stream import read_json_rows
from crossguard_jax.io.lines import RowError

ROWS: list[dict[str, Any]] = [
    {"text": 'quoted " and ] and } and \\ ü 茶 🫖\n', "n": -1.5e3, "deep": [{"a": [None, True]}]},
    {"text": "", "list": [], "object": {}},
    {"n": 10**30, "text": "x" * 300},
]


def written(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_rows_are_what_the_whole_file_holds_wherever_it_is_cut(
    tmp_path: Path, chunk: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = written(tmp_path, ROWS, **options)
    assert list(read_json_rows(path)) == list(enumerate(ROWS, start=1))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [value for _, value in read_json_rows(path)] == ROWS
    named = {str(i): row for i, row in enumerate(ROWS)}
    path = written(tmp_path, named, **options)
    rows = [value for _, value in read_json_rows(path, key="id")]
    assert rows == [row | {"id": name} for name, row in named.items()]
    path = written(tmp_path, {"info": {"rows": [1]}, "n": 1, "in": {"other": ROWS, "rows": ROWS}})
    assert [value for _, value in read_json_rows(path, "in", "rows")] == ROWS


def test_elements_that_are_no_objects_are_rows_that_say_so(tmp_path: Path) -> None:
    rows = list(read_json_rows(written(tmp_path, [1, {"a": 2}, [3], None])))
    assert rows[1] == (2, {"a": 2})
    kinds = [value.reason for _, value in rows if isinstance(value, RowError)]
    assert kinds == [f"not a JSON object but a {k}" for k in ("int", "list", "NoneType")]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_of_a_file_that_is_cut_what_arrived_comes_first(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    *rows, (last, error) = read_json_rows(path)
    assert [value for _, value in rows] == ROWS[: len(rows)] and len(rows) == 3 - (cut > 1)
    assert isinstance(error, RowError) and last == len(rows) + 1
    assert error.reason.startswith("the file is cut short or damaged here")
    assert f"the {len(rows)} rows before were read" in error.reason


@pytest.mark.parametrize(
    "text", ['[{"a": 1} {"a": 2}]', '[{"a": 1}, {"a": 2', '[{"a": 1}, nul]', '[{"a": 1}] more']
)
def test_damage_behind_a_row_is_one_more(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    first, (row, error) = read_json_rows(tmp_path / "rows.json")
    assert first == (1, {"a": 1}) and row == 2 and isinstance(error, RowError)


@pytest.mark.parametrize(
    ("text", "where", "key", "message"),
    [
        ("", (), "", "not JSON"),
        ("{}", (), "", "holds an object, expected an array of rows"),
        ("3", (), "", "holds int, expected an array of rows"),
        ("[]", (), "id", "holds an array, expected an object of rows"),
        ("[]", ("rows",), "", "holds an array, expected an object with 'rows' in it"),
        ('{"row": []}', ("rows",), "", "holds nothing called 'rows'"),
        ('{"rows": {}}', ("rows",), "", "holds in 'rows' an object, expected an array of rows"),
        ("version https://git-lfs", (), "", "not JSON"),
        ("{1: 2}", (), "id", "not JSON"),
        ("[" * 5_000, (), "", "not JSON"),
    ],
)
def test_what_holds_no_rows_is_one_line_about_the_file(
    tmp_path: Path, text: str, where: tuple[str, ...], key: str, message: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        list(read_json_rows(path, *where, key=key))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_utf_8_and_an_element_without_end_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(UserError, match="it is not UTF-8"):
        list(read_json_rows(path))
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 1_000)
    written(tmp_path, [{"a": 1}, {"a": "x" * 5_000}, {"a": 2}])
    (_, first), (_, error) = read_json_rows(path)
    assert first == {"a": 1} and isinstance(error, RowError)


def test_no_more_is_held_than_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 2**16)
    path = written(tmp_path, {"rows": [{"text": "x" * 4_000} for _ in range(2_000)]})
    assert path.stat().st_size > 8e6
    tracemalloc.start()
    count = sum(1 for _ in read_json_rows(path, "rows"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2_000 and peak < 1e6


READ = """
import resource, sys
from crossguard_jax.data import sources
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
rows = sources.read("vlsbench", sys.argv[1], missing_pictures="in")
print(sum(1 for _ in rows), peak() - before)
"""


@pytest.mark.benches
def test_a_file_of_300_mb_is_read_in_a_few(tmp_path: Path) -> None:
    row = {"instruction": "x" * 10_000, "image_path": "imgs/0.png", "category": "c"}
    n = 30_000
    with (tmp_path / "data.json").open("w") as file:
        for i in range(n):
            file.write(("," if i else "[") + json.dumps({"instruction_id": i} | row))
        file.write("]")
    assert (tmp_path / "data.json").stat().st_size > 300e6
    command = [sys.executable, "-c", READ, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows, megabytes = map(int, out.split())
    assert rows == n and megabytes < 50
