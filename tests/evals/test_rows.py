"""Every row that a verb reads is used beside its own picture, or counted as left out."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from crossguard_jax import cli
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.prompts import get_template
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.data.sources import catalogue
from crossguard_jax.data.sources.beavertails import CATEGORIES
from crossguard_jax.data.sources.catalogue import CATALOGUE
from crossguard_jax.data.sources.reading import SourceRows, row_name
from crossguard_jax.evals import evaluate, kept
from crossguard_jax.evals.robustness.systems import NO_PICTURE, attackable
from crossguard_jax.evals.scoring import Unanswered, score_benchmarks
from crossguard_jax.evals.seen import seen_rows, seen_sections
from crossguard_jax.evals.summary import print_left_out, print_summary
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.mixture import answered, contents_hash, open_sources
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.trained import TrainedRow, content_hash, write_training_data
from crossguard_jax.io import images
from crossguard_jax.systems import scoring, store
from crossguard_jax.systems.controls import NOTHING
from tests.downloads import DOWNLOADS

LONG = "please " * 90


def png(seed: int) -> bytes:
    return images.encode_png(Image.new("RGB", (8, 6), (seed * 40 % 256, 9, 9)))


def redness(image: Any) -> float:
    return float(np.asarray(images.rgb(image))[0, 0, 0]) / 255


class StubGuard(Guard):
    """Scores a row by the redness of its picture; refuses texts over a length."""

    def __init__(self, limit: int = 300, prompt: str = "short", threshold: float = 0.5):
        self.limit = limit
        template = get_template(prompt)
        self.settings = SimpleNamespace(prompt=template, threshold=threshold, max_length=0)
        self.folder, self.mesh = Path("stub"), None

    def score_each(
        self, images: Sequence[Any], texts: Sequence[str], **options: Any
    ) -> list[Verdict | UserError]:
        return [self._score(*row) for row in zip(images, texts, strict=True)]

    def _score(self, pictures: Sequence[Any], text: str) -> Verdict | UserError:
        if len(text) > self.limit:
            return UserError(f"{len(text)} tokens, the limit is {self.limit}; shorten the text")
        try:
            p = redness(pictures[0]) if pictures else 0.25
        except UserError as error:
            return error
        return Verdict(p, p >= 0.5, 0.5, "unsafe" if p >= 0.5 else "safe", False)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``stub(name=guard, ...)``: what `Guard.from_pretrained` gives for each path."""

    def put(**guards: StubGuard) -> None:
        monkeypatch.setattr(
            Guard,
            "from_pretrained",
            classmethod(lambda cls, path, *a, prompt=None, **k: guards[str(path)]),
        )
        for module in (scoring, store, kept):
            monkeypatch.setattr(module, "identity", lambda system: {})

    return put


def table(folder: Path, rows: Sequence[dict[str, Any]], name: str = "t.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed_rows(folder: Path) -> list[dict[str, Any]]:
    """Ten rows, six of which are of no use to a guard; each good one's picture is its own."""
    for n in range(10):
        (folder / f"{n}.png").write_bytes(png(n))
    rows: list[dict[str, Any]] = [
        {
            "id": f"q{n}",
            "image": f"{n}.png",
            "text": "is it hot ?",
            "label": ("safe", "unsafe")[n % 2],
        }
        for n in range(10)
    ]
    rows[1]["text"] = LONG
    rows[2]["label"] = "perhaps"
    rows[3]["image"] = "missing.png"
    rows[4]["id"] = "q0"
    rows[5] |= {"text": " ", "image": None}
    rows[6]["label"] = ""
    return rows


WHY_UNANSWERED = "N tokens, the limit is N"
WHY = {
    "the picture does not exist": [4],
    "an earlier row has the same id": [5],
    "field 'text' is empty": [6],
    "label 'perhaps' is not 'safe' or 'unsafe'": [3],
    "label '' is not 'safe' or 'unsafe'": [7],
}


def run_evaluate(
    folder: Path, data: Sequence[str], models: Sequence[str] = ("one",), *more: str
) -> int:
    words = [f"--model {model}" for model in models] + [f"--data {each}" for each in data]
    return cli.main(f"evaluate {' '.join(words)} --out {folder / 'e'}".split() + [*more])


def test_evaluate_names_every_row_that_it_leaves_out_and_goes_on(tmp_path, stub, capsys):
    stub(one=StubGuard())
    path = table(tmp_path, mixed_rows(tmp_path))
    assert run_evaluate(tmp_path, [str(path)]) == 1
    out = capsys.readouterr().out
    lines = (tmp_path / "e" / "rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert {(row["file"], row["row"]) for row in rejected} == {
        (str(path), n) for rows in WHY.values() for n in rows
    }
    report = (tmp_path / "e" / "report.md").read_text()
    for why in WHY:
        assert f"1 of {path}: {why}" in out
        assert why.replace("'", "") in report.replace("\\", "").replace("'", "")
    assert "5 rows were left out" in out and "exit code 1" in out
    # A row that is good, and that the system gave no answer to, is out of nothing.
    (unanswered,) = (tmp_path / "e" / "no_answer.jsonl").read_text().splitlines()
    assert json.loads(unanswered)["row"] == 2
    assert f"1 of {path}: {WHY_UNANSWERED}" in out and "1 row has no answer" in out
    figures = json.loads((tmp_path / "e" / "report.json").read_text())
    assert figures["one.all.accuracy"]["n"] == 5
    assert (figures["one.all.no_answer"]["value"], figures["one.all.no_answer"]["n"]) == (1, 5)


def test_evaluate_says_which_rows_a_system_was_trained_on(tmp_path, stub, capsys, monkeypatch):
    stub(one=StubGuard(), two=StubGuard())
    path = table(tmp_path, mixed_rows(tmp_path)[7:])
    learned = [content_hash("is it hot ?", [png(n)]) for n in (8, 9)]
    (tmp_path / "two").mkdir()
    rows = [TrainedRow(str(n), "s", content) for n, content in enumerate(learned)]
    write_training_data(tmp_path / "two", rows)
    monkeypatch.chdir(tmp_path)
    assert run_evaluate(tmp_path, [str(path)], ("one", "two")) == 0
    out = capsys.readouterr().out
    assert "two was trained on 2 of the 3 rows of t" in out and "one was trained on" not in out
    assert "Rows that a system was trained on" in (tmp_path / "e" / "report.md").read_text()
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    for system in ("one", "two"):  # the same rows for both, or they would not be comparable
        assert report[f"{system}.t_trained_on.accuracy"]["n"] == 2
        assert report[f"{system}.t.accuracy"]["n"] == report[f"{system}.all.accuracy"]["n"] == 1


@pytest.mark.parametrize(
    ("name", "split", "learned", "apart"),
    [
        # The odd tasks, by their numbers, although the small set's pictures are others.
        ("figstep, tiny", "tiny", ("figstep", "train"), {"figstep": 30}),
        ("figstep", "all", ("figstep", "train"), {"figstep": 30}),
        # A picture that is in both splits, under another instruction.
        ("vlguard", "test", ("vlguard", "train"), {"vlguard_unsafes": 1}),
        ("mm_vet", "v1", ("figstep", "train"), {}),
    ],
)
def test_rows_of_a_benchmark_that_a_system_learned_from_are_a_column_of_their_own(
    tmp_path, stub, monkeypatch, name, split, learned, apart
):
    stub(one=StubGuard())
    for each in (name, learned[0]):
        DOWNLOADS[each].write(tmp_path / "in", 5)
    root, (reader, trained) = tmp_path / "in", learned
    # As a card lists them that was made where the test rows were not there to be left out.
    rows = sources.SOURCES[reader](root, split=trained)
    if reader == "vlguard":
        (root / "test.json").rename(root / "later.json")
        rows = list(sources.SOURCES[reader](root, split=trained))
        (root / "later.json").rename(root / "test.json")
    card = {word for r in rows for word in (content_hash(r.text, r.images), row_name(r.id))}
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        spec = f"{DOWNLOADS[name].reader}:{root}:{split}"
        tests = evaluate.read_benchmarks([spec], left_out)
    contents = {
        (benchmark, r.id): content_hash(r.text, r.images)
        for benchmark, rs in tests.items()
        for r in rs
    }
    seen = seen_rows(card, contents)
    assert Counter(benchmark for benchmark, _ in seen) == apart
    assert not seen_rows(set(), contents)
    (section,) = seen_sections({"one": seen}, contents) or [None]
    assert (section is None) == (not apart)


def test_what_is_said_of_published_sets_is_printed_and_in_the_report(
    tmp_path, stub, capsys, monkeypatch
):
    stub(one=StubGuard())
    DOWNLOADS["vlguard"].write(tmp_path / "in", 4)
    (tmp_path / "in" / "test" / "bad_ads" / "test_2.png").unlink()
    spec = f"vlguard:{tmp_path / 'in'}:test"
    words = ("licence: none stated", "1 row has no picture and stays")
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        tests = evaluate.read_benchmarks([spec], left_out)
    assert {name: len(rows) for name, rows in tests.items()} == {
        "vlguard_unsafes": 1,
        "vlguard_safe_safes": 2,
        "vlguard_safe_unsafes": 2,
    }
    assert all(each in capsys.readouterr().out for each in (f"{words[1]} out of the denominator",))

    # A control, whose rows are no longer what its system was trained on.
    row = tests["vlguard_unsafes"][0]
    (tmp_path / "one").mkdir()
    learned = [TrainedRow("1", "s", content_hash(row.text, row.images))]
    write_training_data(tmp_path / "one", learned)
    monkeypatch.chdir(tmp_path)
    more = ("--missing-pictures", "in", "--blank", "picture")
    assert run_evaluate(tmp_path, [spec], ["one"], *more) == 0
    out, text = capsys.readouterr().out, (tmp_path / "e" / "report.md").read_text()
    for each in (words[0], f"{words[1]} in the denominator (scored by what is there)"):
        assert each in out and each in text
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    counts = {
        name: report[f"one.{name}.accuracy"]["n"]
        for name in ("vlguard_unsafes", "vlguard_unsafes_trained_on", "vlguard_safe_safes", "all")
    }
    assert list(counts.values()) == [1, 1, 2, 5]


def test_score_says_what_evaluate_says_and_takes_the_same_choice(tmp_path, stub, capsys):
    stub(one=StubGuard())
    DOWNLOADS["siuo"].write(tmp_path / "in", 4)
    (tmp_path / "in" / "images" / "S-02.png").unlink()
    words = f"score --model one --format siuo --input {tmp_path / 'in'} --output {tmp_path}/o.jsonl"
    assert cli.main(words.split()) == 1
    out = capsys.readouterr().out
    assert "SIUO: 3 records read; licence: CC BY-NC 4.0; for evaluation only" in out
    assert "4 rows where 167 are published" in out and "out of the denominator" in out
    assert cli.main(f"{words} --restart --missing-pictures in".split()) == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 4
    assert cli.main(f"{words} --format table --missing-pictures in".split()) == 2


def test_evaluate_without_bad_rows_says_nothing_of_them(tmp_path, stub, capsys):
    stub(one=StubGuard())
    (tmp_path / "0.png").write_bytes(png(1))
    rows = [{"id": n, "image": "0.png", "text": "t", "label": "safe"} for n in range(3)]
    assert run_evaluate(tmp_path, [str(table(tmp_path, rows))]) == 0
    assert "left out" not in capsys.readouterr().out
    assert "left out" not in (tmp_path / "e" / "report.md").read_text()


def test_two_rows_of_one_line_that_have_no_answer_count_as_two(tmp_path):
    at = {"file": "pairs.jsonl", "row": "3"}
    with Unanswered(tmp_path / "no_answer.jsonl") as unanswered:
        for id in ("3-safe", "3-unsafe", "3-unsafe"):
            unanswered.add_record(Record(id, (), "t", provenance=at), "one", UserError("too long"))
    assert unanswered.total == 2 and dict(unanswered.counts) == {("pairs.jsonl", "too long"): 2}


def test_a_row_of_which_a_control_sees_nothing_is_no_fault(tmp_path, capsys):
    with Unanswered(tmp_path / "no_answer.jsonl") as unanswered:
        for name, why in NOTHING.items():
            unanswered.add_record(Record(name, (), "t"), "control", UserError(why))
        assert unanswered.total == 2 and print_left_out(unanswered) == 0
        assert "2 rows have no answer" in capsys.readouterr().out
        unanswered.add_record(Record("other", (), "t"), "one", UserError("too long"))
        assert print_left_out(unanswered) == 1


@pytest.mark.parametrize("reader", ["vlguard", "figstep", "vqav2", "beavertails"])
@pytest.mark.parametrize("tested", [True, False])
def test_a_system_is_tested_on_other_rows_than_it_learns_from(reader, tested, tmp_path, capsys):
    """Where nobody names a split."""
    for each in DOWNLOADS.values():
        if each.reader == reader:
            each.write(tmp_path, 8)
    splits = []

    def read(name, path, split="train", **options):
        splits.append(split)
        return iter(())

    with pytest.MonkeyPatch.context() as patch, LeftOut(tmp_path / "r.jsonl") as left_out:
        patch.setattr(evaluate.sources, "read", lambda *a, **o: SourceRows(a[0], "", read(*a, **o)))
        evaluate.read_benchmarks(
            [f"{reader}:{tmp_path}"], left_out, at_least_one=False, tested=tested
        )
    assert splits == [CATALOGUE[reader].tested if tested else "train"]


def test_rows_of_two_splits_are_never_pooled_whoever_reads_them(tmp_path):
    for name in ("figstep", "figstep, tiny"):
        DOWNLOADS[name].write(tmp_path, 4)
    specs = [f"figstep:{tmp_path}:{split}" for split in ("tiny", "all")]
    with LeftOut(tmp_path / "r.jsonl") as left_out:
        tests = evaluate.read_benchmarks(specs, left_out)
    assert set(tests) == {"figstep_tiny", "figstep_all"} and not left_out.total


@pytest.mark.parametrize(
    ("reader", "file", "split"),
    [
        ("vlguard", "train.json", "train"),
        ("vlguard", "test.json", "test"),
        ("figstep", "SafeBench-Tiny.csv", "tiny"),
        ("figstep", "safebench.csv", "test"),
        ("vqav2", "v2_OpenEnded_mscoco_train2014_questions.json", "train"),
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "val"),
        ("xstest", "xstest_prompts.csv", ""),
        ("table", "train.jsonl", ""),
    ],
)
def test_a_file_that_is_called_after_a_split_is_of_it(reader, file, split):
    assert catalogue.tested_split(reader, Path("in") / file) == split


def test_a_row_without_an_answer_stays_in_every_systems_denominator_as_wrong(tmp_path, stub):
    stub(one=StubGuard(limit=20), two=StubGuard(limit=10))
    rows = [
        {"id": n, "image": None, "text": "x" * n, "label": ("safe", "unsafe")[n % 2]}
        for n in range(1, 31)
    ]
    assert run_evaluate(tmp_path, [str(table(tmp_path, rows))], ["one", "two"]) == 1
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    for name, n in (("one", 20), ("two", 10)):
        assert report[f"{name}.all.accuracy"]["n"] == 30
        assert report[f"{name}.all.no_answer"]["value"] == 30 - n
        # Without a picture all is let pass: what is safe and answered is right, and nothing else.
        assert report[f"{name}.all.accuracy"]["value"] == n / 2 / 30
        assert report[f"{name}.all.asr"]["value"] == 1
    lines = (tmp_path / "e" / "no_answer.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [*range(21, 31), *range(11, 31)]
    assert '"21: one: 21 tokens' in lines[0] and '"11: two: 11 tokens' in lines[10]
    assert "No answer" in (tmp_path / "e" / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "used", "line"),
    [
        ([], 0.2, "threshold 0.2, one's own, for all (two has 0.6)"),
        (["--threshold", "0.3"], 0.3, ""),
    ],
)
def test_systems_are_judged_at_the_main_ones_threshold_unless_another_is_given(
    tmp_path, stub, capsys, given, used, line
):
    stub(one=StubGuard(threshold=0.2), two=StubGuard(threshold=0.6))
    rows = [
        {"id": n, "image": None, "text": "t", "label": ("safe", "unsafe")[n % 2]} for n in range(4)
    ]
    data = [str(table(tmp_path, rows))]
    assert run_evaluate(tmp_path, data, ["one", "two"], *given) == 0
    out = capsys.readouterr().out
    assert line in out and ("for all" in out) == bool(line)
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    # Without a picture p_unsafe is 0.25.
    assert report["one.all.fpr"]["value"] == report["two.all.fpr"]["value"] == (used < 0.25)
    assert report["meta"]["threshold"] == used
    assert f"At the threshold {used}" in (tmp_path / "e" / "report.md").read_text()


def test_a_threshold_that_is_no_probability_is_a_usage_error(tmp_path, capsys):
    assert run_evaluate(tmp_path, ["d.jsonl"], ["one"], "--threshold", "2") == 2
    assert "--threshold 2.0 is no probability" in capsys.readouterr().err


def test_scores_and_shown_pictures_are_their_own_rows(tmp_path):
    path = table(tmp_path, mixed_rows(tmp_path))
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        tests = evaluate.read_benchmarks([f"b=table:{path}"], left_out)
        scores = score_benchmarks(StubGuard(), tests, left_out=left_out)
    assert scores.id.tolist() == ["q0", "q7", "q8", "q9"]
    expected = [redness(png(int(id[1:]))) for id in scores.id]
    np.testing.assert_allclose(scores.p_unsafe, expected)
    shown = {(name, r.id): r.image for name, rows in tests.items() for r in rows}
    assert all(shown["b", id] == png(int(id[1:])) for id in scores.id)


def test_rows_of_one_id_in_two_benchmarks_are_told_apart(tmp_path):
    rows = mixed_rows(tmp_path)[:1]
    files = [table(tmp_path, rows, f"{n}.jsonl") for n in range(2)]
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        tests = evaluate.read_benchmarks(list(map(str, files)), left_out)
        assert [len(of) for of in tests.values()] == [1, 1] and not left_out.total
        evaluate.read_benchmarks([f"b=table:{file}" for file in files], left_out)
    assert list(left_out.counts) == [(str(files[1]), "an earlier row has the same id")]


def test_without_a_place_for_it_a_bad_row_is_an_error_that_names_file_and_row():
    record = Record("q", (), LONG, "safe", provenance={"file": "t.jsonl", "row": "3"})
    with pytest.raises(UserError, match=r"^t.jsonl, row 3 \(q\): 630 tokens"):
        score_benchmarks(StubGuard(), {"b": [record]})


def test_attack_counts_rows_without_a_picture_and_those_whose_label_is_no_answer(tmp_path):
    at = {"file": "t.jsonl"}
    records = [
        Record("a", (png(0),), "t", "safe"),
        Record("b", (), "t", "safe", provenance=at | {"row": "2"}),
        Record("c", (png(1),), "t", "red", provenance=at | {"row": "3"}),
        Record("d", (png(2),), "t", "unsafe"),
    ]
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        kept = attackable(records, ("safe", "unsafe"), left_out)
    assert [record.id for record in kept] == ["a", "d"]
    assert left_out.counts == {
        ("t.jsonl", NO_PICTURE): 1,
        ("t.jsonl", "label 'red' is no answer of the model's"): 1,
    }
    # Text alone is no fault of a row's, another label is.
    assert print_summary(left_out, Path("r"), faultless=(NO_PICTURE,)) == 1
    blind = LeftOut(tmp_path / "blind.jsonl")
    attackable(records[:2], ("safe",), blind)
    assert print_summary(blind, Path("r"), faultless=(NO_PICTURE,)) == 0
    assert print_summary(blind, Path("r")) == 1


# ---- What is read again ------------------------------------------------------------------------


def source_of(path: Path, reader: str, split: str) -> ConfigDict:
    spec = {"reader": reader, "path": str(path), "split": split, "weight": 1.0, "limit": 0}
    return ConfigDict({"s": spec | {"labels": ()}})


def vlguard_rows(folder: Path) -> Path:
    (folder / "train").mkdir()
    entries = [{"instruction": "what is it ?"}]
    rows = [{"id": n, "image": f"{n}.png", "instr-resp": entries} for n in range(2)]
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


def table_rows(folder: Path) -> Path:
    (folder / "train").mkdir()
    rows = [{"id": n, "image": f"train/{n}.png", "text": "t", "label": "safe"} for n in range(2)]
    return table(folder, rows)


@pytest.mark.parametrize(("reader", "write"), [("table", table_rows), ("vlguard", vlguard_rows)])
def test_a_data_set_is_read_anew_when_a_file_of_it_has_come_or_changed_and_only_then(
    tmp_path, capsys, reader, write
):
    path = write(tmp_path)
    first, second = tmp_path / "train" / "0.png", tmp_path / "train" / "1.png"
    first.write_bytes(png(0))

    def pictures() -> list[bytes | None]:
        source = open_sources(source_of(path, reader, "train"), tmp_path / "data", {})["s"]
        return [source[i].image for i in range(len(source))]

    note = tmp_path / "data" / "s.settings.json"
    assert pictures() == [png(0)] and "s: 1 row was left out" in capsys.readouterr().out
    written = note.stat().st_mtime_ns
    # Opened as it is, and what is missing is said all the same.
    assert pictures() == [png(0)] and "s: 1 row was left out" in capsys.readouterr().out
    assert note.stat().st_mtime_ns == written
    second.write_bytes(png(1))
    assert pictures() == [png(0), png(1)] and "left out" not in capsys.readouterr().out
    first.write_bytes(png(5) + b"longer")
    assert pictures() == [png(5) + b"longer", png(1)]
    first.unlink()
    assert pictures() == [png(1)]


# ---- Every format, through every verb that takes it --------------------------------------------


def write_format(name: str, folder: Path) -> tuple[Path, str]:
    """One good row in the published layout of a format; its path, and its split if it needs one."""

    def put(path: str, content: Any) -> None:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        file.write_bytes(data)

    if name == "table":
        put("a.png", png(1))
        put("t.jsonl", {"id": 1, "image": "a.png", "text": "t", "label": "safe"})
        return folder / "t.jsonl", ""
    if name == "vlguard":
        put("test/a.png", png(1))
        put("test.json", [{"id": 1, "image": "a.png", "instr-resp": [{"instruction": "t"}]}])
        return folder, "test"
    if name in ("figstep", "figstep_twins"):
        put("data/images/SafeBench/query_ForbidQI_1_2_6.png", png(1))
        put(
            "data/question/safebench.csv",
            b"category_id,task_id,category_name,instruction\n1,2,a,t\n",
        )
        return folder, "test"
    if name == "vqav2":
        put("val2014/COCO_val2014_000000000001.jpg", png(1))
        questions = [{"question_id": 1, "image_id": 1, "question": "t"}]
        put("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
        return folder, "val"
    if name in ("nlvr", "nlvr2"):
        two = name == "nlvr2"
        row = {"identifier": "dev-0-0-0" if two else "0", "sentence": "t", "label": "true"}
        put("dev.json" if two else "dev/dev.json", row | {"directory": "1"})
        for n in range(2):
            put(f"images/dev/dev-0-0-img{n}.png" if two else f"dev/images/1/dev-0-{n}.png", png(n))
        return folder, "dev"
    if name in ("coco_captions", "karpathy"):
        put("val2017/a.png", png(1))
        image = {"id": 1, "file_name": "a.png", "filename": "a.png", "filepath": "val2017"}
        image |= {"split": "test", "sentences": [{"raw": "t"}]}
        captions = {"images": [image], "annotations": [{"id": 1, "image_id": 1, "caption": "t"}]}
        if name == "karpathy":
            put("dataset.json", captions)
            return folder, "test"
        put("annotations/captions_val2017.json", captions)
        return folder, "val2017"
    if name == "beavertails":
        flags = {category: category == CATEGORIES[0] for category in CATEGORIES}
        put("t.jsonl", {"prompt": "t", "category": flags})
        return folder / "t.jsonl", ""
    DOWNLOADS[name].write(folder, 1)
    return folder, DOWNLOADS[name].split


def test_a_source_is_another_when_anything_that_is_learned_from_is(tmp_path):
    def contents(text: str, label: str, shade: int) -> str:
        (tmp_path / "0.png").write_bytes(png(shade))
        rows = [{"id": "a", "image": "0.png", "text": text, "label": label}]
        open_sources(source_of(table(tmp_path, rows), "table", "train"), tmp_path / "data", {})
        return contents_hash(tmp_path / "data", "s")

    first = contents("t", "safe", 0)
    others = [contents("u", "safe", 0), contents("t", "unsafe", 0), contents("t", "safe", 3)]
    assert len({first, *others}) == 4
    (tmp_path / "data" / "s.settings.json").write_text("{")  # a disk that failed
    assert contents("t", "safe", 0) == first


def test_training_leaves_out_rows_whose_label_is_no_answer(tmp_path, capsys):
    labels = ("safe", "maybe", "unsafe", "", "safe")
    rows = [{"id": f"r{i}", "text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row | {"image": None}) + "\n" for row in rows))
    opened = open_sources(source_of(path, "table", "train"), tmp_path / "data", {})
    source = answered(opened, ("safe", "unsafe"))["s"]
    assert [source[i].id for i in range(len(source))] == ["r0", "r2", "r4"]
    assert "2 rows have a label that is no answer (1 'maybe', 1 '')" in capsys.readouterr().out
    with pytest.raises(UserError, match="all 5 rows .*; the answers are true, false"):
        answered(opened, ("true", "false"))


@pytest.mark.parametrize("verb", ["score", "evaluate", "train"])
@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_format_is_read_by_every_verb(tmp_path, stub, name, verb):
    stub(one=StubGuard(prompt="true_false" if name.startswith("nlvr") else "short"))
    path, split = write_format(name, tmp_path / "in")
    several = {"figstep_twins": 4, "mm_safetybench": 13, "mssbench": 4}
    rows = several.get(name, 1)
    if verb == "train":
        specs = source_of(path, name, split or "train")
        if name in CATALOGUE and CATALOGUE[name].trainable is not None:
            # What is for evaluation; of some sets that is one split, which is the one here.
            with pytest.raises(UserError, match=f"'{name}'.* is never trained on"):
                open_sources(specs, tmp_path / "data", {})
            assert not (tmp_path / "data").exists()
            return
        assert len(open_sources(specs, tmp_path / "data", {})["s"]) == rows
        return
    if verb == "score":
        words = f"score --model one --format {name} --input {path} --output {tmp_path / 'o.jsonl'}"
        assert cli.main((words + (f" --split {split}" if split else "")).split()) == 0
        assert len((tmp_path / "o.jsonl").read_text().splitlines()) == rows
        return
    with LeftOut(tmp_path / "rejected.jsonl") as left_out:
        tests = evaluate.read_benchmarks(
            [f"b={name}:{path}" + (f":{split}" if split else "")], left_out
        )
        assert len(tests) == 1
        scores = score_benchmarks(Guard.from_pretrained("one"), tests, left_out=left_out)
    # Nobody has judged BeaverTails' prompts, so there is nothing to measure on them.
    unjudged = name == "beavertails"
    assert (len(scores), left_out.total) == ((0, 1) if unjudged else (rows, 0))


def test_evaluate_is_one_line_where_no_row_can_be_scored(tmp_path, stub, capsys):
    stub(one=StubGuard())
    path, _ = write_format("beavertails", tmp_path)
    assert run_evaluate(tmp_path, [f"beavertails:{path}"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("crossguard: --model one: it can score no row; see")
