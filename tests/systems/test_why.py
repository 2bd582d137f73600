"""``score --why`` and ``calibrate --as why``, as they are called."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crossguard_jax as cg
from crossguard_jax import cli
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, write_jsonl
from crossguard_jax.evals import why as evals_why
from crossguard_jax.guard.guard import Guard
from crossguard_jax.systems import why as systems_why

SIDE = 24


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Rows of both labels and three kinds of harm, one of them of too few rows."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)

    def row(i: int) -> Record:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)).save(buffer, "PNG")
        unsafe = i % 3 != 2
        kind = "odd" if i == 1 else ("touch", "pour")[i % 2]
        text = {"touch": "can i touch the red one ?", "pour": "pour water on it ."}.get(
            kind, "is it"
        )
        label = "unsafe" if unsafe else "safe"
        return Record(f"row-{i}", (buffer.getvalue(),), text, label, kind * unsafe, "made")

    write_jsonl(map(row, range(60)), folder, "rows")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def reasons(llava_folder, table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("why")
    line = f"calibrate --as why --model {llava_folder} --data {table} --out {folder}"
    assert cli.main(line.split()) == 0
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_calibrate_learns_kinds_of_enough_rows_and_takes_pictures_of_benign_ones(reasons, table):
    facts = json.loads((reasons / "why.json").read_text())
    assert facts["names"] == ["pour", "touch"]
    assert facts["figures"]["accuracy"]["n"] == 10 and facts["figures"]["accuracy"]["value"] == 1
    benign = {
        (table.parent / r["image"]).read_bytes() for r in rows_of(table) if r["label"] == "safe"
    }
    pictures = {(reasons / name).read_bytes() for name in facts["pictures"]}
    assert len(pictures) == 16 and pictures <= benign


def test_a_file_of_requests_is_explained_where_it_is_unsafe(
    run, llava_folder, table, reasons, tmp_path
):
    model, out, drawn = ("--model", llava_folder), tmp_path / "out.jsonl", tmp_path / "maps"
    run("score", *model, "--input", table, "--output", tmp_path / "plain.jsonl")
    cut = np.median([row["p_unsafe"] for row in rows_of(tmp_path / "plain.jsonl")])
    arguments = ["score", *model, "--input", table, "--output", out, "--threshold", cut]
    arguments += ["--why", reasons, "--heatmaps", drawn]
    code, _, _ = run(*arguments)
    rows = rows_of(out)
    kinds = {
        r["id"]: (r["category"],) for r in rows_of(table) if r["category"] in ("pour", "touch")
    }
    assert code == 0 and 0 < sum(row["unsafe"] for row in rows) < 60
    for row in rows:
        if not row["unsafe"]:
            assert row["why"] is None
            continue
        why = row["why"]
        assert why["joint_only"] == (why["text_alone"] < cut and why["picture_alone"] < cut)
        assert why["category"] in kinds.get(row["id"], ("pour", "touch"))
        assert 0.5 <= why["p_category"] <= 1
        ((left, top, right, bottom),) = why["peaks"]
        assert np.shape(why["heat"]) == (1, 3, 3)
        at = divmod(int(np.argmax(why["heat"][0])), 3)
        assert (top, left, bottom, right) == (8 * at[0], 8 * at[1], 8 * at[0] + 8, 8 * at[1] + 8)
    assert len([*drawn.iterdir()]) == sum(row["unsafe"] for row in rows)
    assert Image.open(next(drawn.iterdir())).size == (SIDE, SIDE)
    before = out.read_bytes()
    assert run(*arguments)[0] == 0 and out.read_bytes() == before
    code, _, err = run(*arguments[:-4])
    assert code == 1 and "holds verdicts of another run (why:" in err
    assert all("why" not in row for row in rows_of(tmp_path / "plain.jsonl"))


def test_shards_are_explained_as_files_are(run, llava_folder, table, tmp_path):
    own = ("--model", llava_folder, "--threshold", 0, "--why", "--why-parts", "picture")
    (tmp_path / "manifest").write_text(f"{table}\n")
    assert (
        run("score", *own, "--shards", tmp_path / "manifest", "--output", tmp_path / "out")[0] == 0
    )
    assert run("score", *own, "--input", table, "--output", tmp_path / "out.jsonl")[0] == 0
    (shard,) = [f for f in (tmp_path / "out").rglob("*.jsonl") if f.stat().st_size > 1_000]
    for one, other in zip(rows_of(shard), rows_of(tmp_path / "out.jsonl"), strict=True):
        assert one["why"]["text_alone"] is None and one["why"]["category"] == ""
        np.testing.assert_allclose(one["why"]["heat"], other["why"]["heat"], atol=2e-3)


def test_one_request_is_explained_as_python_does(run, llava_folder, table):
    picture = table.parent / rows_of(table)[0]["image"]
    text = "can i touch the red one ?"
    line = ("--model", llava_folder, "--threshold", 0, "--text", text, "--image", picture)
    _, out, _ = run("score", *line, "--why")
    row = json.loads(out)
    system = cg.load(llava_folder, threshold=0.0)
    ((verdict, why),) = cg.explain(system, [picture], [text])
    assert row["p_unsafe"] == pytest.approx(verdict.p_unsafe)
    assert row["why"]["text_alone"] == pytest.approx(why.text_alone, abs=1e-4)
    np.testing.assert_allclose(row["why"]["heat"], np.stack(why.heat), atol=1e-3)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--heatmaps", "maps"), 2, "--heatmaps goes with --why"),
        (("--why-parts", "halves"), 2, "--why-parts goes with --why"),
        (("--why", "nowhere"), 1, "calibrate --as why writes it"),
    ],
)
def test_what_does_not_go_together_is_one_line(run, llava_folder, more, code, message):
    got, _, err = run("score", "--model", llava_folder, "--text", "is it red ?", *more)
    assert got == code and message in err


@pytest.mark.parametrize("more", ["--concepts f", "--words no", "--layer 3", "--fpr 0.1"])
def test_what_only_a_detector_takes_is_refused_beside_why(run, more):
    line = f"calibrate --as why --model m --data d.jsonl {more}"
    code, _, err = run(*line.split())
    assert code == cli.USAGE and f"{more.split()[0]} goes with no --as why" in err


@pytest.mark.parametrize("prompt", [None, "llava_v1"])
def test_calibrate_fits_why_to_the_model_under_the_prompt_that_it_is_given(
    run, table, tmp_path, monkeypatch, prompt
):
    def load(path, adapter, dtype, **options):
        raise UserError(f"loads {options}")

    monkeypatch.setattr(evals_why, "load", load)
    more = ("--prompt", prompt) if prompt else ()
    line = f"calibrate --as why --model m --data {table} --out {tmp_path}"
    code, _, err = run(*line.split(), *more)
    assert code == 1 and f"loads {{'prompt': {prompt!r}}}" in err


def test_what_was_fitted_in_float32_is_read_in_bfloat16_and_under_no_other_prompt(monkeypatch):
    def fitted_to(dtype: str, prompt: str) -> str:
        facts = {"weights": "w", "dtype": dtype, "prompt": prompt}
        monkeypatch.setattr(systems_why, "guard_identity", lambda guard: facts)
        return systems_why.fingerprint(Guard.__new__(Guard))

    one = fitted_to("float32", "short")
    assert one == fitted_to("bfloat16", "short") != fitted_to("float32", "llava_v1")


@pytest.mark.parametrize("name", ["why.json", "why.safetensors", "pictures/0.png"])
def test_a_run_that_is_gone_on_with_knows_what_its_explanations_were_fitted_to(tmp_path, name):
    (tmp_path / "pictures").mkdir()
    for file in ("why.json", "why.safetensors", "pictures/0.png", "rejected.jsonl"):
        (tmp_path / file).write_text("a")
    options = {"folder": str(tmp_path), "parts": ["picture"], "heatmaps": None}
    before = systems_why.run_identity(options)
    (tmp_path / "rejected.jsonl").write_text("b")
    assert systems_why.run_identity(options) == before and options.items() < before.items()
    (tmp_path / name).write_text("b")
    assert systems_why.run_identity(options) != before
    assert systems_why.run_identity(options | {"folder": ""}) == options | {"folder": ""}


def test_what_was_fitted_to_one_model_is_not_for_another(run, reasons):
    line = ("score", "--model", "toy://llava", "--prompt", "short", "--text", "is it red?")
    code, _, err = run(*line, "--why", reasons)
    assert code == 1 and "was fitted to another model" in err
