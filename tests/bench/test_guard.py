"""``crossguard bench guard`` at sizes that say nothing about speed."""

import argparse
import json

import pytest

from crossguard_jax.bench import guard


@pytest.mark.benches
def test_the_bench_measures_a_step_and_scoring_on_both_sides(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, "make_folder", lambda scratch: folder)
    guard.main(argparse.Namespace(batch=2, runs=1, threads=1, out=str(tmp_path)))
    shown = capsys.readouterr().out
    assert shown.index("| step | torch + PEFT |") < shown.index("| score | torch + PEFT |")
    document = json.loads((tmp_path / "bench_guard.json").read_text())
    for work in ("step", "score"):
        assert set(document[work]["seconds"]) == {"torch", "jax"}
        assert document[work]["floor_seconds"] > 0
