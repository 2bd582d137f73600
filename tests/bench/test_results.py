"""What a bench shows and keeps, while it runs and when it is stopped."""

import argparse
import json

import pytest

from crossguard_jax.bench import attacks, guard
from crossguard_jax.bench.results import Comparison, compared, seconds_text, table
from crossguard_jax.core.timing import Timed

RATIO = {"median": 2.0, "low": 1.5, "high": 3.0}


def test_a_bench_that_is_stopped_has_shown_and_kept_what_it_measured(tmp_path, monkeypatch, capsys):
    def measures(*sizes):
        yield "pgd", lambda: {"seconds": 1.5}, lambda figures: f"PGD: {figures['seconds']} s"
        shown, document = capsys.readouterr().out, json.loads(path.read_text())
        assert "PGD: 1.5 s" in shown and document["pgd"] == {"seconds": 1.5}
        yield "universal:guard", stop, None

    def stop():
        raise KeyboardInterrupt

    path = tmp_path / "bench_attacks.json"
    path.write_text('{"text": "of an older run"}')
    monkeypatch.setattr(attacks, "_measures", measures)
    monkeypatch.setattr(attacks, "make_folder", lambda scratch: scratch)
    args = argparse.Namespace(batch=2, runs=1, threads=1, out=str(tmp_path), only=None)
    with pytest.raises(KeyboardInterrupt):
        attacks.main(args)
    assert list(json.loads(path.read_text())) == ["machine", "versions", "pgd"]


def test_a_table_has_the_floor_beside_each_figure():
    row = Comparison("score", "torch", 0.25, 0.125, RATIO, 0.05, "12 GFLOP")
    head, rule, line, nothing, note = table([row], "A note.").splitlines()
    assert line == "| score | torch | 250 ms | 125 ms | 2 (1.5 to 3) | 50 ms, 12 GFLOP |"
    assert head.count("|") == rule.count("|") == line.count("|") and note == "A note."


def test_a_ratio_is_theirs_over_ours():
    timed = {"torch": Timed(9.0, (2.0, 6.0, 4.0)), "jax": Timed(9.0, (1.0, 2.0, 8.0))}
    assert compared(timed, "torch", "jax") == {"median": 2.0, "low": 0.5, "high": 3.0}


def test_the_guards_floor_is_its_flops_at_the_matmul_rate():
    timed = {name: Timed(9.0, (seconds,)) for name, seconds in (("torch", 4.0), ("jax", 2.0))}
    figures = guard._summary(timed | {"matmul": Timed(9.0, (0.5,))}, 100e9, 50e9)
    assert figures["floor_seconds"] == 1 and figures["matmul_gflops"] == 100
    assert figures["share_of_matmul_rate"] == {"torch": 0.25, "jax": 0.5}
    assert "| 2 (2 to 2) | 1 s, 100 GFLOP |" in guard.shown("step", figures)


@pytest.mark.parametrize(("x", "text"), [(1.2345, "1.23 s"), (0.0123, "12.3 ms"), (4e-6, "4 us")])
def test_seconds_are_told_in_the_unit_that_reads_best(x, text):
    assert seconds_text(x) == text
