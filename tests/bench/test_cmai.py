"""``crossguard bench cmai``: every part is a step that runs, and costs are over the right one."""

import argparse
import json

import pytest

from crossguard_jax import arguments
from crossguard_jax.bench import cmai


def test_a_cost_is_seconds_over_those_of_what_goes_without() -> None:
    seconds = {"clean": 0.1, "mbat": 0.45}
    cost = {
        name: {"median": s / 0.1, "low": s / 0.2, "high": s / 0.05} for name, s in seconds.items()
    }
    figures = {"cost": cost, "seconds": seconds, "over": "clean", "rows": 4, "runs": 3}
    titles = {name: title for name, (title, _) in cmai.TRAINING.items()}
    table = cmai.shown("training", figures, titles).splitlines()
    assert table[0] == "| training | a batch of 4 | over a step on clean rows (low to high) |"
    assert table[-1] == "| MBAT | 450 ms | 4.5 (2.25 to 9) |"


def test_the_verb_offers_it() -> None:
    parser = argparse.ArgumentParser()
    arguments.bench(parser)
    assert parser.parse_args(["cmai"]).what == "cmai"


@pytest.mark.benches
def test_every_part_is_measured(tmp_path, capsys) -> None:
    cmai.main(argparse.Namespace(out=str(tmp_path), threads=1, batch=4, runs=1))
    document = json.loads((tmp_path / "bench_cmai.json").read_text())
    for name, parts in (("training", cmai.TRAINING), ("inference", cmai.BRANCHES)):
        cost = document[name]["cost"]
        assert set(cost) == set(parts)
        assert cost[document[name]["over"]]["median"] == 1
        assert all(0 < each["low"] <= each["median"] <= each["high"] for each in cost.values())
    assert document["training"]["cost"]["mbat"]["median"] > 1
    shown = capsys.readouterr().out
    assert "| the answer alone |" in shown and "| CMCV alone" in shown
