"""``crossguard calibrate``: what is left beside a detector, and what is said of a useless one."""

import json

import pytest

from crossguard_jax import cli
from crossguard_jax.data.records import write_jsonl
from crossguard_jax.evals.calibrate import NOT_APPLICABLE
from crossguard_jax.systems.load import load
from crossguard_jax.systems.system import notes_of
from crossguard_jax.toy.world.sources import records


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pairs of which nothing but picture and text together tells the label."""
    folder = tmp_path_factory.mktemp("rows")
    drawn = records("implicit", "val", 96)
    write_jsonl(drawn, folder, "rows")
    (folder / "concepts.txt").write_text("\n".join(r.text for r in drawn[:8]) + "\n")
    return folder, drawn


def fitted(rows, out, *words):
    command = ["calibrate", "--data", f"{rows[0] / 'rows.jsonl'}", "--out", str(out), *words]
    return cli.main([*command, "--fpr", "0.1"])


def test_a_detector_that_tells_nothing_is_not_applicable_wherever_it_is_loaded(
    rows, tmp_path, capsys
):
    concepts = str(rows[0] / "concepts.txt")
    words = ("--as", "jaildam", "--model", "toy://clip", "--concepts", concepts)
    assert fitted(rows, tmp_path, *words) == 0
    out = capsys.readouterr().out
    assert NOT_APPLICABLE in out and notes_of(load(tmp_path)) == [NOT_APPLICABLE]
    for form in ("paper", "as_released"):
        assert f"with a memory that adapts ({form}): auroc 0." in out
    assert "over 5 orders of the rows" in out


def test_rows_that_a_detector_was_fitted_to_are_known_as_such_to_evaluate(rows, tmp_path, capsys):
    folder, _ = rows
    fitted(rows, tmp_path / "d", "--as", "hidden_detect", "--model", "toy://llava")
    command = ["evaluate", "--model", f"d={tmp_path / 'd'}", "--out", str(tmp_path / "out")]
    # Given a row that it has not seen, so that something is left to pool.
    fresh = records("explicit_picture", "val", 2)
    write_jsonl(fresh, tmp_path, "fresh")
    command += ["--data", f"own=table:{folder / 'rows.jsonl'}", "--data"]
    command += [f"fresh=table:{tmp_path / 'fresh.jsonl'}", "--store", str(tmp_path / "store")]
    cli.main(command)
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["d.all.accuracy"]["n"] == len(fresh)
