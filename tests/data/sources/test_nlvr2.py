"""The reader of NLVR2 and the answers of VQAv2, on trees in the layout of the download."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tasks import vqa_scores
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected

GOOD = {"sentence": "Both are cups.", "label": "True", "identifier": "dev-850-2-1"}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def tree(root: Path, rows: list, pictures: str = "images/dev", json_at: str = ".") -> Path:
    (root / json_at).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / json_at / "dev.json").write_text(text)
    (root / pictures).mkdir(parents=True, exist_ok=True)
    noise(30, 20).save(root / pictures / "dev-850-2-img0.png")
    noise(10, 20, seed=1).save(root / pictures / "dev-850-2-img1.png", "JPEG")  # NLVR2 has such
    return root


@pytest.mark.parametrize("pictures", ["images/dev", "images/dev/45", "dev", "dev/45", "images"])
@pytest.mark.parametrize("json_at", [".", "data"])
def test_nlvr2_gives_the_left_and_the_right_picture(tmp_path, pictures, json_at):
    row = GOOD | {"directory": 45, "left_url": "http://a", "right_url": "http://b"}
    path = tree(tmp_path, [row, row | {"label": "False", "identifier": "dev-850-2-0"}], pictures)
    tree(tmp_path, [row, row | {"label": "False", "identifier": "dev-850-2-0"}], pictures, json_at)
    rows = list(sources.read("nlvr2", path, split="dev"))
    assert [(r.id, r.label, r.text) for r in rows] == [
        ("nlvr2-dev-850-2-1", "true", GOOD["sentence"]),
        ("nlvr2-dev-850-2-0", "false", GOOD["sentence"]),
    ]
    files = [tmp_path / pictures / f"dev-850-2-img{n}.png" for n in (0, 1)]
    assert rows[0].images == tuple(file.read_bytes() for file in files)


def test_a_split_file_and_another_picture_folder_may_be_named(tmp_path):
    path = tree(tmp_path, [GOOD], "elsewhere")
    (record,) = sources.read("nlvr2", path / "dev.json", pictures=tmp_path / "elsewhere")
    assert isinstance(record, Record) and record.provenance["row"] == "1"


def test_nlvr2_rejects_bad_rows_and_missing_pictures_and_goes_on(tmp_path):
    bad = {
        "no field 'identifier'": {"sentence": "a", "label": "True"},
        "identifier 'dev-850' is not split-set-pair-sentence": GOOD | {"identifier": "dev-850"},
        "identifier 5 is not split-set-pair-sentence": GOOD | {"identifier": 5},
        "label 'maybe' is neither": GOOD | {"label": "maybe"},
        "no field 'label'": {"identifier": "dev-850-2-1", "sentence": "a"},
        "field 'sentence' is empty": GOOD | {"sentence": ""},
        f"{tmp_path}/images/dev/dev-1-2-img0.png: the picture does not exist": GOOD
        | {"identifier": "dev-1-2-0"},
        "not a JSON object": [1],
    }
    rows = list(sources.read("nlvr2", tree(tmp_path, [*bad.values(), GOOD]), split="dev"))
    assert isinstance(rows[-1], Record) and all(isinstance(row, Rejected) for row in rows[:-1])
    for number, (row, words) in enumerate(zip(rows, bad, strict=False), start=1):
        assert row.row == number and row.reason.startswith(words)


def test_nlvr2_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="say which split"):
        sources.read("nlvr2", tmp_path)
    with pytest.raises(UserError, match="dev.json: cannot be read"):
        list(sources.read("nlvr2", tmp_path, split="dev"))


def test_the_ten_answers_of_vqav2_stay_ten_whatever_is_in_them(tmp_path):
    said = ["two\ncups", 5, *["2 cups"] * 8]
    answers = [{"answer": text, "answer_id": 1} for text in said]
    row = {"question_id": 7, "image_id": 9, "answers": answers}
    question = {"question_id": 7, "image_id": 9, "question": "What?"}
    release = "mscoco_val2014"
    for name, content in {
        f"v2_OpenEnded_{release}_questions.json": {"questions": [question]},
        f"v2_{release}_annotations.json": {"annotations": [row]},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "val2014").mkdir()
    noise(8, 8).save(tmp_path / "val2014" / "COCO_val2014_000000000009.jpg")
    (record,) = sources.read("vqav2", tmp_path, split="val")
    kept = record.provenance["answers"].split("\n")
    assert kept == ["two cups", "5", *["2 cups"] * 8]
    assert vqa_scores(["Two cups"], [kept]) == 1
