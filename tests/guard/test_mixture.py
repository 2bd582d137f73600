"""Sources as a configuration asks for them: drawn, held out, and known by what is in them."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import ArrayRecordSource
from crossguard_jax.data.records import Record
from crossguard_jax.guard.augment import parts
from crossguard_jax.guard.mixture import answered, fitting, in_tenth, listed_rows, open_sources
from crossguard_jax.guard.outlines import outlines
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.io.jsonl import dumps


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """200 rows in order: the safe ones first."""
    rows = [
        {"id": str(n), "image": None, "text": f"text {n}", "label": "unsafe" if n > 99 else "safe"}
        for n in range(200)
    ]
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(path: Path, **fields: object) -> dict[str, object]:
    spec = {"reader": "table", "path": str(path), "split": "train", "weight": 1.0, "limit": 0}
    return spec | {"labels": (), "tenth": ""} | fields


def opened(path: Path, folder: Path, seed: int = 0, **fields: object) -> list[Record]:
    specs = ConfigDict({"rows": spec_of(path, **fields)})
    source = open_sources(specs, folder, {}, seed)["rows"]
    return [source[i] for i in range(len(source))]


def test_a_limit_draws_by_the_seed_and_leaves_both_labels(path, tmp_path):
    drawn = [opened(path, tmp_path / str(n), seed, limit=40) for n, seed in enumerate((3, 3, 4))]
    assert [len(rows) for rows in drawn] == [40] * 3
    assert drawn[0] == drawn[1] != drawn[2]
    for rows in drawn:
        assert min(Counter(row.label for row in rows).values()) > 8


def test_a_limit_counts_rows_of_the_labels_that_are_asked_for(path, tmp_path):
    rows = opened(path, tmp_path, limit=40, labels=("unsafe",))
    assert len(rows) == 40 and {row.label for row in rows} == {"unsafe"}


def test_a_draw_by_another_seed_is_another_data_set_and_a_whole_one_is_not(path, tmp_path):
    note = tmp_path / "rows.settings.json"

    def written(**fields: object) -> int:
        opened(path, tmp_path, **fields)
        return note.stat().st_mtime_ns

    first = written(limit=40)
    assert written(limit=40) == first
    other = written(limit=40, seed=1)
    assert other != first
    whole = written()
    assert whole != other and written(seed=1) == whole


def test_the_tenth_that_is_held_out_is_never_learned_from(path, tmp_path):
    parts = {
        tenth: opened(path, tmp_path / f"part{tenth}", tenth=tenth)
        for tenth in ("", "without", "only")
    }
    held = {row.id for row in parts["only"]}
    assert 10 < len(held) < 35 and {row.label for row in parts["only"]} == {"safe", "unsafe"}
    assert held | {row.id for row in parts["without"]} == {row.id for row in parts[""]}
    assert not held & {row.id for row in parts["without"]}
    with pytest.raises(UserError, match="^rows: tenth 'most' is none of '', 'without', 'only'"):
        opened(path, tmp_path / "other", tenth="most")


def test_what_belongs_together_is_held_out_together():
    """Two instructions about a picture, a forged row and its twin; or what a reader says."""
    picture = next(bytes([n]) for n in range(256) if hashlib.sha256(bytes([n])).digest()[0] < 26)
    one, two = (Record(id, (picture,), id) for id in ("a", "b"))
    assert in_tenth(one) and in_tenth(two)
    groups = [Record("a", (bytes([n]),), "", provenance={"group": "g"}) for n in range(50)]
    assert len({in_tenth(record) for record in groups}) == 1


def test_the_rows_that_are_learned_from_are_listed_by_their_content(path, tmp_path):
    rows = opened(path, tmp_path, limit=40)
    specs = ConfigDict({"rows": spec_of(path, limit=40)})
    listed = listed_rows(answered(open_sources(specs, tmp_path, {}), ("unsafe",)))
    assert [(row.id, row.source, row.content) for row in listed] == [
        (row.id, "rows", content_hash(row.text, row.images))
        for row in rows
        if row.label == "unsafe"
    ]
    assert len({row.content for row in listed}) == len(listed) > 8


def test_no_picture_is_read_before_the_first_batch(path, tmp_path, monkeypatch):
    specs = ConfigDict({"rows": spec_of(path)})
    rows = opened(path, tmp_path)
    monkeypatch.setattr(ArrayRecordSource, "__getitem__", lambda *_: pytest.fail("read a row"))
    some = answered(open_sources(specs, tmp_path, {}), ("unsafe", "safe"))
    some = fitting(some, "safe", lambda text: not text.endswith("9"))
    kept = [row for row in rows if row.label == "safe" or not row.text.endswith("9")]
    assert len(kept) < len(rows)
    assert [row.id for row in listed_rows(some)] == [row.id for row in kept]
    augment = {"long": 0.0, "injected": 0.0}
    given = ConfigDict({"sources": {"rows": spec_of(path)}, "augment": augment, "max_length": 48})
    (part,) = parts(given, some, None, tmp_path, {}, 0)
    assert part.sources == some


@pytest.mark.parametrize("damage", ["empty", "{}\n", "not json\n", "[1]\n", "another's"])
def test_a_damaged_list_of_rows_is_named_with_the_mend(path, tmp_path, damage):
    rows = opened(path, tmp_path)
    listed = tmp_path / "rows.rows.jsonl"
    lines = listed.read_text().splitlines(keepends=True)
    texts = {"empty": "", "another's": "".join(reversed(lines))}
    listed.write_text(texts.get(damage, damage))
    with pytest.raises(UserError, match="rows.rows.jsonl: does not list the rows there; remove it"):
        opened(path, tmp_path)
    listed.unlink()
    assert opened(path, tmp_path) == rows


def test_a_long_text_and_one_with_a_line_separator_are_listed_as_they_are(tmp_path):
    texts = ["a\u2028b", "щ" * 3_000_000]
    path = tmp_path / "rows.jsonl"
    rows = ({"id": str(i), "image": None, "text": t, "label": "safe"} for i, t in enumerate(texts))
    path.write_bytes(b"".join(map(dumps, rows)))
    specs = ConfigDict({"rows": spec_of(path)})
    source = open_sources(specs, tmp_path, {})["rows"]
    assert [row.text for row in outlines(source)] == [source[i].text for i in range(2)] == texts


def test_a_note_that_is_none_is_written_anew(path, tmp_path):
    rows = opened(path, tmp_path)
    note = tmp_path / "rows.settings.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"files": []}))
    assert opened(path, tmp_path) == rows
