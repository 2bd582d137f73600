"""A manifest of shards: each one's output is there and whole, or is made; nothing else is asked."""

import json
import os
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.manifests import read_manifest
from crossguard_jax.runtime.shards import (
    Shard,
    ShardJob,
    added,
    claim,
    do_shard,
    finished,
    refuse_others,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_manifest_names_files_and_rows_of_files_beside_it(tmp_path) -> None:
    line = json.dumps({"path": "b.csv", "rows": [11, 20]})
    manifest = write(tmp_path / "shards", f"a.jsonl\n\n/data/c.tar\n{line}\n")
    a, c, b = read_manifest(manifest)
    assert (a.path, c.path, b.path) == (f"{tmp_path}/a.jsonl", "/data/c.tar", f"{tmp_path}/b.csv")
    assert (a.rows, b.rows) == (None, (11, 20))
    assert [s.name for s in (a, c, b)] == ["000000-a", "000001-c", "000002-b.11-20"]


def test_a_pattern_is_a_manifest_of_the_files_that_it_names_in_order(tmp_path) -> None:
    for name in ("b.csv", "a.csv", "c.jsonl"):
        write(tmp_path / name, "")
    assert [Path(s.path).name for s in read_manifest(f"{tmp_path}/*.csv")] == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no shard in it"),
        ('{"file": "a"}', "line 1: .* names no shard"),
        ('a\n{"path": "b", "rows": [5, 2]}', r"line 2: rows \[5, 2\]; give the first and the last"),
        ('{"path": "b", "rows": [true, 2]}', "give the first and the last"),
        ("a\nb\na", "lines 1 and 3: rows in common"),
        ('a\n{"path": "a", "rows": [2, 3]}', "lines 1 and 2: rows in common"),
        (
            '{"path": "a", "rows": [4, 6]}\n{"path": "a", "rows": [1, 4]}',
            "lines 1 and 2: rows in common",
        ),
        ('{"path": "a", "row": [2, 3]}', "line 1: unknown field 'row'"),
        ('{"path": "a"', "names no shard"),
        ("a\ngs://bucket/b", "line 2: gs://bucket/b: .*; mount the bucket"),
    ],
)
def test_a_line_that_is_no_shard_is_refused_with_its_number(tmp_path, text, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        read_manifest(write(tmp_path / "shards", text))


def test_a_folder_and_a_missing_file_are_no_manifests(tmp_path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="manifest"):
            read_manifest(path)
    with pytest.raises(UserError, match="^gs://bucket/manifest: .* mount the bucket"):
        read_manifest("gs://bucket/manifest")


@pytest.fixture
def job(tmp_path) -> ShardJob:
    return ShardJob("", {}, str(tmp_path / "out"))


@pytest.fixture
def shard(tmp_path) -> Shard:
    return Shard(0, str(write(tmp_path / "a.txt", "one\n")))


def copy(shard, output, beat) -> dict:
    output.write_bytes(Path(shard.path).read_bytes())
    return {"rows": 1}


def test_a_shard_is_done_once_its_output_is_whole(job, shard) -> None:
    assert finished(job, shard) is None
    report = do_shard(job, copy, shard)
    assert finished(job, shard) == report
    assert job.output(shard).read_text() == "one\n"


def spoil_output(job, shard) -> None:
    os.truncate(job.output(shard), 2)


def remove_output(job, shard) -> None:
    job.output(shard).unlink()


def spoil_report(job, shard) -> None:
    os.truncate(job.report(shard), 9)


def change_input(job, shard) -> None:
    Path(shard.path).write_text("one and two\n")


@pytest.mark.parametrize("spoil", [spoil_output, remove_output, spoil_report, change_input])
def test_a_shard_whose_files_do_not_fit_together_is_made_anew(job, shard, spoil) -> None:
    do_shard(job, copy, shard)
    spoil(job, shard)
    assert finished(job, shard) is None


def test_an_input_that_has_another_time_alone_is_the_same_one(job, shard) -> None:
    do_shard(job, copy, shard)
    os.utime(shard.path, ns=(1, 1))
    assert finished(job, shard)
    Path(shard.path).write_text("two\n")  # of the same size
    assert finished(job, shard) is None


def test_an_input_that_was_moved_is_the_same_one(job, shard, tmp_path) -> None:
    do_shard(job, copy, shard)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    os.rename(shard.path, moved / "a.txt")
    there = Shard(0, str(moved / "a.txt"))
    assert finished(job, there).shard == there


def test_what_fails_leaves_no_output_and_nothing_half_written(job, shard) -> None:
    def fail(shard, output, beat) -> dict:
        output.write_text("half")
        raise UserError("the shard is damaged; download it again")

    report = do_shard(job, fail, shard)
    assert (report.bytes, report.reason) == (-1, "the shard is damaged; download it again")
    assert finished(job, shard) is None
    assert [*job.output(shard).parent.glob("*.jsonl*"), *job.output(shard).parent.glob(".*")] == []


def test_outputs_of_other_shards_and_of_other_models_are_refused(job, shard) -> None:
    do_shard(job, copy, shard)
    with pytest.raises(UserError, match="000000-a.jsonl is of no shard of this manifest"):
        refuse_others(job, [Shard(0, "b.txt")])
    refuse_others(job, [shard, Shard(1, "b.txt")])  # a manifest may grow
    claim(job.folder, {"model": "a"})
    claim(job.folder, {"model": "a"})
    with pytest.raises(UserError, match="outputs of another run .model: a, now b."):
        claim(job.folder, {"model": "b"})


def test_counts_of_shards_add_up_by_name() -> None:
    one, two = {"rows": 2, "rejected": {"a": 1}}, {"rows": 3, "rejected": {"a": 1, "b": 4}}
    assert added([one, two]) == {"rows": 5, "rejected": {"a": 2, "b": 4}}
