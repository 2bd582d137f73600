"""``toy rivals``: one table of all systems, what others read made once and before them."""

import argparse
import json

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate, wilson_interval
from crossguard_jax.guard.guard import Guard
from crossguard_jax.systems.controls import HalfBlind
from crossguard_jax.toy.tables import rivals


def share(hits: int, n: int = 1000) -> Estimate:
    return Estimate(hits / n, *wilson_interval(hits, n), n)


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(out=tmp_path, only=None, seeds=[0, 1], rows=8, steps=0.5, jobs=1)


def test_every_system_has_a_row_and_is_made_after_what_it_reads(args, monkeypatch):
    made = []

    def system_of(place, row, seed, steps, beat):
        made.append((row, seed, steps))
        return row

    columns = [column for shown, _ in rivals.TABLES.values() for column in shown]
    monkeypatch.setattr(rivals, "system_of", system_of)
    monkeypatch.setattr(rivals, "score_benchmarks", lambda system, tests, name: name)

    def figures(name, cut):
        return {c: share(900 if c == "all.auroc" else 10 * int(name[-1]) + 5) for c in columns}

    monkeypatch.setattr(rivals, "evaluate", figures)
    rivals.main(args)
    assert {(row, seed) for row, seed, _ in made} == {(r, s) for r in rivals.ROWS for s in (0, 1)}
    assert {steps for *_, steps in made} == {0.5}
    order = [row for row, seed, _ in made if seed == 0]
    for name, row in rivals.ROWS.items():
        assert not row.of or order.index(row.of) < order.index(name)
    left = json.loads((args.out / "rivals.json").read_text())
    assert left["command"] == "crossguard toy rivals --seeds 0 1 --rows 8 --steps 0.5"
    assert left["figures"]["jaildam.wrapped.asr"]["value"] == 20 / 2000
    assert [*left["figures"]][0].startswith("base.")  # in the table's order, not in that of work
    page = (args.out / "rivals.md").read_text()
    assert all(page.count(f"| {row.title} | ") == 3 for row in rivals.ROWS.values())
    names = {path.name for path in (args.out / "tests").glob("*.jsonl")}
    assert names == {f"{name}.jsonl" for name in (*rivals.SETS, rivals.BENIGN)}


def test_a_detector_that_tells_nothing_says_so_in_its_row():
    chance = {"all.auroc": Estimate(0.51, 0.48, 0.54, 900)}
    better = {"all.auroc": Estimate(0.6, 0.57, 0.63, 900)}
    assert rivals.title_of("hidden_detect", [chance]) == "HiddenDetect, of the base, not applicable"
    assert rivals.title_of("hidden_detect", [chance, better]) == "HiddenDetect, of the base"
    assert rivals.title_of("always_unsafe", [chance]) == "Always unsafe"


def test_a_row_that_there_is_not_is_refused(args):
    args.only = ["gpt_4o"]
    with pytest.raises(UserError, match="--only gpt_4o: rows are base, "):
        rivals.main(args)


def test_steps_are_a_factor_and_all_guards_keep_their_last(tmp_path):
    for row in rivals.ROWS.values():
        if row.variant and not row.of:
            config = rivals._guard_config(row.variant, 3, 0.5)
            train = config.train
            assert (train.steps, train.seed, train.keep_best) == (600, 3, "")
            assert train.eval_every == 0
            sources = config.data.sources
            assert not rivals.BESIDE & set(sources)
            has_implicit = row.variant in ("tiny", "no_benign")
            weight = sources.implicit.weight if "implicit" in sources else 0.0
            assert weight == pytest.approx(0.36 if has_implicit else 0.0)
            assert rivals._guard_config(row.variant, 0, 0.0).train.steps == 31


def test_rivals_are_fitted_to_rows_that_nothing_is_judged_on():
    images, texts, sets, unsafe, others = rivals._fitting_rows(0)
    assert len(images) == len(texts) == len(sets) == len(unsafe) == 2 * len(others)
    judged = rivals.benchmarks(64, 0, (*rivals.SETS, rivals.BENIGN))
    pictures = {r.image for rows in judged.values() for r in rows if r.image is not None}
    assert not pictures & {p for each in images for p in each}
    assert set(sets[unsafe]) <= set(range(4)) and 0.2 < unsafe.mean() < 0.6


def test_rivals_of_a_guard_read_that_guard(tmp_path, monkeypatch):
    guard = Guard.from_pretrained("toy://guard_explicit_only", prompt="short")
    monkeypatch.setattr(rivals, "_trained", lambda place, own, variant, seed, steps: guard)

    for row in ("text_only", "picture_only"):
        assert isinstance(rivals.system_of(tmp_path, row, 0, 1.0, lambda: None), HalfBlind)
    monkeypatch.setattr(rivals, "_fitting_rows", lambda seed: ([], [], [], [], []))
    for module in (rivals.hidden_detect, rivals.rcs):
        monkeypatch.setattr(module, "fit", lambda of, *_, **__: of)
    for row in ("hidden_detect", "rcs"):
        assert rivals.system_of(tmp_path, row, 0, 1.0, lambda: None) is guard
