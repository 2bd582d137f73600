"""``evaluate --shards``: the figures are those of the same rows in one file."""

import json
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax import cli
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


@pytest.mark.parametrize("more", [[], ["--data", "a", "--shards", "b"]])
def test_evaluate_takes_rows_or_shards(more, capsys) -> None:
    assert cli.main(["evaluate", "--model", "m", *more]) == cli.USAGE
    assert "give --data or --shards" in capsys.readouterr().err


def test_a_part_is_not_evaluated(tmp_path: Path, capsys) -> None:
    words = ["evaluate", "--model", "m", "--shards", "s", "--on", "array"]
    assert cli.main(words) == cli.USAGE
    assert "score --shards first" in capsys.readouterr().err
