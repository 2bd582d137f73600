"""The verb ``attack``: models, rows and a suite in, a report out."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from crossguard_jax.cmai.folders import save_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import write_jsonl
from crossguard_jax.evals.robustness import attack
from crossguard_jax.toy.world.sources import records
from tests.cmai.small_systems import base, system_of
from tests.draws import few

ROWS = records("implicit", "test", 8)


def small_config() -> ConfigDict:
    """The shipped one, with two searches that compile soon, and one that needs a surrogate."""
    config = load_config("configs/cmai.py:tiny")
    with config.unlocked():
        config.attack.attacks = {
            "noise": {"search": "noise", "climb": "margin", "steps": 2},
            "square": {"search": "square", "climb": "selective", "steps": 2},
            "other": {"search": "noise", "climb": "margin", "steps": 2, "transfer": True},
        }
    config.attack.update({"epsilons": (0.0, 8 / 255), "batch_size": 8})
    config.attack.convergence.rows = 4
    return config


@pytest.fixture(scope="module")
def immunized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    branches = [{"below": 0.0, "do": "reject"}]
    system = replace(system_of(base()), policy=Policy.from_config({"branches": branches}))
    folder = tmp_path_factory.mktemp("models") / "immunized"
    save_immunized(system, folder)
    return folder


@pytest.fixture
def args(immunized: Path, tmp_path: Path) -> argparse.Namespace:
    write_jsonl(ROWS, tmp_path / "data", "test")
    write_jsonl(records("implicit", "val", 8), tmp_path / "data", "val")
    return argparse.Namespace(
        model=[f"ours={immunized}", "plain=toy://llava"],
        data=[str(tmp_path / "data" / "test.jsonl")],
        validation=[str(tmp_path / "data" / "val.jsonl")],
        surrogate=None,
        attack=None,
        save=None,
        certify=0,
        config=small_config(),
        limit=6,
        prompt="short",
        store=None,
        noise_seed=None,
        mesh=None,
        dtype="auto",
        remat=None,
        out=str(tmp_path / "out"),
    )


@pytest.mark.robustness
@pytest.mark.parametrize("levels", few([0, 8], 1))  # nothing is compiled to search a point
def test_a_report_judges_every_model_and_looks_into_the_first(
    levels: int, args: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    args.config.attack.convergence.epsilon = levels / 255
    attack.main(args)
    out = Path(args.out)
    found = json.loads((out / "report.json").read_text())
    for name in ("ours", "plain"):
        assert found[f"{name}.linf.8.robust_accuracy"]["n"] == 6
    assert found["ours.minus.plain.linf.8.robust_accuracy_difference"]["n"] == 6
    assert found[f"ours.detection.linf.{levels}.adaptive.auroc"]["n"] >= 6
    assert f"plain.detection.linf.{levels}.oblivious.auroc" not in found
    assert found[f"ours.linf.{levels}.steps_times_2.asr"]["n"] <= 4
    text = (out / "report.md").read_text()
    assert "Left out, for want of a model" in text and "other" in text
    assert "6 of 8 rows" in text and "INCOMPLETE" in text
    assert (out / "plots" / "attacked_ours.png").exists()
    said = capsys.readouterr().out
    assert "ours linf.8.robust_accuracy" in said and f"report: {out / 'report.html'}" in said


@pytest.mark.robustness
def test_the_main_models_answers_are_certified_when_asked(args: argparse.Namespace) -> None:
    args.model, args.certify, args.limit = args.model[:1], 3, 4
    small = {"n0": 10, "n": 50, "rows": 4, "chunk": 10, "steps": 2, "samples": 2}
    args.config.attack.certificate.update(small)
    attack.main(args)
    found = json.loads((Path(args.out) / "report.json").read_text())
    rows = [found[f"ours.certificate.{label}.certified.0"]["n"] for label in ("safe", "unsafe")]
    assert sum(rows) == 3
    assert "What is certified" in (Path(args.out) / "report.md").read_text()


def test_transfer_attacks_need_a_surrogate_and_the_given_suite_stays_whole() -> None:
    config = small_config().attack
    smaller, without = attack.suite_config(config, surrogate=False)
    assert without == ["other"] and set(smaller.attacks) == {"noise", "square"}
    whole, without = attack.suite_config(config, surrogate=True)
    assert without == [] and set(whole.attacks) == set(config.attacks) == {
        *("noise", "square", "other")
    }


def test_a_limit_draws_rows_and_keeps_their_order() -> None:
    ids = [record.id for record in ROWS]
    assert attack.drawn(ROWS, None, 0) == attack.drawn(ROWS, 8, 0) == list(ROWS)
    some = [record.id for record in attack.drawn(ROWS, 4, 1)]
    assert len(some) == 4 and some == sorted(some, key=ids.index)
    assert some != [record.id for record in attack.drawn(ROWS, 4, 2)]
    for bad, limit, words in ((ROWS[:1], None, "1 row"), (ROWS, 1, "--limit 1")):
        with pytest.raises(UserError, match=words):
            attack.drawn(bad, limit, 0)


def test_a_model_that_was_not_immunized_is_held_to_the_main_ones_answers(
    immunized: Path, tmp_path: Path
) -> None:
    kept = json.loads((immunized / "cmai.json").read_text())
    one = Immunized.of(base(), ("red", "blue"))
    save_immunized(one, tmp_path / "one")
    found = attack.load_systems([f"a={tmp_path / 'one'}", "b=toy://llava"])
    assert [system.task.labels for system in found.values()] == [("red", "blue")] * 2
    cases: list[tuple[list[str], Any]] = [
        ([f"a={tmp_path / 'one'}", f"b={immunized}"], f"answers {kept['labels'][0]}"),
        (["a=toy://llava", "a=toy://llava"], "two systems are called 'a'"),
        (["a=toy://llava+adapter"], "whole folders"),
    ]
    for specs, words in cases:
        with pytest.raises(UserError, match=words):
            attack.load_systems(specs)
