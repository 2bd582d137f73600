"""An immunized folder gives one verdict on a row, whichever verb asks, and wherever it lies."""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossguard_jax import cli
from crossguard_jax.cmai.folders import save_immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.review import ReviewQueue, read_queue
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import LeftOut, Record, write_jsonl
from crossguard_jax.evals.robustness import attack
from crossguard_jax.evals.tasks.evaluate import Asking, make_tasks
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.impforge.commands import make_judge
from crossguard_jax.impforge.matching.judge import NEUTRAL
from crossguard_jax.systems.load import identified, load
from crossguard_jax.systems.scoring import queue_flagged
from crossguard_jax.toy.world.sources import records
from tests.cmai.small_systems import base, system_of, with_adapter

LONG = "what colour is it ? is it on the left ? " * 12
FIELDS = ("rejected", "branch", "windows")


def rows() -> list[Record]:
    """Rows with a picture: short, long, and with two pictures."""
    drawn = [replace(r, source="world") for r in records("implicit", "test", 18)]
    longs = [replace(r, id=f"long-{r.id}", text=LONG + r.text) for r in drawn[:4]]
    pairs = zip(drawn[:4], drawn[4:], strict=False)
    two = [replace(r, id=f"two-{r.id}", images=r.images + other.images) for r, other in pairs]
    return [*drawn, *longs, *two]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder whose policy has all four branches, each with rows on either side of its cut."""
    guard = with_adapter(base())
    settings = replace(guard.settings, window=32)
    system = system_of(Guard(guard.model, guard.folder, settings))
    s_c = np.sort(system.decide(rows()).s_c)
    cuts = [float(s_c[i - 1] + s_c[i]) / 2 for i in (4, 9, 14, 19)]
    branches = [
        {"below": cuts[0], "do": "reject"},
        {"below": cuts[1], "do": "smooth", "n": 2, "sigma": 0.1},
        {"below": cuts[2], "do": "robust"},
        {"below": cuts[3], "do": "flag"},
    ]
    policy = Policy.from_config({"branches": branches})
    place = tmp_path_factory.mktemp("immunized") / "model"
    save_immunized(replace(system, policy=policy, regime=0.5), place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("data")
    write_jsonl(rows(), place, "rows")
    return place / "rows.jsonl"


def by_id(path: Path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


def of_score(model: Path, data: Path, out: Path) -> dict[str, dict]:
    arguments = ["score", "--model", model, "--input", data, "--output", out / "v.jsonl"]
    assert cli.main([*map(str, arguments)]) == 0
    return by_id(out / "v.jsonl")


def of_evaluate(model: Path, data: Path, out: Path) -> dict[str, dict]:
    arguments = ["evaluate", "--model", f"m={model}", "--data", data, "--out", out]
    assert cli.main([*map(str, arguments)]) == 0
    return by_id(out / "m.verdicts.jsonl")


def of_attack(model: Path, data: Path, out: Path) -> dict[str, dict]:
    config = load_config("configs/cmai.py:tiny")
    with config.unlocked():
        config.attack.attacks = {"noise": {"search": "noise", "climb": "margin", "steps": 1}}
    config.attack.update({"epsilons": (0.0, 8 / 255), "draws": 1, "fpr": ()})
    config.attack.convergence.rows = 2
    given = {"validation": None, "surrogate": None, "certify": 0, "limit": None, "prompt": None}
    given |= {"attack": None, "save": None}
    given |= {"store": None, "noise_seed": None, "config": config}
    given |= {"mesh": None, "dtype": "auto", "remat": None}
    attack.main(argparse.Namespace(model=[f"m={model}"], data=[str(data)], out=str(out), **given))
    return by_id(out / "m.verdicts.jsonl")


def of_python(model: Path, data: Path, out: Path) -> dict[str, dict]:
    asked = rows()
    verdicts = load(model).score([r.images for r in asked], [r.text for r in asked])
    fields = (*FIELDS, "s_c", "p_unsafe")
    return {
        r.id: {name: getattr(v, name) for name in fields}
        for r, v in zip(asked, verdicts, strict=True)
    }


def same(found: dict[str, dict], expected: dict[str, dict]) -> None:
    assert found.keys() == expected.keys()
    for id, row in expected.items():
        assert {f: found[id][f] for f in FIELDS} == {f: row[f] for f in FIELDS}, id
        np.testing.assert_allclose(
            [found[id][f] for f in ("s_c", "p_unsafe")],
            [row[f] for f in ("s_c", "p_unsafe")],
            atol=1e-4,
        )


@pytest.mark.robustness
@pytest.mark.parametrize("verb", [of_score, of_evaluate, of_attack])
def test_every_verb_gives_the_verdict_that_python_does(
    verb: Callable[[Path, Path, Path], dict[str, dict]], folder: Path, data: Path, tmp_path: Path
) -> None:
    expected = of_python(folder, data, tmp_path)
    branches = {row["branch"] for row in expected.values()}
    assert branches == {"reject", "smooth", "robust", "flag", "accept"}
    assert max(row["windows"] for row in expected.values()) > 4
    same(verb(folder, data, tmp_path / "out"), expected)


@pytest.mark.robustness
def test_the_verdict_is_the_same_where_the_folder_was_moved(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    expected = of_python(folder, data, tmp_path)
    shutil.copytree(folder, tmp_path / "moved")
    same(of_python(tmp_path / "moved", data, tmp_path), expected)
    (tmp_path / "moved" / "noise_secret").write_text("another\n")
    other = of_python(tmp_path / "moved", data, tmp_path)
    moved = [id for id, row in expected.items() if other[id]["p_unsafe"] != row["p_unsafe"]]
    assert moved and all(expected[id]["branch"] == "smooth" for id in moved)


@pytest.mark.robustness
def test_what_is_flagged_waits_for_review(folder: Path, data: Path, tmp_path: Path, capsys) -> None:
    verdicts = of_score(folder, data, tmp_path)
    flagged = {id for id, row in verdicts.items() if row["branch"] == "flag"}
    queue = tmp_path / "review.jsonl"
    assert {json.loads(line)["id"] for line in queue.read_text().splitlines()} == flagged
    assert f"flagged for review: {len(flagged)}\n" in capsys.readouterr().out and flagged
    assert cli.main(["review", str(queue), "--page", str(tmp_path / "review.html")]) == 0
    row = next(row for row in rows() if row.id in flagged)
    (tmp_path / "p.png").write_bytes(row.image)
    one = ["score", "--model", folder, "--text", row.text, "--queue", tmp_path / "one.jsonl"]
    assert cli.main([*map(str, one), "--image", str(tmp_path / "p.png")]) == 0
    assert [each.text for each in read_queue(tmp_path / "one.jsonl")] == [row.text]


def judged_by_match(model: Path, asked: list[Record], cache: Path) -> None:
    config = load_config("configs/impforge.py:tiny").match.judge
    config.update({"kind": "guard", "guard": str(model), "batch_size": 4})
    verdicts = load(model).score([r.images for r in asked], [NEUTRAL] * len(asked))
    assert {v.rejected for v in verdicts} == {True, False}
    judgements = make_judge(config, cache, identified).judge([(r.id, r.image) for r in asked])
    assert {j.id: j.safe for j in judgements} == {
        r.id: not v.unsafe for r, v in zip(asked, verdicts, strict=True)
    }


def asked_by_tasks(model: Path, asked: list[Record], out: Path) -> None:
    with pytest.raises(UserError, match="is immunized, and tasks asks a model in words"):
        make_tasks(str(model), None, {}, Asking(), LeftOut(out / "bad.jsonl"))


@pytest.mark.robustness
@pytest.mark.parametrize("verb", [judged_by_match, asked_by_tasks])
def test_no_verb_takes_an_immunized_folder_for_a_plain_guard(
    verb: Callable[[Path, list[Record], Path], None], tmp_path: Path
) -> None:
    asked = records("implicit", "test", 6)
    system = system_of(base())
    s_c = system.decide([replace(r, text=NEUTRAL) for r in asked]).s_c
    policy = Policy.from_config({"branches": [{"below": float(np.median(s_c)), "do": "reject"}]})
    save_immunized(replace(system, policy=policy), tmp_path / "model")
    verb(tmp_path / "model", asked, tmp_path / "out")


def test_a_flagged_request_whose_agreement_is_no_number_waits_for_review(tmp_path: Path) -> None:
    queue, (row,) = ReviewQueue(tmp_path / "q.jsonl"), rows()[:1]
    flagged = Verdict(0.2, False, 0.5, "safe", s_c=None, branch="flag")
    queue_flagged(queue, base(), [row], [flagged])
    assert [each.reason for each in read_queue(tmp_path / "q.jsonl")] == ["S_c is no number"]


def test_an_export_does_not_leave_a_policy_behind_unsaid(tmp_path: Path, capsys) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "cmai.json").write_text("{}")
    assert cli.main(["export", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "e")]) == 1
    assert "is immunized" in capsys.readouterr().err and not (tmp_path / "e").exists()


@pytest.mark.robustness
def test_doctor_says_what_the_policy_does(folder: Path, capsys) -> None:
    cli.main(["doctor", "--model", str(folder)])
    out = capsys.readouterr().out
    for branch in ("reject", "smooth", "robust", "flag", "accept"):
        assert f": {branch}" in out
    assert "policy answers" in out and "answers by itself" in out
