"""Rows and verdicts in other tools' files; the tools themselves read them where installed."""

import json
from pathlib import Path

import pytest

from crossguard_jax.data.records import Record
from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.evals.interchange import write_guardbench, write_inspect
from tests.evals.scored import picture

ROWS = [
    Record("a", (picture("navy"),), "may i ?", "unsafe", "hot", provenance={"pair": "1"}),
    Record("b", (picture("navy"), picture("red")), "may we ?", "safe", provenance={"pair": "1"}),
    Record("c", (), "and now\nwith two lines — ?", "unsafe"),
    Record("d", (picture("red"),), "", "safe"),
]
TESTS = {"Mine (all)": ROWS}


def scores(*p_unsafe: float | None) -> ScoredRows:
    return ScoredRows.from_rows(
        [
            {"id": r.id, "label": r.label, "p_unsafe": p, "reason": "busy" if p is None else ""}
            for r, p in zip(ROWS, p_unsafe, strict=True)
        ],
        "Mine (all)",
    )


SYSTEMS = {"one": scores(0.9, 0.2, 0.4, 0.1), "two": scores(0.1, 0.6, None, None)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inspect(TESTS, SYSTEMS, tmp_path)
    write_guardbench(TESTS, SYSTEMS, tmp_path)
    return tmp_path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sample_has_its_pictures_text_truth_and_what_systems_think(folder):
    first, second, third, fourth = lines(folder / "inspect" / "mine_all.jsonl")
    (message,) = second["input"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image", "image", "text"] and message["role"] == "user"
    files = [Path(part["image"]) for part in message["content"][:2]]
    assert [file.read_bytes() for file in files] == list(ROWS[1].images)
    assert first["input"][0]["content"][0]["image"] == str(files[0])  # a picture is written once
    assert (first["target"], first["metadata"]["category"]) == ("unsafe", "hot")
    assert first["metadata"]["pair"] == second["metadata"]["pair"] == "1"
    assert third["metadata"]["p_unsafe"] == {"one": 0.4, "two": None}
    assert [part["type"] for part in fourth["input"][0]["content"]] == ["image"]


def test_guardbenchs_rows_are_texts_with_a_place_for_each_picture(folder):
    rows = lines(folder / "guardbench" / "mine_all.jsonl")
    assert [row["label"] for row in rows] == [True, False, True, False]
    texts = [row["conversation"][0]["content"] for row in rows]
    assert texts[0] == "<image>\nmay i ?" and texts[1].startswith("<image>\n<image>\n")
    assert texts[2] == ROWS[2].text and texts[3] == "<image>"
    two = json.loads((folder / "guardbench/predictions/mine_all/two.json").read_text())
    assert two == {"a": 0.1, "b": 0.6, "c": 0.0, "d": 1.0}  # no answer is wrong


def test_inspect_ai_reads_the_samples(folder):
    dataset = pytest.importorskip("inspect_ai.dataset", reason="inspect_ai is not installed")
    samples = [*dataset.json_dataset(str(folder / "inspect" / "mine_all.jsonl"))]
    assert [sample.id for sample in samples] == list("abcd")
    assert [sample.target for sample in samples] == ["unsafe", "safe", "unsafe", "safe"]
    content = samples[1].input[0].content
    assert [part.type for part in content] == ["image", "image", "text"]
    assert Path(content[0].image).read_bytes() == ROWS[1].images[0]
    assert samples[2].input[0].text == ROWS[2].text
    assert samples[0].metadata["p_unsafe"]["one"] == 0.9


def test_guardbench_reads_the_rows_and_counts_as_we_do(folder, monkeypatch, tmp_path):
    reason = "guardbench is not installed"
    custom = pytest.importorskip("guardbench.datasets.custom_dataset", reason=reason)
    counting = pytest.importorskip("guardbench.evaluate", reason=reason)
    monkeypatch.setenv("GUARDBENCH_DEV_PATH", str(tmp_path / "home"))
    path = folder / "guardbench" / "mine_all.jsonl"
    truth = custom.CustomDataset("mine").load_data(path).get_ground_truth()
    for name, of in SYSTEMS.items():
        said = json.loads((folder / f"guardbench/predictions/mine_all/{name}.json").read_text())
        counted = counting.evaluate(truth, said)
        flagged = of.counted >= 0.5
        assert counted["fn"] == (~flagged & of.unsafe).sum()
        assert counted["fp"] == (flagged & ~of.unsafe).sum()
