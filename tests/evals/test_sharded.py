"""``evaluate --shards``: the figures are those of the same rows in one file."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax import cli
from crossguard_jax.systems import sharded
from tests.random_llava import llava_folder

__all__ = ["llava_folder"]


def rows(n: int) -> list[str]:
    labels = ("safe", "unsafe")
    return [
        json.dumps(
            {
                "id": f"r{i}",
                "text": f"can i touch the red one {i}?",
                "image": None,
                "label": labels[i % 2],
                "source": ("a", "b")[i % 4 // 2],
                "pair": f"p{i // 2}",
            }
        )
        for i in range(n)
    ]


def figures(text: str) -> list[str]:
    return [line for line in text.splitlines() if " n=" in line]


@pytest.mark.parametrize("models", [1, 2])
def test_the_figures_are_those_of_the_same_rows_in_one_file(
    tmp_path, llava_folder, capsys, models
) -> None:
    lines = rows(12)
    bad = ['{"id": "x", "text": "what ?", "image": null, "label": "odd"}', "no json", lines[0]]
    (tmp_path / "all.jsonl").write_text("\n".join([*lines, *bad]) + "\n")
    (tmp_path / "0.jsonl").write_text("\n".join(lines[:5]) + "\n")
    (tmp_path / "1.jsonl").write_text("\n".join([*lines[5:], *bad]) + "\n")
    (tmp_path / "manifest").write_text("0.jsonl\n1.jsonl\n")
    words = ["evaluate", *[f"--model=m{i}={llava_folder}" for i in range(models)]]
    words += ["--prompt", "short", "--threshold", "0.49", "--store", ""]
    printed = {}
    for name, flag in (("data", "all.jsonl"), ("shards", "manifest")):
        arguments = [*words, f"--{name}", str(tmp_path / flag), "--out", str(tmp_path / name)]
        code = cli.main(arguments)
        printed[name] = capsys.readouterr().out
        assert code == 1, printed[name]
    assert figures(printed["shards"]) == figures(printed["data"]) != []
    reports = {n: json.loads((tmp_path / n / "report.json").read_text()) for n in printed}
    pairs = {name: each["m0.a.paired_accuracy"] for name, each in reports.items()}
    assert pairs["shards"] == pairs["data"] and pairs["data"]["n"] == 3
    hashes = {name: each["meta"]["rows"] for name, each in reports.items()}
    assert hashes["shards"] == hashes["data"] and len(hashes["data"]) == 2
    ran = {name: each["meta"]["systems"]["m0"]["hash"] for name, each in reports.items()}
    assert len(ran["data"]) == 24 and ran["shards"] == ran["data"]
    verdicts = {
        name: sorted(json.loads(v)["id"] for v in (tmp_path / name / "m0.verdicts.jsonl").open())
        for name in printed
    }
    assert verdicts["shards"] == verdicts["data"] == sorted(f"r{i}" for i in range(12))
    reasons = {
        name: sorted(
            {json.loads(line)["reason"] for line in (tmp_path / name / "rejected.jsonl").open()}
        )
        for name in printed
    }
    assert len(reasons["shards"]) == 3 and "no json" not in reasons["shards"]
    assert "can i touch the red one" in (tmp_path / "shards/report.html").read_text()


@pytest.mark.parametrize("flag", ["--data", "--shards"])
def test_which_rows_share_pictures_is_of_the_pictures_as_they_came(tmp_path, flag) -> None:
    for i in range(2):
        Image.new("RGB", (8, 8), (100 * i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = [json.dumps({**json.loads(r), "image": f"{i % 2}.png"}) for i, r in enumerate(rows(4))]
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "manifest").write_text("all.jsonl\n")
    file = tmp_path / ("all.jsonl" if flag == "--data" else "manifest")
    words = ["evaluate", "--model", "always_unsafe", "--blank", "picture", "--store", ""]
    assert cli.main([*words, flag, str(file), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "(2 of the 4 rows share" in page
    assert "a control: it looks at nothing" in page


@pytest.fixture
def verb(tmp_path, capsys):
    """``verb(name, *words)``: ``score`` or ``evaluate`` on one shard; exit code and stderr."""
    (tmp_path / "all.jsonl").write_text("\n".join(rows(4)) + "\n")
    (tmp_path / "manifest").write_text("all.jsonl\n")

    def run(name: str, model: str, *more: str) -> tuple[int, str]:
        where = {"score": ["--output"], "evaluate": ["--out"]}[name] + [str(tmp_path / "out")]
        named = model if name == "score" else f"g={model}"
        words = [name, "--model", named, "--shards", str(tmp_path / "manifest"), "--store", ""]
        capsys.readouterr()
        return cli.main([*words, *where, *more]), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("name", "model", "more"),
    [
        ("score", "always_unsafe", []),
        ("evaluate", "always_unsafe", []),
        ("evaluate", "always_safe", ["--blank", "picture"]),
        ("score", "always_safe", ["--threshold", "0.2"]),
        ("score", "always_safe", ["--text-only"]),
    ],
)
def test_verdicts_that_are_all_there_are_not_reported_as_others(verb, name, model, more) -> None:
    assert verb(name, "always_safe")[0] == 0
    code, error = verb(name, model, *more)
    assert code == 1 and "outputs of another run" in error and "give another folder" in error
    assert verb(name, "always_safe")[0] == 0


@pytest.mark.parametrize("name", ["score", "evaluate"])
def test_nor_are_those_of_a_model_that_was_trained_anew_where_it_is(
    verb, name, tmp_path, llava_folder, monkeypatch
) -> None:
    model, load = tmp_path / "model", sharded.load
    shutil.copytree(llava_folder, model)
    assert verb(name, str(model), "--prompt", "short")[0] == 0
    monkeypatch.setattr(sharded, "load", None)  # nothing is loaded to see that nothing is left
    assert verb(name, str(model), "--prompt", "short")[0] == 0
    monkeypatch.setattr(sharded, "load", load)
    code, error = verb(name, str(model))
    assert code == 1 and "another run (prompt: short" in error
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, error = verb(name, str(model), "--prompt", "short")
    assert code == 1 and "another run (weights: " in error


def test_outputs_of_a_version_that_described_less_are_refused(verb, tmp_path) -> None:
    assert verb("evaluate", "always_safe")[0] == 0
    run = tmp_path / "out/shards/g/run.json"
    content = json.loads(run.read_text())
    content["identity"]["described"] = ["content"]
    del content["made"]
    run.write_text(json.dumps(content))
    code, error = verb("evaluate", "always_safe")
    assert code == 1 and 'described: ["content"], now' in error.replace("'", '"')


@pytest.mark.parametrize("more", [[], ["--data", "a", "--shards", "b"]])
def test_evaluate_takes_rows_or_shards(more, capsys) -> None:
    assert cli.main(["evaluate", "--model", "m", *more]) == cli.USAGE
    assert "give --data or --shards" in capsys.readouterr().err


def test_a_part_is_not_evaluated(tmp_path: Path, capsys) -> None:
    words = ["evaluate", "--model", "m", "--shards", "s", "--on", "array"]
    assert cli.main(words) == cli.USAGE
    assert "score --shards first" in capsys.readouterr().err
