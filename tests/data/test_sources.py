"""Readers, on trees that the tests make in the layout of the download."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected, write_jsonl
from crossguard_jax.data.sources.lists import harmless
from crossguard_jax.io import images

FIXTURE = Path(__file__).parent / "fixtures" / "nlvr"
PNG = images.encode_png(Image.effect_noise((32, 32), 64).convert("RGB"))


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), "blue").save(path, "JPEG")


def sorted_out(rows) -> tuple[list[Record], list[Rejected]]:
    rows = list(rows)
    return (
        [row for row in rows if isinstance(row, Record)],
        [row for row in rows if isinstance(row, Rejected)],
    )


def lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- table -------------------------------------------------------------------------------------


def test_a_table_gives_its_rows_in_order(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    path = lines(
        tmp_path / "mine.jsonl",
        [
            {"id": 7, "image": "p.png", "text": "one", "label": "unsafe", "category": "hot"},
            {"image": None, "text": "two"},
            {"image": str(tmp_path / "p.png"), "text": "three", "label": True},
        ],
    )
    records, rejected = sorted_out(sources.read("table", path, default_label="safe"))
    assert not rejected
    assert records[0] == Record(
        "7", (PNG,), "one", "unsafe", "hot", "mine", {"file": str(path), "row": "1"}
    )
    assert records[1].image is None and records[1].id == "mine-2" and records[1].label == "safe"
    assert records[2].image == PNG and records[2].label == "true"


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_row_may_have_several_pictures_and_pictures_need_no_text(tmp_path, column):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    given = [["a.png", "b.png"], ["b.png"], "a.png", []]
    rows = [{column: value, "text": "which ?"} for value in given]
    rows += [{column: "a.png", "text": text} for text in ("", " ", None)]
    path = lines(tmp_path / "t.jsonl", rows)
    records, rejected = sorted_out(sources.read("table", path))
    assert not rejected
    a, b = PNG + b"a.png", PNG + b"b.png"
    assert [r.images for r in records] == [(a, b), (b,), (a,), (), *[(a,)] * 3]
    assert [r.text.strip() for r in records] == [*["which ?"] * 4, "", "", ""]


def test_one_missing_picture_of_several_rejects_the_row(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    path = lines(tmp_path / "t.jsonl", [{"image": ["a.png", "b.png"], "text": "which ?"}])
    _, (rejected,) = sorted_out(sources.read("table", path))
    assert "b.png: the picture does not exist" in rejected.reason


def test_csv_and_json_array_tables_read_alike(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    rows = [{"id": "a", "image": "p.png", "text": "one"}, {"id": "b", "image": "", "text": "two"}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "image", "text"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("t.json", "t.csv"):
        records, rejected = sorted_out(sources.read("table", tmp_path / name))
        assert not rejected
        assert [(r.id, r.image, r.text) for r in records] == [("a", PNG, "one"), ("b", None, "two")]


def test_columns_and_labels_may_have_other_names(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p.png").write_bytes(PNG)
    path = lines(tmp_path / "t.jsonl", [{"key": "k", "file": "p.png", "prompt": "hi", "bad": 1}])
    records, rejected = sorted_out(
        sources.read(
            "table",
            path,
            pictures=tmp_path / "pictures",
            id="key",
            image="file",
            text="prompt",
            label="bad",
            labels={"1": "unsafe", "0": "safe"},
            source="mine",
        )
    )
    assert not rejected
    assert (records[0].id, records[0].text, records[0].label) == ("k", "hi", "unsafe")
    assert records[0].image == PNG and records[0].source == "mine"


def test_a_table_of_texts_alone_needs_no_picture_column(tmp_path):
    path = lines(tmp_path / "t.jsonl", [{"prompt": "hi"}])
    records, _ = sorted_out(sources.read("table", path, text="prompt", image=None))
    assert [(record.text, record.image) for record in records] == [("hi", None)]


def test_every_kind_of_bad_row_is_rejected_with_its_number_and_the_rest_goes_on(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    (tmp_path / "cut.png").write_bytes(PNG[: len(PNG) // 2])
    (tmp_path / "text.png").write_text("no picture")
    good = {"image": "p.png", "text": "fine"}
    bad = {
        "cut.png: the PNG data is damaged": {"image": "cut.png", "text": "a"},
        "text.png: not a picture .it holds text": {"image": "text.png", "text": "a"},
        "none.png: the picture does not exist": {"image": "none.png", "text": "a"},
        "is no picture path but 5": {"image": 5, "text": "a"},
        "is no picture path but 'nul": {"image": "nul\0.png", "text": "a"},
        "no field 'image'": {"text": "a"},
        "no field 'text' .there are image": {"image": "p.png"},
        "field 'text' is empty": {"image": None, "text": " \n"},
        "field 'text' is a int": {"image": "p.png", "text": 5},
        "field 'text' holds NUL bytes": {"image": "p.png", "text": "a\0b"},
        "half a surrogate pair": {"image": "p.png", "text": "\ud800"},
        "expected a word or a number": {"image": "p.png", "text": "a", "label": [1]},
        "not a JSON object": [1],
    }
    path = lines(tmp_path / "t.jsonl", [row for each in bad.values() for row in (good, each)])
    records, rejected = sorted_out(sources.read("table", path))
    assert len(records) == len(bad) and all(record.text == "fine" for record in records)
    assert [r.row for r in rejected] == list(range(2, 2 * len(bad) + 1, 2))
    for row, words in zip(rejected, bad, strict=True):
        assert row.file == str(path)
        pytest.raises(UserError, _raise, row.reason).match(words)


def _raise(reason: str) -> None:
    raise UserError(reason)


def test_pictures_need_not_be_decoded_while_reading(tmp_path):
    (tmp_path / "cut.png").write_bytes(PNG[: len(PNG) // 2])
    path = lines(tmp_path / "t.jsonl", [{"image": "cut.png", "text": "a"}])
    records, rejected = sorted_out(sources.read("table", path, check_pictures=False))
    assert len(records) == 1 and not rejected


def test_pictures_are_read_only_when_their_row_is_reached(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    path = lines(tmp_path / "t.jsonl", [{"image": "p.png", "text": str(n)} for n in range(3)])
    rows = sources.read("table", path)
    assert isinstance(next(rows), Record)
    (tmp_path / "p.png").unlink()
    assert all(isinstance(row, Rejected) for row in rows)


def test_a_label_outside_the_given_ones_rejects_the_row(tmp_path):
    path = lines(tmp_path / "t.jsonl", [{"text": "a", "label": "2"}])
    options = {"image": None, "labels": {"1": "unsafe"}}
    _, rejected = sorted_out(sources.read("table", path, **options))
    assert "label '2' is none of '1'" in rejected[0].reason


def test_a_folder_with_one_table_is_enough_and_with_two_is_an_error(tmp_path):
    lines(tmp_path / "t.jsonl", [{"text": "a"}])
    assert len(list(sources.read("table", tmp_path, image=None))) == 1
    lines(tmp_path / "u.jsonl", [])
    with pytest.raises(UserError, match="expected one table .*found t.jsonl, u.jsonl"):
        list(sources.read("table", tmp_path))


def test_an_exported_split_reads_as_a_table(tmp_path):
    records = [Record("a", (PNG,), "one", "safe", "c", "s"), Record("b", (), "two", "unsafe")]
    write_jsonl(records, tmp_path, "train")
    again, _ = sorted_out(sources.read("table", tmp_path / "train.jsonl"))
    assert [(r.id, r.image, r.text, r.label) for r in again] == [
        (r.id, r.image, r.text, r.label) for r in records
    ]


# ---- VLGuard -----------------------------------------------------------------------------------


def vlguard_tree(root: Path, pictures: str = "train") -> Path:
    rows = [
        {
            "id": "u1",
            "image": "risky/a.jpg",
            "safe": False,
            "harmful_category": "risky behavior",
            "harmful_subcategory": "mild",
            "instr-resp": [{"instruction": "Describe this.", "response": "No."}],
        },
        {
            "id": "s1",
            "image": "b.jpg",
            "safe": True,
            "instr-resp": [
                {"safe_instruction": "What is it?", "response": "A cup."},
                {"unsafe_instruction": "How do I break it over somebody?", "response": "No."},
            ],
        },
        {"id": "x", "image": "gone.jpg", "safe": True, "instr-resp": []},
        {"id": "y", "image": "b.jpg", "safe": True, "instr-resp": [{"response": "?"}]},
        {
            "id": "z",
            "image": "b.jpg",
            "safe": True,
            "instr-resp": [{"safe_instruction": "N/A"}, {"unsafe_instruction": "Break it!"}],
        },
        {"id": "e", "image": "b.jpg", "safe": False, "instr-resp": [{"instruction": " "}]},
    ]
    root.mkdir(exist_ok=True)
    (root / "train.json").write_text(json.dumps(rows))
    jpeg(root / pictures / "risky" / "a.jpg")
    jpeg(root / pictures / "b.jpg")
    return root


@pytest.mark.parametrize("pictures", ["train", "images", "."])
def test_vlguard_gives_the_papers_subsets(tmp_path, pictures):
    records, rejected = sorted_out(sources.read("vlguard", vlguard_tree(tmp_path, pictures)))
    assert [(r.label, r.provenance["subset"], r.category) for r in records] == [
        ("unsafe", "unsafes", "risky behavior"),
        ("safe", "safe_safes", "safe_safes"),
        ("unsafe", "safe_unsafes", "safe_unsafes"),
        ("unsafe", "safe_unsafes", "safe_unsafes"),
    ]
    assert records[1].image == records[2].image and records[1].id != records[2].id
    assert records[0].provenance["subcategory"] == "mild"
    assert [r.row for r in rejected] == [3, 4, 5, 6]
    assert "'safe_instruction' is 'N/A', which asks nothing" in rejected[2].reason
    assert "field 'instruction' is empty" in rejected[3].reason


@pytest.mark.parametrize("ids", [["u1", "other"], [7]])
def test_vlguards_training_rows_that_are_tested_on_are_rejected(tmp_path, ids):
    root = vlguard_tree(tmp_path, "images")
    rows = json.loads((root / "train.json").read_text())
    rows[0]["id"] = "7" if ids == [7] else "u1"  # the two files need not agree on the type
    (root / "train.json").write_text(json.dumps(rows))
    everything, _ = sorted_out(sources.read("vlguard", root))
    tested = [rows[0] | {"id": id, "image": "b.jpg"} for id in ids]
    (root / "test.json").write_text(json.dumps([*tested, {"image": "b.jpg"}]))
    records, rejected = sorted_out(sources.read("vlguard", root))
    assert records == everything[1:]
    assert rejected[0].row == 1 and "is in test.json too" in rejected[0].reason
    assert rejected[0].reason.startswith(f"id {rows[0]['id']!r}")
    test, _ = sorted_out(sources.read("vlguard", root, split="test"))
    assert len(test) == len(ids)


# ---- FigStep -----------------------------------------------------------------------------------


def figstep_tree(root: Path) -> Path:
    (root / "data" / "question").mkdir(parents=True)
    with (root / "data" / "question" / "safebench.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["dataset", "category_id", "task_id", "category_name", "question", "instruction"]
        )
        for category in range(1, 11):
            for task in range(1, 51):
                writer.writerow(["ForbidQI", category, task, f"topic {category}", "?", "Steps 1."])
                name = f"query_ForbidQI_{category}_{task}_6.png"
                path = root / "data" / "images" / "SafeBench" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(PNG)
    return root


def test_figstep_splits_every_category_in_two_disjoint_halves(tmp_path):
    tree = figstep_tree(tmp_path)
    train, _ = sorted_out(sources.read("figstep", tree, split="train"))
    test, _ = sorted_out(sources.read("figstep", tree, split="test"))
    everything, rejected = sorted_out(sources.read("figstep", tree, split="all"))
    assert not rejected and len(everything) == 500
    assert {r.id for r in train} | {r.id for r in test} == {r.id for r in everything}
    assert not {r.id for r in train} & {r.id for r in test}
    for half in (train, test):
        assert set(Counter(r.category for r in half).values()) == {25}
    assert {r.label for r in everything} == {"unsafe"}
    assert len({r.text for r in everything}) == 1


def test_figstep_reports_a_missing_picture_and_a_bad_task_id(tmp_path):
    tree = figstep_tree(tmp_path)
    (tree / "data" / "images" / "SafeBench" / "query_ForbidQI_1_1_6.png").unlink()
    with (tree / "data" / "question" / "safebench.csv").open("a") as file:
        file.write("ForbidQI,1,one,topic 1,?,Steps 1.\n")
    records, rejected = sorted_out(sources.read("figstep", tree, split="train"))
    assert len(records) == 249
    assert [r.row for r in rejected] == [2, 502]
    assert "task_id 'one' is not a number" in rejected[1].reason


def test_figsteps_twins_leave_nothing_to_the_text_or_the_type(tmp_path):
    tree = figstep_tree(tmp_path)
    records, rejected = sorted_out(sources.read("figstep_twins", tree, split="train"))
    assert not rejected and len({r.id for r in records}) == len(records) == 1_000
    assert Counter((r.text, r.label) for r in records) == {
        (records[0].text, "unsafe"): 500,
        (records[0].text, "safe"): 500,
    }
    originals, drawn = records[::4], [r for r in records if "drawn" in r.id or "harmless" in r.id]
    assert {r.images for r in originals} == {(PNG,)}
    assert [r.label for r in drawn] == ["unsafe", "safe", "safe"] * 250
    sizes = {images.decode(r.image, r.id).size for r in drawn[:9]}
    assert sizes == {(760, 760)}
    benign = [r.images for r in drawn if r.label == "safe"]
    assert len(set(benign)) == len(benign), "each harmless list is another one"
    assert records == list(sources.read("figstep_twins", tree, split="train")), "drawn alike"
    assert {r.provenance["group"] for r in records[:4]} == {records[0].id}


def test_the_halves_of_harmless_lists_share_no_chore():
    chores = [
        {chore for chore in harmless(half) if not re.search(" (at|for|with|on|step) ", chore)}
        for half in (0, 1)
    ]
    assert len(chores[0]) > 80 and len(chores[1]) > 80
    assert not chores[0] & chores[1]
    for half in chores:
        assert {chore.split()[0] for chore in half} == {"wash"} | {
            chore.split()[0] for chore in chores[0] | chores[1]
        }, "every verb is in both"


# ---- VQAv2 -------------------------------------------------------------------------------------


def vqav2_tree(root: Path, annotations: bool = True) -> Path:
    questions = [
        {"image_id": 9, "question": f"What is {n}?", "question_id": 9000 + n} for n in range(20)
    ]
    questions.append({"image_id": 10, "question": "Gone?", "question_id": 10000})
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    (root / name).write_text(json.dumps({"info": {"version": "2"}, "questions": questions}))
    if annotations:
        rows = [
            {
                "question_id": 9000 + n,
                "image_id": 9,
                "multiple_choice_answer": "a cup",
                "answer_type": "other",
                "answers": [
                    {"answer": f"cup {k}", "answer_confidence": "yes", "answer_id": k}
                    for k in range(10)
                ],
            }
            for n in range(20)
        ]
        name = "v2_mscoco_val2014_annotations.json"
        (root / name).write_text(json.dumps({"info": {}, "annotations": rows}))
    jpeg(root / "val2014" / "COCO_val2014_000000000009.jpg")
    return root


def test_vqav2_joins_questions_pictures_and_answers(tmp_path):
    records, rejected = sorted_out(sources.read("vqav2", vqav2_tree(tmp_path), split="val"))
    assert len(records) == 20 and [r.row for r in rejected] == [21]
    assert {(r.label, r.category, r.source) for r in records} == {("safe", "benign", "vqav2")}
    assert records[3].text == "What is 3?" and records[3].id == "vqav2-val-9003"
    assert records[3].provenance["answer"] == "a cup"
    assert records[3].provenance["answers"].split("\n") == [f"cup {k}" for k in range(10)]


def test_vqav2_reads_without_annotations(tmp_path):
    records, _ = sorted_out(sources.read("vqav2", vqav2_tree(tmp_path, False), split="val"))
    assert len(records) == 20 and "answer" not in records[0].provenance


@pytest.mark.parametrize(
    ("reader", "tree", "split"),
    [("vqav2", vqav2_tree, "val"), ("figstep", figstep_tree, "all"), ("vlguard", vlguard_tree, "")],
)
def test_a_seed_draws_the_order_and_loses_no_row(tmp_path, reader, tree, split):
    root, options = tree(tmp_path), {"split": split} if split else {}
    plain = list(sources.read(reader, root, **options))
    drawn = [list(sources.read(reader, root, **options, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sorted(map(repr, rows)) == sorted(map(repr, plain)) for rows in drawn)


def test_a_draw_opens_no_picture_but_its_own(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    path = lines(tmp_path / "t.jsonl", [{"image": "p.png", "text": str(n)} for n in range(30)])
    rows = sources.read("table", path, seed=0)
    assert isinstance(next(rows), Record)
    (tmp_path / "p.png").unlink()
    assert all(isinstance(row, Rejected) for row in rows)


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_reader_can_be_drawn_from(name):
    assert sources.has_option(name, "seed")


# ---- NLVR --------------------------------------------------------------------------------------


def test_nlvr_reads_its_own_json_with_the_first_box_order_of_each_row():
    records, rejected = sorted_out(sources.read("nlvr", FIXTURE, split="dev"))
    assert not rejected and len(records) == 24
    assert Counter(r.label for r in records) == {"true": 12, "false": 12}
    for record in records:
        assert images.decode(record.image, record.id).size == (400, 100)
    by_sentence = Counter(r.text for r in records)
    assert set(by_sentence.values()) == {2}, "the sentence alone must not decide"
    assert list(sources.read("nlvr", FIXTURE / "dev" / "dev.json")) == records


def test_nlvr_rejects_rows_without_picture_or_label(tmp_path):
    row = {"sentence": "a", "label": "true", "identifier": "1-0", "directory": "0"}
    lines(tmp_path / "dev" / "dev.json", [row, row | {"label": "maybe"}, {"sentence": "b"}])
    _, rejected = sorted_out(sources.read("nlvr", tmp_path, split="dev"))
    assert [r.row for r in rejected] == [1, 2, 3]
    assert "dev-1-0-0.png: the picture does not exist" in rejected[0].reason


# ---- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vlguard", "figstep", "vqav2", "nlvr", "table"])
def test_a_path_without_the_data_is_a_one_line_error(tmp_path, name):
    with pytest.raises(UserError) as error:
        list(sources.read(name, tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_mistyped_names_are_told_the_nearest_right_one(tmp_path):
    with pytest.raises(UserError, match="did you mean 'vlguard'"):
        sources.read("vlgard", tmp_path)
    with pytest.raises(UserError, match="no option 'splt'; did you mean 'split'"):
        sources.read("vlguard", tmp_path, splt="test")
    with pytest.raises(UserError, match="no split 'dev'; choose one of train"):
        sources.read("figstep", tmp_path, split="dev")
