"""Attacks on texts: what an earlier run has left is taken only where it is of the same thing."""

import functools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from crossguard_jax.attacks.registry import REGISTRY
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.operating import sign
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness import texts
from crossguard_jax.evals.robustness.breakdown import _mean
from crossguard_jax.evals.robustness.fixed_report import text_figures
from crossguard_jax.evals.robustness.prompts import share_pictures
from crossguard_jax.evals.robustness.rewriting import Rewriting, Sentences
from crossguard_jax.evals.robustness.texts import FIELDS, AttackedTexts, TextSuite
from crossguard_jax.report.tables import ABSENT
from crossguard_jax.toy.world.sources import records
from tests.cmai.small_systems import base

ROWS = [Record(str(i), (), f"text {i}", "safe") for i in range(3)]


class Read:
    """Stands for `Rewriting`: every row is right, and its arrays are what the system says."""

    def __init__(self, system: Any, records: list[Record], which: int | None, at: Any):
        self.system, self.records, self.which, self.at = system, records, which, at
        self.labels = [0] * len(records)

    def judged(self, written: list[str], *_: Any) -> dict[str, np.ndarray]:
        wrong = np.full(len(written), -1.0)
        return {"loss": wrong, "margin": wrong, "detector": wrong * np.nan}

    def arrays(self, written: list[str], at: list[int]) -> tuple[np.ndarray, dict[str, Any]]:
        seen = self.system.pictures[at]
        return seen if self.which is None else seen[:, self.which], {
            "labels": self.system.labels[at],
            "at": np.array(self.at or ()),
        }


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The facts of every result that a suite asks for; none is made."""
    facts: list[str] = []

    def kept(place: Any, this: str, make: Any) -> dict[str, list[Any]]:
        facts.append(this)
        return {"texts": ["t"], **dict.fromkeys(FIELDS, [1.0])}

    monkeypatch.setattr(texts, "Rewriting", Read)
    monkeypatch.setattr(texts, "kept", kept)
    return facts


def system(pictures: float = 0.0, label: int = 0, prompt: str = "short") -> Immunized:
    guard = SimpleNamespace(encoder=SimpleNamespace(settings=f"prompt {prompt}"))
    task = SimpleNamespace(labels=("safe", "unsafe"), guard=guard)
    values = {"pictures": np.full((3, 3, 2, 2), pictures), "labels": np.full(3, label)}
    return Mock(Immunized, params={}, policy="", regime="", task=task, **values)


ANOTHER = Mock(Sentences)
ANOTHER.name = "another"
SUITE = TextSuite({"edits": REGISTRY["edits"]}, "linf", 0.1, 2, 1, 0)


@pytest.mark.parametrize(
    "other, suite",
    [
        (system(pictures=1.0), SUITE),
        (system(label=1), SUITE),
        (system(prompt="long"), SUITE),
        (system(), replace(SUITE, sentences=ANOTHER)),
        (system(), replace(SUITE, which=1)),
    ],
    ids=["pictures", "labels", "prompt", "sentence encoder", "the picture that moves"],
)
def test_another_input_is_another_result(other: Any, suite: TextSuite, asked_for: Any) -> None:
    SUITE.run(system(), ROWS, "there")
    SUITE.run(system(), ROWS, "there")
    suite.run(other, ROWS, "there")
    first, again, of_other = asked_for[:2], asked_for[2:4], asked_for[4:]
    assert first == again and len(set(first)) == 2
    assert not set(first) & set(of_other)


def test_only_the_picture_that_may_move_is_given_to_an_attack() -> None:
    arrays = Mock(return_value=(np.zeros(1), {}))
    task = Mock(reader=None, **{"guard.encoder.windows.return_value": []})
    Rewriting(Mock(Immunized, arrays=arrays, task=task), [], 1).arrays([], [])
    arrays.assert_called_once_with([], 1)


def test_texts_that_were_not_counted_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts.suffixes, "suffixed", lambda *_: ["a !", "b !"])
    group, written = np.arange(2), ["a", "b"]
    rewriting = Mock(Rewriting)
    run = SUITE._suffixed(REGISTRY["gcg"], rewriting, group, written, jax.random.key(0))
    values = {"queries": np.array(run[2])}
    won = np.ones(2, bool)
    assert (
        _mean(AttackedTexts(REGISTRY["gcg"], group, won, won, run[0], values), "queries") == ABSENT
    )


# At a guard's cut


def test_results_at_one_cut_are_not_those_at_another(asked_for: list[str]) -> None:
    for at in (None, (0.5, 1.0), (0.5, 2.0)):
        SUITE.run(system(), ROWS, "there", at)
    assert len(set(asked_for)) == len(asked_for) == 6


@pytest.mark.parametrize("at, attacked", [(None, [0, 3]), ((0.0, 1.0), [0, 1, 3])])
def test_an_unsafe_row_that_is_rejected_stands_at_a_cut(
    at: Any, attacked: list[int], monkeypatch: pytest.MonkeyPatch, asked_for: list[str]
) -> None:
    class Judged(Read):
        """Two unsafe rows and two safe ones; the second of each is rejected."""

        def __init__(self, *args: Any):
            super().__init__(*args)
            self.labels = [1, 1, 0, 0]

        def judged(self, written: list[str], *_: Any) -> dict[str, np.ndarray]:
            margin, detector = np.array([-1.0, 1.0, -1.0, -1.0]), np.array([-1.0, 1.0, 1.0, -1.0])
            return {"loss": margin, "margin": margin, "detector": detector}

    monkeypatch.setattr(texts, "Rewriting", Judged)
    rows = [Record(str(i), (), f"text {i}", "safe") for i in range(4)]
    monkeypatch.setattr(texts, "digest", str)
    monkeypatch.setattr(Judged, "arrays", lambda *_: None)
    made = replace(SUITE, batch_size=1).run(system(), rows, "there", at)["edits"]
    assert made.rows.tolist() == attacked and made.labels.tolist() == [1, 1, 0, 0]


def test_recall_and_specificity_under_an_attack_are_of_all_rows() -> None:
    labels, right = np.array([1, 1, 1, 0, 0]), np.array([True, True, False, True, True])
    fooled, caught = np.array([1.0, 1.0, 1.0, -1.0]), np.array([-1.0, 1.0, -1.0, -1.0])
    values = {"margin": fooled, "detector": caught}
    rows = np.flatnonzero(right)
    attacked = AttackedTexts(REGISTRY["edits"], rows, right, labels, ["t"] * 4, values)
    found = {name: estimate.value for name, estimate in text_figures(attacked).items()}
    assert found == pytest.approx(
        {"clean.recall": 2 / 3, "recall": 1 / 3, "clean.specificity": 1, "specificity": 0.5}
    )


@pytest.mark.robustness
def test_a_cut_moves_what_texts_and_shared_pictures_are_judged_by(tmp_path: Path) -> None:
    plain, rows = Immunized.of(base()), records("implicit", "test", 4)
    key = jax.random.key(0)
    written = [row.text for row in rows], range(4), key, 1, 4
    toward = sign(np.array([plain.task.label(row) for row in rows]))
    odds = toward * Rewriting(plain, rows).judged(*written)["margin"]
    moved = Rewriting(plain, rows, None, (2.0, 4.0)).judged(*written)["margin"]
    np.testing.assert_allclose(moved, toward * (odds - 2) / 4, atol=1e-5)
    attack = REGISTRY["universal_picture"].changed("", steps=1, prompts=4)
    share = functools.partial(
        share_pictures, {"universal_picture": attack}, plain, rows, norm="linf", epsilon=8 / 255
    )
    # Where everything is unsafe every prompt is left to win; where nothing is there are too few.
    low, high = (
        share(tmp_path / str(cut), batch_size=4, seed=0, at=(cut, 1.0)) for cut in (-99.0, 99.0)
    )
    assert len(low["universal_picture"].texts) == len({row.text for row in rows}) and not high
