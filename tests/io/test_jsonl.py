"""Rows in and out of files."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.jsonl import (
    JsonlWriter,
    read_json,
    read_jsonl,
    read_rows,
    write_atomic,
)
from crossguard_jax.io.lines import RowError
from crossguard_jax.io.tables import read_csv


def written(tmp_path, content: bytes, name: str = "rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_rows_come_back_as_they_were_appended(tmp_path):
    rows = [
        {"text": "naïve \u2028 \ud800 \U0001f600 \0", "n": 1.5},
        {"nested": {"a": [None, True]}},
    ]
    with JsonlWriter(tmp_path / "new" / "rows.jsonl") as writer:
        for row in rows:
            writer.append(row)
    assert list(read_jsonl(writer.path)) == [(1, rows[0]), (2, rows[1])]


def test_reopening_appends(tmp_path):
    for n in range(3):
        with JsonlWriter(tmp_path / "rows.jsonl") as writer:
            writer.append({"n": n})
    assert [value["n"] for _, value in read_jsonl(writer.path)] == [0, 1, 2]


@pytest.mark.parametrize("tail", [b'{"n": 2, "te', b"\0\0\0\0", b'{"n": "\xc3', b'{"n": 3', b"12"])
def test_a_torn_last_line_is_cut_off_when_the_file_is_opened_again(tmp_path, tail):
    path = written(tmp_path, b'{"n": 0}\n{"n": 1}\n' + tail)
    with JsonlWriter(path) as writer:
        writer.append({"n": 2})
    assert [value["n"] for _, value in read_jsonl(path)] == [0, 1, 2]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = written(tmp_path, b'{"n": 0}\n{"n": 1}')
    with JsonlWriter(path) as writer:
        writer.append({"n": 2})
    assert [value["n"] for _, value in read_jsonl(path)] == [0, 1, 2]


def test_a_torn_line_is_cut_off_however_long_it_and_the_file_are(tmp_path):
    rows = b'{"n": 0}\n' * 20_000
    for torn in (b'{"text": "' + b"x" * 200_000, b'{"n"'):
        path = written(tmp_path, rows + torn)
        JsonlWriter(path).close()
        assert path.read_bytes() == rows


def test_a_killed_process_loses_no_row_that_it_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import os, signal, sys\n"
        "from crossguard_jax.io.jsonl import JsonlWriter\n"
        "writer = JsonlWriter(sys.argv[1], sync_seconds=1e9)\n"
        "for n in range(100): writer.append({'n': n})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert [value["n"] for _, value in read_jsonl(path)] == list(range(100))


def test_what_json_cannot_hold_is_refused_and_leaves_no_half_line(tmp_path):
    with JsonlWriter(tmp_path / "rows.jsonl") as writer:
        with pytest.raises(ValueError):
            writer.append({"loss": float("nan")})
        writer.append({"loss": 1.0})
    assert list(read_jsonl(writer.path)) == [(1, {"loss": 1.0})]


def test_a_bad_line_is_reported_by_its_number_and_the_rest_goes_on(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"n": 1}',  # a byte-order mark is no error
        b"not json",
        b"",
        b'{"n": "\0"}',
        b"[1, 2]",
        b'{"n": "\xff"}',
        b"[" * 100_000,
        b'{"n": "' + b"x" * 300_000 + b'"}',
        b'{"n": 9}\r',
    ]
    path = written(tmp_path, b"\n".join(lines))
    rows = dict(read_jsonl(path, max_line_bytes=200_000))
    assert rows.pop(1) == {"n": 1} and rows.pop(9) == {"n": 9}
    reasons = {row: value.reason for row, value in rows.items() if isinstance(value, RowError)}
    assert {row: reason.split("(")[0].strip() for row, reason in reasons.items()} == {
        2: "not JSON",
        4: "the line holds NUL bytes",
        5: "not a JSON object but a list",
        6: "the line is not UTF-8",
        7: "not JSON",
        8: "the line is over 200,000 bytes",
    }


def test_a_json_array_reads_like_lines(tmp_path):
    path = written(tmp_path, b' [{"n": 1}, 5, {"n": 3}]', "rows.json")
    assert list(read_rows(path)) == [
        (1, {"n": 1}),
        (2, RowError("not a JSON object but a int")),
        (3, {"n": 3}),
    ]
    assert list(read_rows(written(tmp_path, b'{"n": 1}\n', "lines.json"))) == [(1, {"n": 1})]


def test_csv_rows_are_numbered_by_the_line_they_start_on(tmp_path):
    content = '\ufeffid,text\r\n1,"two\nlines, and ""quotes"""\r\n\r\n2,naïve\r\n'
    path = written(tmp_path, content.encode(), "rows.csv")
    assert list(read_rows(path)) == [
        (2, {"id": "1", "text": 'two\nlines, and "quotes"'}),
        (5, {"id": "2", "text": "naïve"}),
    ]


def test_a_tsv_is_split_at_tabs(tmp_path):
    path = written(tmp_path, b"id\ttext\n1\ta, b\n", "rows.tsv")
    assert list(read_rows(path)) == [(2, {"id": "1", "text": "a, b"})]


def test_a_bad_csv_row_is_reported_and_the_rest_goes_on(tmp_path):
    lines = [
        b"id,text",
        b"1,fine",
        b"2",
        b"3,a,b",
        b"4,nul\0",
        b"5,\xff",
        b"6," + b"x" * 200_000,
        b"7,fine",
    ]
    rows = dict(read_csv(written(tmp_path, b"\n".join(lines), "rows.csv")))
    assert rows.pop(2) == {"id": "1", "text": "fine"}
    assert rows.pop(8) == {"id": "7", "text": "fine"}
    assert {row: value.reason for row, value in rows.items()} == {
        3: "1 fields where the header has 2",
        4: "3 fields where the header has 2",
        5: "the row holds NUL bytes",
        6: "the row is not UTF-8",
        7: "not CSV (field larger than field limit (131072))",
    }


@pytest.mark.parametrize("content", [b"", b"\n", b"a,a\n1,2\n"])
def test_a_csv_must_name_every_column_once(tmp_path, content):
    with pytest.raises(UserError, match="must name every column once"):
        list(read_csv(written(tmp_path, content, "rows.csv")))


def test_files_that_cannot_be_read_are_one_line_errors(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: cannot be read .No such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="unknown kind of file; give one of .jsonl"):
        list(read_rows(tmp_path / "rows.xlsx"))
    with pytest.raises(UserError, match="not JSON"):
        read_json(written(tmp_path, b'{"cut": ', "cut.json"))


def test_an_atomic_write_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "report.json"
    write_atomic(path, '{"n": 1}')
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"n": 1}
    write_atomic(path, b"{}")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert path.read_bytes() == b"{}"


def test_several_writers_of_one_file_leave_one_of_theirs_and_nothing_else(tmp_path):
    path = tmp_path / "facts.json"
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda n: write_atomic(path, f'{{"n": {n}}}'), range(64))]
    assert json.loads(path.read_text())["n"] in range(64)
    assert [*tmp_path.iterdir()] == [path]
