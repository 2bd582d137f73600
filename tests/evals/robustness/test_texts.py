"""Attacks on texts: what an earlier run has left is taken only where it is of the same thing."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from crossguard_jax.attacks.registry import REGISTRY
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness import texts
from crossguard_jax.evals.robustness.breakdown import _mean
from crossguard_jax.evals.robustness.rewriting import Rewriting, Sentences
from crossguard_jax.evals.robustness.texts import FIELDS, AttackedTexts, TextSuite
from crossguard_jax.report.tables import ABSENT

ROWS = [Record(str(i), (), f"text {i}", "safe") for i in range(3)]


class Read:
    """Stands for `Rewriting`: every row is right, and its arrays are what the system says."""

    def __init__(self, system: Any, records: list[Record], which: int | None = None):
        self.system, self.records, self.which = system, records, which

    def judged(self, written: list[str], *_: Any) -> dict[str, np.ndarray]:
        wrong = np.full(len(written), -1.0)
        return {"loss": wrong, "margin": wrong, "detector": wrong * np.nan}

    def arrays(self, written: list[str], at: list[int]) -> tuple[np.ndarray, dict[str, Any]]:
        seen = self.system.pictures[at]
        return seen if self.which is None else seen[:, self.which], {
            "labels": self.system.labels[at]
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
    assert _mean(AttackedTexts(REGISTRY["gcg"], group, won, run[0], values), "queries") == ABSENT
