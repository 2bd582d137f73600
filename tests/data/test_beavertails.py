import gzip
import json
import lzma
import random
from collections import defaultdict
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.beavertails import CATEGORIES
from crossguard_jax.io.lines import lines

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def row(prompt: str, *categories: str, response: str = "no", is_safe: bool = True) -> dict:
    flags = {name: name in categories for name in CATEGORIES}
    return {"prompt": prompt, "response": response, "category": flags, "is_safe": is_safe}


def write(path: Path, rows: list, ending: str = "") -> Path:
    text = "".join(json.dumps(each) + "\n" for each in rows)
    file = path / f"train.jsonl{ending}"
    file.write_bytes(PACK[ending](text.encode()))
    return file


def sorted_out(rows) -> tuple[list[Record], list[Rejected]]:
    rows = list(rows)
    return (
        [row for row in rows if isinstance(row, Record)],
        [row for row in rows if isinstance(row, Rejected)],
    )


@pytest.mark.parametrize("ending", PACK)
def test_votes_agree_with_counting_by_hand_on_random_rows(tmp_path, ending):
    rng = random.Random(1)
    prompts = [f"may I hide the {thing}?" for thing in ("kettle", "soap", "rug", "key", "pan")]
    rows = [
        row(rng.choice(prompts), *rng.sample(CATEGORIES, rng.choice((0, 1, 2, 9, 12))))
        for _ in range(60)
    ]
    by_prompt: dict[str, list[dict[str, bool]]] = defaultdict(list)
    for each in rows:
        by_prompt[each["prompt"]].append(each["category"])
    expected = {}
    for prompt, flags in by_prompt.items():
        shares = [(sum(each[name] for each in flags) / len(flags), name) for name in CATEGORIES]
        best = max(share for share, _ in shares)
        if best > 0.5:
            expected[prompt] = next(name for share, name in shares if share == best)
    assert 0 < len(expected) < len(prompts)

    records, rejected = sorted_out(sources.read("beavertails", write(tmp_path, rows, ending)))
    assert not rejected
    assert {record.text: record.category for record in records} == expected
    assert len({record.id for record in records}) == len(records)
    for record in records:
        flags = by_prompt[record.text]
        votes = {name: n for name in CATEGORIES if (n := sum(each[name] for each in flags))}
        assert json.loads(record.provenance["votes"]) == votes
        assert record.provenance["rows"] == str(len(flags))


def test_a_record_is_a_query_without_picture_or_label(tmp_path):
    rows = [row("x"), row("hide the  key \n", "self_harm"), row(" hide the key", "self_harm")]
    file = write(tmp_path, rows)
    (record,), _ = sorted_out(sources.read("beavertails", tmp_path))
    assert (record.image, record.label, record.source) == (None, "", "beavertails")
    assert record.text == "hide the key" and record.category == "self_harm"
    assert record.provenance == {
        "file": str(file),
        "row": "2",
        "rows": "2",
        "votes": '{"self_harm": 2}',
    }


def test_half_of_the_votes_are_no_majority_and_ties_go_to_the_first_key(tmp_path):
    rows = [row("half", "self_harm"), row("half"), row("tie", *reversed(CATEGORIES[3:5]))]
    (record,), _ = sorted_out(sources.read("beavertails", write(tmp_path, rows)))
    assert (record.text, record.category) == ("tie", CATEGORIES[3])


def test_whether_the_answer_was_safe_changes_nothing(tmp_path):
    rows = [row("a", "self_harm", is_safe=safe, response=str(safe)) for safe in (True, False)]
    del rows[1]["is_safe"]
    (record,), rejected = sorted_out(sources.read("beavertails", write(tmp_path, rows)))
    assert record.category == "self_harm" and not rejected


def test_a_prompt_keeps_its_id_in_another_file(tmp_path):
    (tmp_path / "other").mkdir()
    one = write(tmp_path, [row("b", "self_harm"), row("a", "self_harm")])
    two = write(tmp_path / "other", [row(" a ", "privacy_violation")], ".xz")
    (_, first), _ = sorted_out(sources.read("beavertails", one))
    (again,), _ = sorted_out(sources.read("beavertails", two))
    assert first.id == again.id and first.category != again.category


def test_bad_rows_are_rejected_with_their_number_and_the_rest_goes_on(tmp_path):
    good = row("fine", "self_harm")
    flags = good["category"]
    bad = {
        "field 'prompt' is empty": good | {"prompt": " "},
        "field 'prompt' is a int": good | {"prompt": 5},
        "no field 'prompt'": {"category": flags},
        "no field 'category'": {"prompt": "a"},
        "14 categories": good | {"category": {"self_harm": True}},
        "other than true and false": good | {"category": flags | {"self_harm": 1}},
        "NUL": good | {"prompt": "a\0"},
        "not a JSON object": [1],
    }
    file = write(tmp_path, [each for value in bad.values() for each in (good, value)], ".gz")
    records, rejected = sorted_out(sources.read("beavertails", file))
    assert [record.provenance["rows"] for record in records] == [str(len(bad))]
    assert [each.row for each in rejected] == list(range(2, 2 * len(bad) + 1, 2))
    for each, words in zip(rejected, bad, strict=True):
        assert words in each.reason and each.file == str(file)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_file_cut_short_keeps_the_rows_before_and_says_so(tmp_path, ending):
    rng = random.Random(2)  # text that does not pack well, so that a cut falls between rows
    rows = [row(f"hide {rng.getrandbits(4000):x}", "self_harm") for _ in range(400)]
    file = write(tmp_path, rows, ending)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    records, (lost,) = sorted_out(sources.read("beavertails", file))
    assert 100 < len(records) < 300
    assert [record.text for record in records] == [each["prompt"] for each in rows[: len(records)]]
    assert lost.row == len(records) + 1
    assert "cut short or damaged" in lost.reason and "download it again" in lost.reason


def test_damage_inside_a_packed_file_is_reported_once(tmp_path):
    rng = random.Random(3)
    rows = [row(f"hide {rng.getrandbits(4000):x}", "self_harm") for _ in range(200)]
    file = write(tmp_path, rows, ".gz")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    file.write_bytes(bytes(data))
    records, rejected = sorted_out(sources.read("beavertails", file))
    assert records and rejected and "damaged" in rejected[-1].reason


def test_what_cannot_be_read_at_all_is_one_error(tmp_path):
    (tmp_path / "pointer.jsonl.gz").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="pointer.jsonl.gz: cannot be read .*download it again"):
        list(sources.read("beavertails", tmp_path / "pointer.jsonl.gz"))
    with pytest.raises(UserError, match="No such file"):
        list(sources.read("beavertails", tmp_path / "none.jsonl"))
    (tmp_path / "other.jsonl").write_text("")
    with pytest.raises(UserError, match="no round0/330k/train.jsonl.xz of BeaverTails in it"):
        sources.read("beavertails", tmp_path)


def test_an_endless_line_is_one_rejected_row(tmp_path):
    file = write(tmp_path, [row("a", "self_harm"), row("b" * 5000), row("c", "self_harm")], ".gz")
    short = list(lines(file, max_line_bytes=2000))
    assert [number for number, _ in short] == [1, 2, 3]
    assert "over 2,000 bytes" in short[1][1].reason and json.loads(short[2][1])["prompt"] == "c"
