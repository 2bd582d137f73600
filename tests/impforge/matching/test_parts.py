"""A library embedded shard by shard is the index that one process makes of all of it."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from crossguard_jax import cli
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import library
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.impforge.matching.index import PictureIndex, build_index
from crossguard_jax.impforge.matching.parts import (
    embed_job,
    join_parts,
    pictures_of,
    pictures_of_all,
)
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.io.jsonl import read_jsonl
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.runtime.manifests import read_manifest
from tests.impforge.small_clip import world_pictures

CONFIG = ("configs/impforge.py:tiny", ["--config.match.settings.batch_size=4"])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three files of four pictures, one of them torn; the second file has an id of the first."""
    folder = tmp_path / "library"
    folder.mkdir()
    rows = [
        {"id": f"p{i}", "image": p.read(), "caption": p.caption}
        for i, p in enumerate(world_pictures(12))
    ]
    rows[5]["image"] = rows[5]["image"][:40]
    rows[6]["id"] = "p1"
    for i in range(3):
        table = pyarrow.Table.from_pylist(rows[4 * i : 4 * i + 4])
        parquet.write_table(table, folder / f"{i}.parquet")
    return folder


def ids(index: PictureIndex) -> list[str]:
    return [index[i].id for i in range(index.pictures)]


def test_the_index_of_the_parts_is_that_of_the_whole(tmp_path, pictures) -> None:
    config = load_config(*CONFIG)
    clip = load_clip(config.match.clip, config.match.dtype)
    towers = Towers(clip.model, clip, clip.digest)
    whole, counts = build_index(
        tmp_path / "whole", library.pictures(pictures), towers, batch_size=4
    )
    shards = read_manifest(f"{pictures}/*.parquet")
    job = embed_job(config, None, tmp_path / "parts")
    summary = run_shards(job, shards)
    assert summary.counts["pictures"] == 11 and sum(summary.counts["rejected"].values()) == 1
    joined = join_parts(tmp_path / "joined", job, summary.reports)
    index = PictureIndex(tmp_path / "joined")
    assert ids(index) == ids(whole) and len(ids(index)) == 10
    np.testing.assert_allclose(
        np.asarray(index.embeddings, np.float32),
        np.asarray(whole.embeddings, np.float32),
        atol=2e-3,
    )
    assert (joined.added, joined.rejected) == (counts.added, counts.rejected) == (10, 2)
    # Joined again, nothing is added; a new shard is.
    again = join_parts(tmp_path / "joined", job, summary.reports)
    assert (again.added, again.kept, again.gone) == (0, 10, 0)
    before = join_parts(tmp_path / "fewer", job, summary.reports[:1])
    after = join_parts(tmp_path / "fewer", job, summary.reports)
    assert (before.added, after.added, after.kept) == (4, 6, 4)


def test_a_shard_that_cannot_be_read_is_left_out_and_said(tmp_path, pictures) -> None:
    (pictures / "1.parquet").write_bytes(b"no parquet")
    job = embed_job(load_config(*CONFIG), None, tmp_path / "parts")
    summary = run_shards(job, read_manifest(f"{pictures}/*.parquet"))
    (failed,) = summary.failed
    assert "1.parquet" in failed.reason
    counts = join_parts(tmp_path / "joined", job, summary.reports)
    assert (counts.added, counts.rejected) == (8, 1)
    (row,) = (row for _, row in read_jsonl(tmp_path / "joined/rejected.jsonl"))
    assert row["reason"] == failed.reason
    read = [*pictures_of_all(summary.reports, None)]
    assert len(read) == 8


def test_parts_with_other_captions_are_refused_though_all_are_there(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/1.jpg").write_bytes(world_pictures(1)[0].read())
    (tmp_path / "manifest").write_text("folder\n")
    table = tmp_path / "captions.csv"
    table.write_text("file_name,text\n1.jpg,a pan\n")
    job = embed_job(load_config(*CONFIG), table, tmp_path / "parts")
    summary = run_shards(job, read_manifest(tmp_path / "manifest"))
    assert summary.counts["pictures"] == 1
    assert join_parts(tmp_path / "joined", job, summary.reports).added == 1
    table.write_text("file_name,text\n1.jpg,a cup\n")
    with pytest.raises(UserError, match="outputs of another run .captions: "):
        run_shards(job, read_manifest(tmp_path / "manifest"))


def test_rows_of_a_library_that_end_behind_its_last_picture_are_refused(tmp_path, pictures) -> None:
    manifest = tmp_path / "library/manifest"
    rows = ([1, 3], [4, 5])
    manifest.write_text("".join(json.dumps({"path": "0.parquet", "rows": r}) + "\n" for r in rows))
    first, behind = read_manifest(manifest)
    assert [each.id for each in pictures_of(first, None)] == ["p0", "p1", "p2"]
    with pytest.raises(UserError, match=r"0\.parquet: rows \[4, 5\]: the file ends at row 4"):
        [*pictures_of(behind, None)]


def test_matching_with_shards_gives_the_triplets_of_matching_with_all(
    tmp_path, pictures, capsys
) -> None:
    names = "kettle", "knife", "lamp", "candle", "pan", "cup"
    (tmp_path / "q.csv").write_text(
        "id,text\n" + "".join(f"{n},where is the {n} ?\n" for n in names)
    )
    triplets = {}
    for name, given in (("whole", str(pictures)), ("parts", f"{pictures}/*.parquet")):
        flag = "--pictures" if name == "whole" else "--shards"
        words = ["match", "--config", CONFIG[0], "--queries", str(tmp_path / "q.csv")]
        cli.main(
            [
                *words,
                *CONFIG[1],
                "--config.match.judge.kind=none",
                flag,
                given,
                "--out",
                str(tmp_path / name),
            ]
        )
        triplets[name] = [row for _, row in read_jsonl(tmp_path / name / "triplets.jsonl")]
    assert "3 shards: 3 done" in capsys.readouterr().out
    for row in itertools.chain(*triplets.values()):
        row["provenance"].pop("cosine")
    assert triplets["parts"] == triplets["whole"] != []
