"""Rows and verdicts in other tools' files; the tools themselves read them where installed."""

import json
import math
import re
import tomllib
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
    names = [part["image"] for part in message["content"][:2]]
    assert not any(Path(name).is_absolute() for name in names)  # the folder may be moved
    files = [folder / "inspect" / name for name in names]
    assert [file.read_bytes() for file in files] == list(ROWS[1].images)
    assert first["input"][0]["content"][0]["image"] == names[0]  # a picture is written once
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
    dataset = pytest.importorskip(
        "inspect_ai.dataset", reason="no inspect_ai: pip install -e '.[inspect]'"
    )
    samples = [*dataset.json_dataset(str(folder / "inspect" / "mine_all.jsonl"))]
    assert [sample.id for sample in samples] == list("abcd")
    assert [sample.target for sample in samples] == ["unsafe", "safe", "unsafe", "safe"]
    content = samples[1].input[0].content
    assert [part.type for part in content] == ["image", "image", "text"]
    assert Path(content[0].image).read_bytes() == ROWS[1].images[0]
    assert samples[2].input[0].text == ROWS[2].text
    assert samples[0].metadata["p_unsafe"]["one"] == 0.9


def inspect_tasks():
    """The module of the tasks, which needs inspect_ai."""
    pytest.importorskip("inspect_ai", reason="no inspect_ai: pip install -e '.[inspect]'")
    from crossguard_jax.evals import inspect_tasks

    return inspect_tasks


def answered(messages, *_):
    """A model that flags questions, and of a row without a text says nothing of use."""
    from inspect_ai.model import ModelOutput, ModelUsage

    text = messages[-1].text
    word = "unsafe" if "?</message>" in text else "<think>unsafe</think>**Safe**, I would think"
    word = "a picture" if "<message></message>" in text else word
    output = ModelOutput.from_content("mock", word)
    output.usage = ModelUsage()
    return output


def run_inspect(task, tmp_path):
    inspect_ai = pytest.importorskip(
        "inspect_ai", reason="no inspect_ai: pip install -e '.[inspect]'"
    )
    model = inspect_ai.model.get_model("mockllm/model", custom_outputs=answered)
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    (score,) = log.results.scores
    return log, {name: metric.value for name, metric in score.metrics.items()}


@pytest.mark.parametrize("named", ["", "mine="])
def test_a_benchmark_is_a_task_of_inspect_ai_whose_scorer_reads_both_verdicts(tmp_path, named):
    tasks = inspect_tasks()
    lines = []
    texts = {"one ?": "unsafe", "two ?": "safe", "three": "safe", "four": "unsafe", "": "safe"}
    for i, (text, label) in enumerate(texts.items()):
        (tmp_path / f"{i}.png").write_bytes(picture("red"))
        row = {"id": f"r{i}", "image": f"{i}.png" if i != 2 else None, "text": text}
        lines.append(json.dumps(row | {"label": label, "category": "hot"}))
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "no json"]))
    folder = tmp_path / "work"
    task = tasks.benchmark(f"{named}table:{tmp_path / 'rows.jsonl'}", folder=str(folder))
    log, metrics = run_inspect(task, tmp_path)
    assert [sample.id.split("/")[1] for sample in log.samples] == [f"r{i}" for i in range(5)]
    answers = [sample.scores["verdict"].answer for sample in log.samples]
    assert answers == ["unsafe", "unsafe", "safe", "safe", ""]
    assert (metrics["accuracy"], metrics["no_answer"]) == (0.4, 1)
    assert (metrics["asr"], metrics["fpr"]) == (0.5, pytest.approx(2 / 3))
    assert "no json" in (folder / "rejected.jsonl").read_text() or log.samples
    assert log.samples[0].metadata["category"] == "hot"
    text = log.samples[0].input[0].content[-1].text
    assert "<message>one ?</message>" in text


def test_kept_verdicts_are_scored_by_inspect_ai_without_a_model(folder, tmp_path):
    tasks = inspect_tasks()
    file = str(folder / "inspect" / "mine_all.jsonl")
    for name, rates in {"one": (0.5, 0.0, 0), "two": (1.0, 1.0, 2)}.items():
        log, metrics = run_inspect(tasks.verdicts(file, name), tmp_path)
        assert tuple(metrics[each] for each in ("asr", "fpr", "no_answer")) == rates
    p = [sample.scores["verdict"].metadata["p_unsafe"] for sample in log.samples]
    assert p == [0.1, 0.6, None, None]


def test_log_probabilities_become_a_probability_as_at_our_own_endpoints():
    tasks = inspect_tasks()
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput
    from inspect_ai.model._model_output import Logprob, Logprobs, TopLogprob

    tops = [TopLogprob(token="safe", logprob=-0.5), TopLogprob(token="unsafe", logprob=-1.5)]
    token = Logprob(token="safe", logprob=-0.5, top_logprobs=tops)
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content="safe"), logprobs=Logprobs(content=[token])
    )
    answer = tasks._answer(ModelOutput(model="m", choices=[choice]))
    p = tasks.probability(answer, tasks.WORDS)
    assert p == pytest.approx(1 / (1 + math.exp(1.0)))


def test_the_package_says_where_inspect_ai_finds_the_tasks_and_imports_it_nowhere_else(repository):
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    (module,) = settings["entry-points"]["inspect_ai"].values()
    file = repository / f"{module.replace('.', '/')}.py"
    assert "@task\ndef benchmark(" in file.read_text()
    importers = [
        path
        for path in (repository / "crossguard_jax").rglob("*.py")
        if re.search(r"^\s*(import|from) inspect_ai", path.read_text(), re.MULTILINE)
    ]
    assert importers == [file]


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
